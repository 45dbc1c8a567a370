//! `patronus explain` on a real kernel: it agrees with a router as it was applied, explains what is pinned, and names
//! who is ahead of us when something else decides.

use std::{
    fs,
    net::UdpSocket,
    process::{Command, Stdio},
};

use patronus::{
    clock,
    engine::status::Event,
    failover::{Alternative, Flows, Standing, Transition, TransitionKind},
    store::{Limits, Recorder, TransitionRecord},
    units::Name,
};
use serde_json::Value;

use crate::support::{
    daemon::{PATIENCE, PATRONUS},
    netns::{in_netns, ip, nft, veth},
};

const SITE: &str = include_str!("reconcile/site.yaml");
/// A call from the LAN, and the router's own packets to the same place.
const CALL: &str = "udp 192.168.10.5:4711 to 192.0.2.9:5060 dscp ef in lan0";
const OWN: &str = "udp 192.168.10.1:4711 to 192.0.2.9:5060";

/// A router in the namespace of the calling thread, whose uplinks lead to nobody.
struct Router(tempfile::TempDir);

impl Router {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        for (name, address) in [("wan0", "198.51.100.2/24"), ("wwan0", "203.0.113.2/24"), ("lan0", "192.168.10.1/24")] {
            veth(name, &format!("{name}x"), address);
        }
        ip("route add default via 203.0.113.1 dev wwan0");
        for (gateway, device) in [("198.51.100.1", "wan0"), ("203.0.113.1", "wwan0")] {
            ip(&format!("neighbour add {gateway} lladdr 02:00:00:00:00:99 dev {device} nud permanent"));
        }
        Self(dir)
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let place = |name: &str| self.0.path().join(name);
        let output = Command::new(PATRONUS)
            .args(words)
            .env("NO_COLOR", "1")
            .env("PATRONUS_CONFIG", place("settings.yaml"))
            .env_remove("PATRONUS_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    fn apply(&self, site: &str) {
        let place = |name: &str| self.0.path().join(name);
        let settings = serde_json::json!({"site": "berlin", "source": {"dir": place("conf")}, "stateDir": place("state"),
            "runtimeDir": place("run")});
        fs::write(place("settings.yaml"), settings.to_string()).unwrap();
        fs::write(place("conf/site.yaml"), site).unwrap();
        let (code, out, err) = self.run(&["apply", "--yes"]);
        assert_eq!(code, 0, "{out}{err}");
    }

    fn explain(&self, flow: &str) -> (i32, Value) {
        let (code, out, err) = self.run(&["explain", flow, "--output", "json"]);
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }
}

fn texts(report: &Value, field: &str) -> String {
    let all: Vec<&str> = report[field].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    all.join("\n")
}

#[test]
fn model_and_kernel_agree_until_a_rule_ahead_of_ours_decides_and_that_is_named() {
    in_netns(async || {
        let router = Router::new();
        router.apply(SITE);
        let (code, report) = router.explain(CALL);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!((&report["format_version"], &report["model"]["policy"][0]), (&1.into(), &"voice".into()));
        let (hop, table) = (&report["model"]["verdict"]["hop"], &report["model"]["verdict"]["table"]);
        assert_eq!((&hop["interface"], &hop["gateway"]), (&"wan0".into(), &"198.51.100.1".into()));
        assert_eq!(
            (&report["kernel"]["route"]["hop"], &report["kernel"]["route"]["table"]),
            (hop, table),
            "{report:#}"
        );
        assert_eq!((&report["kernel"]["ruleset"], &report["kernel"]["tracked"]), (&"intact".into(), &Value::Null));
        // A specific route of the main table wins, and is no error.
        ip("route add 192.0.2.0/24 via 203.0.113.1 dev wwan0");
        let (code, report) = router.explain(CALL);
        assert_eq!(code, 0, "{report:#}");
        assert!(texts(&report, "explained").contains("route of its own for 192.0.2.0/24"), "{report:#}");
        ip("route delete 192.0.2.0/24");
        // Sabotage: somebody's rule is asked first.
        ip("rule add priority 77 iif lan0 lookup 99");
        ip("route add default via 203.0.113.1 dev wwan0 table 99");
        let (code, out, err) = router.run(&["explain", CALL]);
        assert_eq!(code, 1, "{out}{err}");
        let says =
            ["Disagreement: the model says out by wan0 via 198.51.100.1", "table 99", "the IPv4 rule with priority 77"];
        assert!(says.iter().all(|part| out.contains(part)), "{out}");
        ip("rule delete priority 77");
        assert_eq!(router.explain(CALL).0, 0);
        // Without a carrier the kernel takes the next route, and so does the model.
        ip("link set wan0x down");
        let (code, report) = router.explain(CALL);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["kernel"]["route"]["hop"]["interface"], "wwan0");
    });
}

