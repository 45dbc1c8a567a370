//! A daemon that follows a repository: the kernel has what it should, whatever is pushed and however the remote fails.

use std::{fs, sync::Arc};

use nix::sys::signal::Signal;
use patronus::{
    engine::status::Status,
    lab::{Lab, Node},
};
use serde_json::{Value, json};

use crate::{
    reconcile::{SITE, all_up, ours},
    support::{
        daemon::{Daemon, Repository, name, sh},
        forge::{Server, Team, authority},
        quiet,
    },
};

/// The site with one more policy, so that each version can be told by its name.
pub fn site(version: &str) -> String {
    let line =
        format!("    {version}: {{priority: 50, match: {{destination: [10.77.0.0/16]}}, action: {{path: lte}}}}\n");
    SITE.replace("  policies:\n", &format!("  policies:\n{line}"))
}

pub fn lab() -> Arc<Lab> {
    Repository::new(&[("site.yaml", SITE)]).lab()
}

fn start(lab: &Arc<Lab>, source: &Value) -> Daemon {
    let nothing = Repository::new(&[]);
    Daemon::start_with(lab, &nothing, "berlin", json!({"source": {"git": source}}))
}

pub fn in_force(daemon: &Daemon, commit: &str, version: &str) -> Status {
    daemon.wait(version, |s| {
        s.source.applied.as_deref() == Some(commit) && s.policies.iter().any(|p| p.name.as_str() == version)
    })
}

/// Says that the source was read without success for this reason, in the status, in an event and in the metrics.
fn told(daemon: &Daemon, reason: &str, said: &str) {
    let status = daemon.wait(&format!("{reason}: {said}"), |s| {
        s.source.trouble.as_ref().is_some_and(|t| t.reason == reason && t.message.contains(said))
    });
    let message = status.source.trouble.unwrap().message;
    daemon.wait_event("source", |e| e.message.starts_with(&message) && e.message.contains("stays in force"));
    let series = format!("patronus_source_errors_total{{site=\"berlin\",reason=\"{reason}\"}}");
    assert!(daemon.metrics().get(&series).is_some_and(|n| *n > 0.0), "{series} is not in {:?}", daemon.metrics());
}

#[test]
fn the_kernel_follows_only_what_it_should() {
    let team = Team::new();
    let lab = lab();
    team.write("sites/site.yaml", &site("one"));
    let one = team.push_signed("one", "ada");
    let url = format!("file://{}", team.path("network.git").display());
    let verify = json!({"mode": "head", "allowedSigners": team.path("signers")});
    let mut daemon = start(&lab, &json!({"url": url, "path": "sites", "interval": "1s", "verify": verify}));
    let status = in_force(&daemon, &one, "one");
    assert_eq!(status.source.location, format!("{url}, branch main"));

    team.write("sites/site.yaml", &site("two"));
    let two = team.push_signed("two", "ada");
    in_force(&daemon, &two, "two");
    let kernel = ours(&daemon);
    let same = |what: &str| assert_eq!(ours(&daemon), kernel, "{what}");

    team.write("sites/site.yaml", &site("three").replace("protocol: udp", "protocol: upd"));
    team.push_signed("invalid", "ada");
    let status = daemon.wait("the errors", |s| !s.source.errors.is_empty());
    assert!(status.source.errors[0].starts_with("site.yaml:"), "{:?}", status.source.errors);
    same("invalid");
    let held =
        |words: &str| daemon.wait(words, |s| s.source.held.as_ref().is_some_and(|h| h.to_string().contains(words)));
    team.write("sites/site.yaml", &site("three"));
    team.push("unsigned");
    held("signed");
    same("unsigned");
    team.push_signed("by eve", "eve");
    held("not in the file of allowed signers");
    same("signed by the wrong key");
    let three = team.push_signed("three", "ada");
    in_force(&daemon, &three, "three");

    team.work(&format!("git push -q -f origin {one}:main"));
    let before = ours(&daemon);
    let status = held("set back");
    assert_eq!(status.source.applied.as_deref(), Some(three.as_str()));
    assert_eq!(ours(&daemon), before, "forced back");
    team.work("git push -q -f origin HEAD:main");
    daemon.wait("the branch to be where it was", |s| s.source.held.is_none());

    refused_trees(&daemon, &team);
    assert_eq!(ours(&daemon), before, "no tree of these");

    // The remote goes away, and with it the daemon; it starts from what it had.
    team.work("git push -q -f origin HEAD:main");
    daemon.signal(Signal::SIGHUP);
    daemon.wait("a good tree again", |s| s.source.trouble.is_none());
    fs::rename(team.path("network.git"), team.path("away.git")).unwrap();
    told(&daemon, "not_found", "network.git");
    daemon.terminate();
    daemon.settle();
    assert_eq!(ours(&daemon), before, "without a remote");
    told(&daemon, "not_found", "network.git");
    fs::rename(team.path("away.git"), team.path("network.git")).unwrap();
    team.write("sites/site.yaml", &site("four"));
    let four = team.push_signed("four", "ada");
    daemon.signal(Signal::SIGHUP);
    in_force(&daemon, &four, "four");
    let (code, plan) = daemon.tells(&["plan", "--detailed-exitcode"]);
    assert_eq!(code, Some(0), "the plan reads what was fetched, and nothing is to do: {plan}");
}

