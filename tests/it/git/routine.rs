//! What a team does with a router that follows its repository, from the first commit to a boot without network.

use std::{fs, net::TcpListener, time::Instant};

use nix::sys::signal::Signal;
use patronus::{engine::status::Status, lab::Node};
use serde_json::{Value, json};

use super::daemon::{in_force, lab, site};
use crate::{
    reconcile::{all_up, ours},
    support::{
        daemon::{Daemon, Repository, name, sh},
        forge::{Server, Team},
        statuses::Forge,
    },
};

const TOKEN: &str = "t0p-s3cret";

/// The site with eight more policies.
fn many(version: &str) -> String {
    let policy = |n| {
        format!("    more{n}: {{priority: 6{n}, match: {{destination: [10.78.{n}.0/24]}}, action: {{path: lte}}}}\n")
    };
    let more: Vec<String> = (1..=8).map(policy).collect();
    site(version).replace("  policies:\n", &format!("  policies:\n{}", more.concat()))
}

/// Waits until the forge has heard this of a commit.
fn told(forge: &Forge, commit: &str, state: &str, said: &str) {
    let what = format!("{commit} {state} {said}");
    let (_, _, text) = forge.wait(&what, |(of, is, text)| of == commit && is == state && text.contains(said));
    assert!(text.chars().count() <= 140, "{text}");
}

#[test]
fn what_people_do_with_commits_is_obeyed_written_down_and_told_to_the_forge() {
    let (team, lab) = (Team::new(), lab());
    let listen = || {
        let bound = lab.thread_in(&Node::Router(name("berlin")), || TcpListener::bind(("127.0.0.1", 8099)));
        bound.join().unwrap().unwrap().unwrap()
    };
    let forge = Forge::new(listen(), &[]);
    fs::write(team.path("token"), format!("{TOKEN}\n")).unwrap();
    team.write("site.yaml", &site("one"));
    let one = team.push("one");
    let settings = json!({
        "source": {"git": {"url": format!("file://{}", team.path("network.git").display()), "interval": "1s"}},
        "report": {
            "forge": "forgejo", "api": "http://127.0.0.1:8099/api/v1", "project": "team/network",
            "token": {"file": team.path("token")},
        },
    });
    let daemon = Daemon::start_with(&lab, &Repository::new(&[]), "berlin", settings);
    in_force(&daemon, &one, "one");
    told(&forge, &one, "success", "in force");
    let first = &forge.posts()[0];
    assert_eq!(first.line, format!("POST /api/v1/repos/team/network/statuses/{one}"));
    assert_eq!(first.body["context"], "patronus/berlin");

    team.write("site.yaml", &site("two").replace("protocol: udp", "protocol: upd"));
    let wrong = team.push("wrong");
    told(&forge, &wrong, "failure", "invalid: site.yaml:");

    team.write("site.yaml", &many("two"));
    let two = team.push("two");
    let generation = in_force(&daemon, &two, "two").generation;
    told(&forge, &two, "success", "in force");
    let four = large(&daemon, &team, &forge);
    went_back(&daemon, &forge, generation, (&two, &four));

    team.write("site.yaml", &site("five"));
    let five = team.push("five\n\nPatronus-Allow-Large: yes");
    in_force(&daemon, &five, "five");
    forced(&daemon, &team, &forge, &one);

    // The forge is away, and back.
    drop(forge);
    team.work(&format!("git reset -q --hard {five}"));
    team.write("site.yaml", &site("six"));
    let six = team.push("six");
    in_force(&daemon, &six, "six");
    let failed = "patronus_forge_reports_total{site=\"berlin\",result=\"failed\"}";
    daemon.wait("a report that failed", |s| s.totals.reports.contains_key("failed"));
    assert!(daemon.metrics().get(failed).is_some_and(|n| *n > 0.0), "{:?}", daemon.metrics());
    let forge = Forge::new(listen(), &[]);
    told(&forge, &six, "success", "in force");
    audited(&daemon);
    assert!(daemon.log().contains("cannot report to the forge") && !daemon.log().contains(TOKEN));
}

/// More than half of the policies go away: refused, until a commit says that it is meant.
fn large(daemon: &Daemon, team: &Team, forge: &Forge) -> String {
    team.write("site.yaml", &site("four"));
    let three = team.push("fewer policies");
    told(forge, &three, "failure", "not applied: 8 of 15 objects would be deleted");
    assert!(daemon.status().policies.len() > 8);
    let four = team.push("fewer policies, and that is meant\n\nPatronus-Allow-Large: yes");
    assert_eq!(in_force(daemon, &four, "four").policies.len(), 4);
    told(forge, &four, "success", "in force");
    four
}

/// An older generation comes back; the newest commit is not tried again.
fn went_back(daemon: &Daemon, forge: &Forge, generation: u64, (old, new): (&str, &str)) {
    let (code, said) =
        daemon.tells(&["rollback", "--to", &generation.to_string(), "--yes", "--confirm-timeout", "10m"]);
    assert!(code == Some(0) && said.contains(&old[..7]), "{code:?} {said}");
    daemon.wait("the older generation on trial", |s| s.unconfirmed.as_ref().is_some_and(|t| t.by_hand));
    let (code, said) = daemon.tells(&["confirm"]);
    assert_eq!(code, Some(0), "{said}");
    let status = in_force(daemon, old, "two");
    assert!(status.source.quarantine.iter().any(|q| q.revision == new), "{:?}", status.source);
    assert_eq!(status.source.desired.as_deref(), Some(new));
    told(forge, new, "failure", "went back to generation");
    told(forge, old, "success", "in force");
}