#[test]
fn a_flow_that_is_pinned_is_explained_and_a_changed_ruleset_is_an_error() {
    in_netns(async || {
        let router = Router::new();
        router.apply(SITE);
        let socket = UdpSocket::bind("192.168.10.1:4711").unwrap();
        socket.send_to(b"call", "192.0.2.9:5060").unwrap();
        let (code, report) = router.explain(OWN);
        assert_eq!(code, 0, "{report:#}");
        let tracked = &report["kernel"]["tracked"];
        assert_eq!(
            (&tracked["target"], &tracked["source_became"]),
            (&"member/critical/fiber".into(), &"198.51.100.2".into())
        );
        // The policies change; the flow stays, as its mark says.
        router.apply(&SITE.replace(
            "default: {priority: 1000, action: {failover: critical}}",
            "default: {priority: 1000, action: {path: lte}}",
        ));
        let (code, out, err) = router.run(&["explain", OWN]);
        assert_eq!(code, 0, "{out}{err}");
        for part in [
            "lte, out by wwan0",
            "Note: this flow exists and goes by fiber",
            "source address became 198.51.100.2",
            "agree",
        ] {
            assert!(out.contains(part), "{part}\n{out}");
        }
        nft("flush chain inet patronus prerouting");
        let (code, report) = router.explain(CALL);
        assert_eq!(
            (code, texts(&report, "disagreements").contains("somebody changed our ruleset")),
            (1, true),
            "{report:#}"
        );
        nft("delete table inet patronus");
        let (code, report) = router.explain(CALL);
        assert_eq!((code, texts(&report, "disagreements").contains("no ruleset of ours")), (1, true), "{report:#}");
    });
}

#[test]
fn an_earlier_moment_is_answered_from_the_records() {
    in_netns(async || {
        let router = Router::new();
        router.apply(SITE);
        let recorder = Recorder::start(&router.0.path().join("state"), Limits::default());
        let name = |text: &str| -> Name { text.parse().unwrap() };
        let mut transition = Transition {
            rule: name("critical"),
            from: Some(name("fiber")),
            to: Some(name("lte")),
            kind: TransitionKind::Failover,
            family: None,
            reason: "fiber lost 3 rounds in a row".into(),
            threshold: 50,
            alternatives: Vec::new(),
            flows: Flows::Graceful,
            at: clock::now(),
            detected_in: None,
            decided_in: None,
            switched_in: None,
            forgotten: 0,
        };
        transition.alternatives.push(Alternative {
            path: name("fiber"),
            standing: Standing::Down,
            score: 0,
            measured: "loss 100%".into(),
            lost: "it is down".into(),
        });
        let (at, detail) = (clock::wall(), serde_json::to_value(&transition).unwrap());
        let event =
            Event { id: 0, at, kind: "failover".into(), subject: "critical".into(), message: String::new(), detail };
        recorder.event(event);
        recorder.transition(TransitionRecord::of(&transition, clock::wall()));
        assert!(recorder.flush(PATIENCE));
        let (code, out, err) = router.run(&["explain", CALL, "--at", "0s"]);
        assert_eq!(code, 0, "{out}{err}");
        for part in
            ["lte, out by wwan0", "failover since", "fiber lost 3 rounds in a row", "score 0, loss 100%; it is down"]
        {
            assert!(out.contains(part), "{part}\n{out}");
        }
    });
}

#[test]
fn what_cannot_be_asked_is_said_with_what_to_type() {
    in_netns(async || {
        let router = Router::new();
        router.apply(SITE);
        for (words, code, says) in [
            (&["explain", "tcp to 1.1.1.1"][..], 64, "to which port? write 1.1.1.1:443"),
            (&["explain"], 64, "where does it go?"),
            (&["explain", "tcp", "10.1.1.1", "to", "1.1.1.1:443"], 64, "add `in INTERFACE`"),
            (&["explain", "tcp to 1.1.1.1:443", "--at", "1h"], 1, "is not known"),
        ] {
            let (got, out, err) = router.run(words);
            assert!(got == code && err.contains(says), "{words:?}: {got}\n{out}{err}");
        }
        let flags = "--protocol tcp --destination 1.1.1.1 --destination-port 443 --source 192.168.10.7";
        let words: Vec<&str> = std::iter::once("explain").chain(flags.split(' ')).collect();
        let (code, out, err) = router.run(&words);
        assert!(code == 0 && out.contains("tcp 192.168.10.7 -> 1.1.1.1:443, in by lan0"), "{out}{err}");
    });
}