fn refused_trees(daemon: &Daemon, team: &Team) {
    let file = team.work("git hash-object -w sites/site.yaml");
    let tree = |lines: &str| {
        fs::write(team.path("lines"), lines).unwrap();
        team.work("git mktree --missing < ../lines")
    };
    let good = format!("100644 blob {file}\tsite.yaml\n");
    let mut bomb = tree(&good);
    for _ in 0..10 {
        let lines: Vec<String> = (0..10).map(|n| format!("040000 tree {bomb}\td{n}\n")).collect();
        bomb = tree(&lines.concat());
    }
    for (reason, said, sites) in [
        ("refused", "link.yaml is a symbolic link", tree(&format!("120000 blob {file}\tlink.yaml\n{good}"))),
        ("refused", "sub is a submodule", tree(&format!("{good}160000 commit {}\tsub\n", "1".repeat(40)))),
        ("refused", "run.sh is executable", tree(&format!("100755 blob {file}\trun.sh\n{good}"))),
        ("limit", "at most 1", bomb),
        ("empty", "no *.yaml", tree("")),
    ] {
        let root = tree(&format!("040000 tree {sites}\tsites\n"));
        let key = team.path("ada");
        let commit = team.work(&format!(
            "git -c gpg.format=ssh -c user.signingkey={} commit-tree -S -p HEAD -m odd {root}",
            key.display()
        ));
        team.work(&format!("git push -q -f origin {commit}:main"));
        daemon.signal(Signal::SIGHUP);
        told(daemon, reason, said);
    }
}

