//! The doctor on a machine that is partly broken: the real gatherers in a namespace of its own.

use std::{
    fs,
    process::{Command, Stdio},
};

use patronus::{
    doctor::{
        self, Verdict,
        facts::Configuration,
        gather::{self, Asked},
    },
    settings::Settings,
};

use crate::support::{
    daemon::PATRONUS,
    netns::{in_netns, ip, nft, veth},
};

const SITE: &str = include_str!("reconcile/site.yaml");

/// Runs the verb here and gives back its checks by name.
fn checks(directory: &std::path::Path) -> (Option<i32>, serde_json::Value) {
    let settings = serde_json::json!({
        "site": "berlin",
        "source": {"dir": directory.join("conf")},
        "stateDir": directory.join("state"),
        "runtimeDir": directory.join("run"),
        "listen": {"metrics": "127.0.0.1:9469"},
    });
    let file = directory.join("patronus.yaml");
    fs::write(&file, settings.to_string()).unwrap();
    let output = Command::new(PATRONUS)
        .args(["doctor", "--output", "json", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .env_remove("PATRONUS_STATE_DIR")
        .env_remove("PATRONUS_RUNTIME_DIR")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let parsed = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), parsed)
}

fn verdict<'a>(report: &'a serde_json::Value, id: &str) -> (&'a str, &'a str) {
    let all = report["checks"].as_array().unwrap();
    let check = all.iter().find(|check| check["id"] == id).unwrap();
    (check["verdict"].as_str().unwrap(), check["says"].as_str().unwrap())
}

#[test]
fn the_doctor_sees_what_is_wrong_with_a_machine() {
    in_netns(async || {
        let dir = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        for part in ["conf", "state", "run"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        fs::write(dir.path().join("conf/site.yaml"), SITE).unwrap();
        veth("wan0", "isp0", "198.51.100.2/24");
        veth("lan0", "host0", "192.168.10.1/24");
        let (code, report) = checks(dir.path());
        assert_eq!(code, Some(1), "{report:#}");
        for id in
            ["kernel-access", "kernel-ruleset", "kernel-connection-mark", "kernel-rules", "nft-version", "capabilities"]
        {
            assert_eq!(verdict(&report, id).0, "ok", "{id}: {:?}", verdict(&report, id));
        }
        for id in
            ["ping", "rules-ahead", "later-drops", "flowtables", "settings", "source", "configuration", "carriers"]
        {
            assert_eq!(verdict(&report, id).0, "ok", "{id}: {:?}", verdict(&report, id));
        }
        assert_eq!(verdict(&report, "interfaces"), ("fail", "there is no interface wwan0"));
        assert_eq!(verdict(&report, "kernel-vxlan").0, "skipped");
        break_it();
        let _port = std::net::TcpListener::bind("127.0.0.1:9469").unwrap();
        let (_, report) = checks(dir.path());
        for (id, wanted, part) in [
            ("rules-ahead", "fail", "priority 100 is asked before ours"),
            ("ranges", "fail", "IPv4 rule priority 20001"),
            ("later-drops", "fail", "policy drop"),
            ("marks", "warn", "inet theirs marks sets packet marks"),
            ("other-nat", "warn", "inet theirs nats"),
            ("gateways", "warn", "198.51.100.1 on wan0 does not answer"),
            ("carriers", "ok", ""),
            ("metrics-port", "fail", "127.0.0.1:9469"),
            ("rp-filter", "warn", "wan0"),
        ] {
            let (verdict, says) = verdict(&report, id);
            assert!(verdict == wanted && says.contains(part), "{id}: {verdict}: {says}");
        }
    });
}

/// What administrators and other programs do to a router.
fn break_it() {
    ip("rule add pref 100 lookup main");
    ip("rule add pref 20001 from 10.202.0.2 lookup 30000");
    ip("neigh add 198.51.100.1 dev wan0 nud failed");
    fs::write("/proc/sys/net/ipv4/conf/wan0/rp_filter", "1").unwrap();
    nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }
table inet theirs {
  chain marks { type filter hook prerouting priority 0; meta mark set 0x1; };
  chain nats { type nat hook postrouting priority 90; masquerade; };
}
");
}

#[tokio::test]
async fn files_are_looked_for_below_the_root_that_is_asked_for() {
    let root = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let file = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    put("/etc/nftables.conf", "flush ruleset\n");
    put("/etc/systemd/system/sysinit.target.wants/nftables.service", "");
    put("/etc/iproute2/rt_protos.d/frr.conf", "157 frr\n");
    put("/etc/systemd/system/patronus.service", "[Service]\nType=simple\n");
    put("/etc/ufw/ufw.conf", "ENABLED=yes\n");
    let asked = Asked {
        root: root.path().to_owned(),
        settings: Settings::default(),
        settings_error: None,
        settings_file: "/etc/patronus/patronus.yaml".into(),
        configuration: Configuration::Unnamed,
        applied: None,
        daemon: false,
    };
    let outcomes = doctor::examine(&gather::gather(asked).await);
    let of = |id: &str| outcomes.iter().find(|o| o.id == id).unwrap().verdict;
    for (id, wanted) in [
        ("nftables-service", Verdict::Warn),
        ("protocol-number", Verdict::Fail),
        ("unit", Verdict::Warn),
        ("ufw", Verdict::Fail),
        ("state-directory", Verdict::Fail),
        ("settings-mode", Verdict::Skipped),
        ("kernel-vxlan", Verdict::Ok),
    ] {
        assert_eq!(of(id), wanted, "{id}: {outcomes:#?}");
    }
}
