//! The real program as a daemon on the routers of a lab.
//!
//! A [`Repository`] is a directory of YAML, its [`Repository::lab`] the namespaces for it, a [`Daemon`] the program
//! `patronus run` on one router. Dropped, everything is gone; a test that fails shows the end of the daemon's log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use patronus::{
    api::client,
    engine::status::{Event, Status},
    lab::{self, Lab, Node},
    source,
    store::{HealthSample, TransitionRecord, read},
    units::Name,
    validate::{self, intent::Site},
};
use tempfile::TempDir;

/// The program under test.
pub const PATRONUS: &str = env!("CARGO_BIN_EXE_patronus");
/// How long anything may take, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Parses a name.
pub fn name(s: &str) -> Name {
    s.parse().unwrap()
}

/// A directory of YAML.
pub struct Repository(TempDir);

impl Repository {
    /// One with these files.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let repository = Self(tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap());
        for (file, text) in files {
            repository.write(file, text);
        }
        repository
    }

    /// Writes a file as editors do: beside, then renamed.
    pub fn write(&self, file: &str, text: &str) {
        let (hidden, path) = (self.0.path().join(".new"), self.0.path().join(file));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, path).unwrap();
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Its sites; errors in it are a panic that shows them.
    pub fn sites(&self) -> BTreeMap<Name, Site> {
        let (config, mut found) = patronus::config::load(&source::read(self.path()).unwrap());
        let (intent, more) = validate::check(&config);
        found.extend(more);
        intent.unwrap_or_else(|| panic!("the test's configuration has errors: {found:#?}")).sites().clone()
    }

    /// Namespaces for all its sites.
    pub fn lab(&self) -> Arc<Lab> {
        let sites = self.sites();
        let topology = lab::topology(sites.values()).unwrap();
        Arc::new(Lab::build(topology, &Lab::unique_prefix("patronusit")).unwrap())
    }
}

/// A running daemon. Fields are dropped in order: the process first.
pub struct Daemon {
    child: Option<Child>,
    lab: Arc<Lab>,
    site: Name,
    place: TempDir,
    repository: PathBuf,
    /// Settings beside those that every test needs.
    more: serde_json::Value,
    /// Variables of its environment.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Daemon {
    /// Starts it on a site's router and waits until it has applied its configuration.
    pub fn start(lab: &Arc<Lab>, repository: &Repository, site: &str) -> Self {
        let mut daemon = Self::stopped(lab, repository, site);
        daemon.settle();
        daemon
    }

    /// The same with more settings.
    pub fn start_with(lab: &Arc<Lab>, repository: &Repository, site: &str, more: serde_json::Value) -> Self {
        let mut daemon = Self::stopped(lab, repository, site);
        daemon.more = more;
        daemon.settle();
        daemon
    }

    /// The same with a variable in its environment.
    pub fn start_in(lab: &Arc<Lab>, repository: &Repository, site: &str, variable: (&'static str, PathBuf)) -> Self {
        let mut daemon = Self::stopped(lab, repository, site);
        daemon.environment.push(variable);
        daemon.settle();
        daemon
    }

    /// Starts it on a site's router and waits for nothing.
    pub fn launched(lab: &Arc<Lab>, repository: &Repository, site: &str) -> Self {
        let mut daemon = Self::stopped(lab, repository, site);
        daemon.launch();
        daemon
    }

    /// One that does not run yet.
    pub fn stopped(lab: &Arc<Lab>, repository: &Repository, site: &str) -> Self {
        let place = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        for part in ["state", "run"] {
            fs::create_dir(place.path().join(part)).unwrap();
        }
        let repository = repository.path().to_owned();
        let (lab, site, more) = (Arc::clone(lab), name(site), serde_json::json!({}));
        Self { child: None, lab, site, place, repository, more, environment: Vec::new() }
    }

    /// Other settings for its next start.
    pub fn set(&mut self, more: serde_json::Value) {
        self.more = more;
    }

    /// Another variable in its environment, from its next start on.
    pub fn variable(&mut self, name: &'static str, value: PathBuf) {
        self.environment.push((name, value));
    }

    /// The lab that it runs in.
    pub const fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// Starts it again after it ended, and waits until it has reconciled once.
    pub fn settle(&mut self) -> Status {
        self.launch();
        self.wait("the first reconcile", |s| s.reconcile.is_some())
    }

    /// Starts the process and waits for nothing.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let file = self.settings_file();
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.patronus(&["run", "--config"]);
        command.arg(file).process_group(0).stdin(Stdio::null()).envs(self.environment.iter().cloned());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(self.lab.spawn_in(&self.router(), command).unwrap());
    }

    /// Its settings, written down.
    pub fn settings_file(&self) -> PathBuf {
        // JSON is YAML.
        let mut settings = serde_json::json!({
            "site": self.site,
            "source": {"dir": self.repository},
            "stateDir": self.state_dir(),
            "runtimeDir": self.place.path().join("run"),
            "listen": {"metrics": "127.0.0.1:9469"},
        });
        for (field, value) in self.more.as_object().into_iter().flatten() {
            settings[field] = value.clone();
        }
        let file = self.place.path().join("patronus.yaml");
        fs::write(&file, settings.to_string()).unwrap();
        file
    }