#[test]
fn a_remote_that_fails_in_any_way_leaves_the_kernel_as_it_is() {
    let team = Team::new();
    let lab = lab();
    let router = Node::Router(name("berlin"));
    let behave = |how: &str| {
        fs::write(team.path("new"), how).unwrap();
        fs::rename(team.path("new"), team.path("behaviour")).unwrap();
    };
    behave("git");
    team.write("site.yaml", &site("one"));
    let one = team.push("one");
    let serve = || Server::on(&lab, &router, team.https_command("127.0.0.1", &[(443, "good")]), ("127.0.0.1", 443));
    let server = serve();
    let source =
        json!({"url": "https://127.0.0.1/told/network.git", "interval": "1s", "timeout": "1s", "ca": authority("ca")});
    let daemon = start(&lab, &source);
    in_force(&daemon, &one, "one");
    let kernel = ours(&daemon);
    let look = |what: &str| {
        daemon.signal(Signal::SIGHUP);
        assert_eq!(ours(&daemon), kernel, "{what}");
    };
    team.write("large.yaml", &format!("# {}\n", team.sh("head -c 60000 /dev/urandom | base64 -w0")));
    let two = team.push("two");
    let mut seen = 0;
    for (how, reason, said) in [
        ("private", "authentication", "401"),
        ("forbidden", "forbidden", "403"),
        ("gone", "not_found", "404"),
        ("busy", "server", "503"),
        ("moved", "redirect", "we do not go"),
        ("downgrade", "redirect", "http://127.0.0.1"),
        ("login", "corrupt", "no Git"),
        ("garbage", "corrupt", "no Git"),
        ("truncated", "corrupt", "too early"),
        ("flipped", "corrupt", "damaged"),
        ("cut", "disconnected", "too early"),
        ("hanging", "timeout", "receiving"),
        ("silent", "timeout", "waiting for the answer"),
        ("slow", "timeout", "receiving"),
        ("expired", "tls", "has expired"),
        ("wrong-name", "tls", "another name"),
    ] {
        behave(how);
        look(how);
        told(&daemon, reason, said);
        look(how);
        seen += 1;
    }
    drop(server);
    look("remote down");
    told(&daemon, "unreachable", "cannot connect to 127.0.0.1:443");
    behave("git");
    let _server = serve();
    team.sh("mv network.git hidden.git; git init -q --bare -b main network.git");
    look("empty repository");
    told(&daemon, "empty", "is empty");
    team.sh("rm -rf network.git; mv hidden.git network.git");
    team.work("git push -q origin HEAD:other && git -C ../network.git symbolic-ref HEAD refs/heads/other && git push -q origin :main");
    look("branch gone");
    told(&daemon, "no_such_reference", "has no branch main");
    assert!(seen + 3 >= 18);
    assert_eq!(daemon.status().source.applied.as_deref(), Some(one.as_str()));
    let status = daemon.says(&["status"]);
    assert!(status.contains("has no branch main") && status.contains("git ls-remote"), "{status}");
    team.work("git push -q origin HEAD:main");
    daemon.signal(Signal::SIGHUP);
    in_force(&daemon, &two, "one");
}

/// The counter stands in the LTE provider, so it is the kernel that says which way the fetch went.
#[test]
fn a_fetch_goes_over_another_path_when_the_main_table_s_is_dead() {
    let _quiet = quiet();
    let team = Team::new();
    let lab = lab();
    // No policy takes the router's own traffic, so it goes as the main table says.
    let site = |version: &str| {
        let kept: Vec<String> = site(version).lines().filter(|l| !l.contains("default:")).map(str::to_owned).collect();
        kept.join("\n") + "\n"
    };
    team.write("site.yaml", &site("one"));
    let one = team.push("one");
    let _sshd = Server::on(&lab, &Node::Internet, team.sshd_command("9.9.9.9", 2222), ("9.9.9.9", 2222));
    let count = "nft add table inet count; nft add chain inet count c '{type filter hook forward priority 0;}'; \
                 nft add rule inet count c tcp dport 2222 counter";
    let provider = |endpoint: &str| Node::Provider(name("berlin"), name(endpoint));
    let packets = |endpoint: &str| {
        let shown =
            sh(&lab, &provider(endpoint), "nft list table inet count | grep -o 'packets [0-9]*' | cut -d' ' -f2");
        shown.trim().parse::<u64>().unwrap()
    };
    for endpoint in ["fiber", "lte"] {
        sh(&lab, &provider(endpoint), count);
    }
    let source = json!({
        "url": format!("ssh://root@9.9.9.9:2222{}", team.path("network.git").display()),
        "interval": "1s", "timeout": "10s", "credentials": {"file": team.path("router")},
        "knownHosts": team.path("known_hosts"),
    });
    let daemon = start(&lab, &source);
    let status = in_force(&daemon, &one, "one");
    assert_eq!(status.source.via.as_deref(), Some("the usual way"));
    daemon.wait("probes", all_up);
    assert!(packets("fiber") > 0 && packets("lte") == 0, "the main table leads by the fibre");

    sh(&lab, &provider("fiber"), "nft add chain inet count cut '{type filter hook forward priority 10; policy drop;}'");
    team.write("site.yaml", &site("two"));
    let two = team.push("two");
    let status = in_force(&daemon, &two, "two");
    assert_eq!(status.source.via.as_deref(), Some("lte"), "{:?}", status.source);
    assert!(packets("lte") > 0);
    assert!(daemon.says(&["status"]).contains("over lte"), "{}", daemon.says(&["status"]));
}
