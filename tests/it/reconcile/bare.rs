//! The daemon and the service manager: notifications, the watchdog, signals.

use std::{
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use patronus::{api::client, engine::status::Status};

use super::SITE;
use crate::support::{
    daemon::PATRONUS,
    netns::{in_netns, ip, nft, run, until, veth},
    quiet,
};

/// A daemon in the calling thread's namespace, with a service manager that listens.
struct Bare {
    child: Child,
    dir: tempfile::TempDir,
    manager: UnixDatagram,
}

impl Bare {
    fn start() -> Self {
        for (name, address) in [("wan0", "198.51.100.2/24"), ("wwan0", "203.0.113.2/24"), ("lan0", "192.168.10.1/24")] {
            veth(name, &format!("{name}x"), address);
        }
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        for name in ["conf", "bin"] {
            fs::create_dir(place(name)).unwrap();
        }
        fs::write(place("target.yaml"), SITE).unwrap();
        std::os::unix::fs::symlink(place("target.yaml"), place("conf/site.yaml")).unwrap();
        let script = format!(
            "#!/bin/sh\nwhile [ -e {}/hang ]; do sleep 0.02; done\nexec /usr/sbin/nft \"$@\"\n",
            dir.path().display()
        );
        fs::write(place("bin/nft"), script).unwrap();
        run("chmod", &["+x", place("bin/nft").to_str().unwrap()], "");
        let manager = UnixDatagram::bind(place("notify")).unwrap();
        manager.set_nonblocking(true).unwrap();
        let log = fs::File::create(place("log")).unwrap();
        let path = format!("{}:{}", place("bin").display(), std::env::var("PATH").unwrap());
        let settings = serde_json::json!({"site": "berlin", "source": {"dir": place("conf")}, "stateDir": place("state"),
            "runtimeDir": place("run"), "listen": {"metrics": "none"}});
        fs::write(place("patronus.yaml"), settings.to_string()).unwrap();
        let child = Command::new(PATRONUS)
            .args(["run", "--config"])
            .arg(place("patronus.yaml"))
            .env("PATH", path)
            .env("NOTIFY_SOCKET", place("notify"))
            .env("WATCHDOG_USEC", "3000000")
            .env("PATRONUS_LOG_FORMAT", "json")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir, manager }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the service manager has heard since it last asked.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4_096];
        let mut lines = Vec::new();
        while let Ok(length) = self.manager.recv(&mut buffer) {
            lines.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        lines
    }

    async fn hear(&self, line: &str) {
        let mut all = Vec::new();
        until(&format!("`{line}` from the daemon"), || {
            all.extend(self.heard());
            all.iter().any(|heard| heard.starts_with(line))
        })
        .await;
    }

    async fn status(&self) -> Status {
        let socket = self.place("run/patronus.sock");
        client::ask(&socket, hyper::Method::GET, "/v1/status", Duration::from_secs(5)).await.unwrap()
    }

    fn signal(&self, what: Signal) {
        signal::kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), what).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place("log")).unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn data_plane() -> String {
    let mut all = run("nft", &["list", "ruleset"], "");
    for words in ["-4 rule", "-6 rule", "-d -4 route show table all", "-d -6 route show table all"] {
        all += &ip(words);
    }
    all
}

#[test]
fn the_service_manager_is_told_and_signals_are_obeyed() {
    let _quiet = quiet();
    in_netns(|| async {
        let mut bare = Bare::start();
        bare.hear("READY=1").await;
        bare.hear("STATUS=site berlin, generation 1").await;
        bare.hear("WATCHDOG=1").await;
        a_hanging_nft_stops_the_watchdog(&bare).await;
        hangup(&bare).await;
        terminate(&mut bare).await;
        log_lines(&bare.log());
    });
}

/// The loop waits for `nft`: whoever feeds the watchdog must not go on without it. A stopped process would prove
/// nothing, since all of it stands still.
async fn a_hanging_nft_stops_the_watchdog(bare: &Bare) {
    fs::write(bare.place("hang"), "").unwrap();
    nft("add set inet patronus mine { type mark; }");
    let mut last = Instant::now();
    until("the watchdog to go hungry for two seconds", || {
        if !bare.heard().is_empty() {
            last = Instant::now();
        }
        last.elapsed() > Duration::from_secs(2)
    })
    .await;
    fs::remove_file(bare.place("hang")).unwrap();
    bare.hear("WATCHDOG=1").await;
    until("the repair", || !run("nft", &["list", "table", "inet", "patronus"], "").contains("set mine")).await;
}

/// A change that no notification tells: behind a link, between two audits.
async fn hangup(bare: &Bare) {
    let before = bare.status().await.source;
    let mut after = before.clone();
    while after.last_success == before.last_success {
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = bare.status().await.source;
    }
    fs::write(bare.place("target.yaml"), SITE.replace("voice:", "calls:")).unwrap();
    bare.signal(Signal::SIGHUP);
    let start = Instant::now();
    while !run("nft", &["list", "table", "inet", "patronus"], "").contains("policy_calls") {
        assert!(start.elapsed() < Duration::from_secs(3), "SIGHUP does not reread");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn terminate(bare: &mut Bare) {
    let before = data_plane();
    let start = Instant::now();
    bare.signal(Signal::SIGTERM);
    let mut status = None;
    until("the end", || {
        status = bare.child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    let took = start.elapsed();
    eprintln!("ended {took:?} after SIGTERM");
    assert!(took < Duration::from_secs(2) && status.unwrap().success(), "{took:?} {status:?}");
    assert_eq!(data_plane(), before);
    assert!(bare.heard().contains(&"STOPPING=1".to_owned()));
}

fn log_lines(log: &str) {
    for line in log.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        let fields = parsed.unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(fields["timestamp"].is_string() && fields["level"].is_string(), "{line}");
        assert!(!fields["fields"]["message"].as_str().unwrap_or("\n").contains('\n'), "{line}");
    }
    assert!(log.lines().count() < 60, "too much is logged:\n{log}");
}