    /// The router that it runs on.
    pub fn router(&self) -> Node {
        Node::Router(self.site.clone())
    }

    /// Where it keeps its databases.
    pub fn state_dir(&self) -> PathBuf {
        self.place.path().join("state")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.place.path().join("run").join("patronus.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.place.path().join("log")
    }

    /// All that it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A command of the program that talks to this daemon.
    pub fn patronus(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PATRONUS);
        command.args(words).env("PATRONUS_SOCKET", self.socket()).env("NO_COLOR", "1");
        command
    }

    /// What a verb prints when it is run on the router; its failure is a panic.
    pub fn says(&self, words: &[&str]) -> String {
        let output = self.lab.run_in(&self.router(), self.patronus(words)).unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "patronus {}: {}\n{out}{err}", words.join(" "), output.status);
        out.into_owned()
    }

    /// Exit status and output of a verb that is run on the router with the daemon's settings.
    pub fn tells(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = self.patronus(words);
        command.env("PATRONUS_CONFIG", self.settings_file());
        let output = self.lab.run_in(&self.router(), command).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs a shell line on the router; its failure is a panic.
    pub fn sh(&self, line: &str) -> String {
        sh(&self.lab, &self.router(), line)
    }

    /// The status that the control socket gives, if it does.
    pub fn try_status(&self) -> Option<Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = self.socket();
        let asked = client::ask(&socket, hyper::Method::GET, "/v1/status", Duration::from_secs(2));
        runtime.block_on(asked).ok()
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.wait("an answer", |_| true)
    }

    /// Waits until the status fits, and gives it back.
    pub fn wait(&self, what: &str, fits: impl Fn(&Status) -> bool) -> Status {
        self.wait_for(what, PATIENCE, fits)
    }

    /// Waits so long at most until the status fits, and gives it back.
    pub fn wait_for(&self, what: &str, patience: Duration, fits: impl Fn(&Status) -> bool) -> Status {
        let start = Instant::now();
        loop {
            let status = self.try_status();
            match status {
                Some(status) if fits(&status) => return status,
                status if start.elapsed() > patience => {
                    let shown = status.map_or_else(|| "none".to_owned(), |s| serde_json::to_string_pretty(&s).unwrap());
                    panic!("{}: waited {patience:?} for {what}; status: {shown}", self.site);
                }
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Waits until a rule uses a path.
    pub fn wait_active(&self, rule: &str, path: &str) -> Status {
        self.wait(&format!("rule {rule} to use {path}"), |s| active(s, rule) == Some(path))
    }

    /// All series of `/metrics`, asked for on the router: `name{labels}` to value.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9469")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: router\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = self.lab.thread_in(&self.router(), ask).join().unwrap().unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"), "{text}");
        let series = text.lines().filter(|line| line.starts_with("patronus_"));
        series.filter_map(|line| line.rsplit_once(' ')).map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
    }

    /// Events in the database, of a kind or all; waits for nothing.
    pub fn events(&self, kind: Option<&str>) -> Vec<Event> {
        read::events(&self.state_dir(), &wanted(kind)).unwrap_or_default()
    }

    /// Waits for an event in the database.
    pub fn wait_event(&self, kind: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let start = Instant::now();
        loop {
            let events = self.events(Some(kind));
            if let Some(found) = events.iter().rev().find(|e| fits(e)) {
                return found.clone();
            }
            assert!(start.elapsed() < PATIENCE, "no such event of kind {kind} among {events:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Transitions in the database.
    pub fn transitions(&self) -> Vec<TransitionRecord> {
        read::transitions(&self.state_dir(), &wanted(None)).unwrap_or_default()
    }

    /// Samples of a path in the database; complete once the daemon has ended.
    pub fn samples(&self, path: &str) -> Vec<HealthSample> {
        read::samples(&self.state_dir(), &wanted(Some(path))).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, what: Signal) {
        signal::kill(Pid::from_raw(self.pid()), what).unwrap();
    }

    /// Ends it by SIGTERM, waits for that, and checks that it ended well.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("it did not end by SIGTERM:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let status = child.wait().unwrap();
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its data plane goes with the lab.
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the daemon's log ({}):", self.site);
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("  {line}"));
        }
    }
}

fn wanted(only: Option<&str>) -> read::Wanted {
    read::Wanted { only: only.map(str::to_owned), limit: 10_000, ..read::Wanted::default() }
}

/// The path that a rule uses.
pub fn active<'a>(status: &'a Status, rule: &str) -> Option<&'a str> {
    status.rules.get(rule)?.choice.active.as_ref().map(Name::as_str)
}

/// Runs a shell line in a node; its failure is a panic.
pub fn sh(lab: &Lab, node: &Node, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    let output = lab.run_in(node, command).unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