/// The branch is set back: held until somebody says that it is meant.
fn forced(daemon: &Daemon, team: &Team, forge: &Forge, one: &str) {
    team.work(&format!("git push -q -f origin {one}:main"));
    told(forge, one, "pending", "held: the branch was set back");
    let (code, said) = daemon.tells(&["source", "accept", &one[..12]]);
    assert!(code == Some(0) && said.contains("is in force"), "{code:?} {said}");
    in_force(daemon, one, "one");
    told(forge, one, "success", "in force");
}

/// Each command has a row with who gave it.
fn audited(daemon: &Daemon) {
    daemon.wait("both paths", all_up);
    for (words, well) in [
        (&["suspend", "--reason", "a wedding"][..], true),
        (&["resume"], true),
        (&["source", "retry"], true),
        (&["failover", "critical", "--to", "lte", "--for", "1h", "--reason", "a test"], true),
        (&["failback", "critical"], true),
        (&["drain", "lte"], true),
        (&["drain", "fiber"], false),
        (&["undrain", "lte"], true),
    ] {
        let (code, said) = daemon.tells(words);
        assert_eq!(code == Some(0), well, "{words:?}: {code:?} {said}");
    }
    let rows: Value = serde_json::from_str(&daemon.says(&["history", "--audit", "--output", "json"])).unwrap();
    let rows = rows["rows"].as_array().unwrap();
    let user = daemon.sh("id -un");
    for (what, detail) in [
        ("source accept", ""),
        ("rollback", "to generation"),
        ("suspend", "a wedding"),
        ("resume", "resumed"),
        ("source retry", ""),
        ("failover", "pinned to lte"),
        ("failback", "critical"),
        ("drain", "lte is drained"),
        ("drain", "refused: fiber is the last path"),
        ("undrain", "no longer drained"),
    ] {
        let found = rows.iter().find(|row| {
            row["what"] == what && row["detail"].as_str().unwrap().contains(detail) && row["who"]["kind"] == "person"
        });
        let found = found.unwrap_or_else(|| panic!("no row `{what}` with `{detail}`: {rows:#?}"));
        assert_eq!((&found["who"]["uid"], &found["who"]["user"]), (&json!(0), &json!(user.trim())));
    }
    let shown = daemon.says(&["history", "--audit"]);
    assert!(shown.contains("a wedding") && shown.contains("source accept"), "{shown}");
}

/// Another network namespace is to the journal what another boot is: a kernel without anything of ours.
#[test]
fn a_boot_without_network_works_with_what_was_in_force_and_is_whole_when_a_link_comes_up() {
    let (team, before, after) = (Team::new(), lab(), lab());
    let router = Node::Router(name("berlin"));
    team.write("site.yaml", &site("one"));
    let one = team.push("one");
    let source = json!({
        "url": format!("ssh://root@9.9.9.9:2222{}", team.path("network.git").display()),
        "interval": "1s", "timeout": "5s", "credentials": {"file": team.path("router")},
        "knownHosts": team.path("known_hosts"),
    });
    let offer = |lab| Server::on(lab, &Node::Internet, team.sshd_command("9.9.9.9", 2222), ("9.9.9.9", 2222));
    let server = offer(&before);
    let settings = json!({"source": {"git": source}});
    let mut old = Daemon::start_with(&before, &Repository::new(&[]), "berlin", settings.clone());
    in_force(&old, &one, "one");
    old.wait("both paths", all_up);
    let kernel = ours(&old);
    old.kill();
    drop(server);

    // What a DHCP client would have set up, and will again.
    let defaults = sh(&after, &router, "ip -4 route show default");
    sh(&after, &router, "ip link set wan0 down; ip link set wwan0 down");
    let mut settings = settings;
    settings["stateDir"] = json!(old.state_dir());
    let mut daemon = Daemon::stopped(&after, &Repository::new(&[]), "berlin");
    daemon.set(settings);
    daemon.variable("HOME", team.path("home"));
    daemon.settle();
    let lost =
        |s: &Status| s.source.trouble.as_ref().is_some_and(|t| matches!(t.reason.as_str(), "unreachable" | "timeout"));
    let status = daemon.wait("a remote that cannot be reached", lost);
    assert!(status.policies.iter().any(|p| p.name.as_str() == "one"), "{:?}", status.policies);
    assert!(daemon.sh("nft list table inet patronus").contains("policy_one"), "it works with what it had");

    let _server = offer(&after);
    let back: Vec<String> = defaults.lines().map(|route| format!("ip -4 route replace {route}\n")).collect();
    sh(&after, &router, &format!("ip link set wan0 up; ip link set wwan0 up\n{}", back.concat()));
    let up = Instant::now();
    daemon.wait("the kernel to be whole", |_| ours(&daemon) == kernel);
    eprintln!("whole {} ms after the links came up", up.elapsed().as_millis());
    let status = daemon.wait("the remote", |s| s.source.trouble.is_none());
    assert_eq!(status.source.applied.as_ref(), Some(&one));
    broken_configuration(&daemon, &team, &one, &old);
}

/// libgit2 reads the Git configuration of the machine, and nothing can keep it from that.
fn broken_configuration(daemon: &Daemon, team: &Team, one: &str, old: &Daemon) {
    fs::create_dir_all(team.path("home")).unwrap();
    fs::write(team.path("home/.gitconfig"), "[broken\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    let named = |s: &Status| {
        s.source.trouble.as_ref().is_some_and(|t| t.reason == "settings" && t.message.contains("home/.gitconfig"))
    };
    daemon.wait("the file to be named", named);
    team.sh(&format!("git --git-dir {}/git cat-file -e {one}", old.state_dir().display()));
    fs::remove_file(team.path("home/.gitconfig")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the mended file", |s| s.source.trouble.is_none());
}
