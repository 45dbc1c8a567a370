//! A team's repository and the servers that offer it: real git, a private sshd, `git http-backend` behind TLS.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patronus::lab::{Lab, Node};
use tempfile::TempDir;

/// What the servers need beside the repository.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/git");

/// A bare repository, and the working tree of somebody who pushes to it.
pub struct Team {
    dir: TempDir,
}

impl Team {
    /// An empty repository `network.git`, and keys: `ada` may sign, `eve` may not, `router` logs in.
    pub fn new() -> Self {
        let team = Self { dir: tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap() };
        team.sh("git init -q --bare -b main network.git && git clone -q network.git work 2>/dev/null");
        for key in ["ada", "eve", "router", "stranger"] {
            team.sh(&format!("ssh-keygen -q -t ed25519 -N '' -C {key}@example.net -f {key}"));
        }
        let signers = fs::read_to_string(team.path("ada.pub")).unwrap();
        fs::write(team.path("signers"), format!("ada@example.net namespaces=\"git\" {signers}")).unwrap();
        team
    }

    /// A path in the team's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of everything.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a shell line in the directory of everything, with nothing of this machine's git configuration.
    pub fn sh(&self, line: &str) -> String {
        let output = Command::new("sh").args(["-ec", line]).current_dir(self.root()).envs(self.env()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}\n{said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        [
            ("HOME", self.root().display().to_string()),
            ("GIT_CONFIG_NOSYSTEM", "1".to_owned()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".to_owned()),
            ("GIT_AUTHOR_NAME", "Ada".to_owned()),
            ("GIT_AUTHOR_EMAIL", "ada@example.net".to_owned()),
            ("GIT_COMMITTER_NAME", "Ada".to_owned()),
            ("GIT_COMMITTER_EMAIL", "ada@example.net".to_owned()),
        ]
        .to_vec()
    }

    /// Runs a shell line in the working tree.
    pub fn work(&self, line: &str) -> String {
        self.sh(&format!("cd work; {line}"))
    }

    /// Writes a file of the working tree.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path("work").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits everything and pushes it; returns the commit.
    pub fn push(&self, message: &str) -> String {
        self.work(&format!(
            "git add -A && git commit -q --allow-empty -m '{message}' && git push -q -f origin HEAD:main"
        ));
        self.work("git rev-parse HEAD")
    }

    /// The same, signed with the key of this name.
    pub fn push_signed(&self, message: &str, key: &str) -> String {
        let key = self.path(key);
        self.work(&format!(
            "git add -A && git -c gpg.format=ssh -c user.signingkey={} commit -q -S --allow-empty -m '{message}' \
             && git push -q -f origin HEAD:main",
            key.display()
        ));
        self.work("git rev-parse HEAD")
    }

    /// Pushes a commit of a tree that was made by hand; returns the commit.
    pub fn push_tree(&self, tree: &str) -> String {
        let commit = self.work(&format!("git commit-tree -p HEAD -m made {tree}"));
        self.work(&format!("git push -q -f origin {commit}:main"));
        commit
    }

    /// A private sshd on 127.0.0.1:`port`, with a new host key in `known_hosts`; who has `router` may log in.
    pub fn sshd(&self, port: u16) -> Server {
        Server::start(self.sshd_command("127.0.0.1", port), port)
    }

    /// The same at another address, to be started elsewhere.
    pub fn sshd_command(&self, address: &str, port: u16) -> Command {
        // OpenSSH insists on this directory, wherever its configuration stands.
        fs::create_dir_all("/run/sshd").unwrap();
        let root = self.root().display();
        self.sh(&format!(
            "rm -f host{port} host{port}.pub && ssh-keygen -q -t ed25519 -N '' -f host{port} && cp router.pub authorized && \
             printf 'Port {port}\\nListenAddress {address}\\nHostKey {root}/host{port}\\nPidFile none\\nUsePAM no\\n\
             StrictModes no\\nAuthorizedKeysFile {root}/authorized\\nPasswordAuthentication no\\n\
             KbdInteractiveAuthentication no\\nPermitRootLogin prohibit-password\\n' > sshd{port}.conf && \
             printf '[{address}]:{port} ' > known_hosts && cat host{port}.pub >> known_hosts",
        ));
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(self.path(&format!("sshd{port}.conf")));
        command
    }

    /// `git http-backend` over TLS, one port for each certificate of `tests/it/git/tls`.
    pub fn https(&self, address: &str, listen: &[(u16, &str)]) -> Server {
        Server::start_that_says_ready(self.https_command(address, listen))
    }

    /// The same, to be started elsewhere.
    pub fn https_command(&self, address: &str, listen: &[(u16, &str)]) -> Command {
        let mut command = Command::new("python3");
        command.arg(format!("{FIXTURES}/server.py")).arg(self.root()).arg(format!("{FIXTURES}/tls")).arg(address);
        command.args(listen.iter().map(|(port, certificate)| format!("{port}={certificate}")));
        command.envs(self.env());
        command
    }
}

/// The authority that the test's certificates come from.
pub fn authority(name: &str) -> PathBuf {
    Path::new(FIXTURES).join("tls").join(format!("{name}.pem"))
}

/// A server that ends when it is dropped.
pub struct Server(Child);

impl Server {
    /// One that runs on a node of a lab, once it listens there.
    pub fn on(lab: &Lab, node: &Node, mut command: Command, at: (&str, u16)) -> Self {
        // Without a pipe the server of https would see the end of its input.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(lab.spawn_in(node, command).unwrap());
        let at: (IpAddr, u16) = (at.0.parse().unwrap(), at.1);
        let start = Instant::now();
        while lab.thread_in(node, move || TcpStream::connect(at)).join().unwrap().unwrap().is_err() {
            assert!(start.elapsed() < super::daemon::PATIENCE, "nobody listens at {at:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn start(mut command: Command, port: u16) -> Self {
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < super::daemon::PATIENCE, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn start_that_says_ready(mut command: Command) -> Self {
        let mut server = Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{command:?}");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
