//! Every way in which a remote can fail has its own reason, says what to do, and leaves what was fetched before.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use patronus::source::git::{Follower, Reason, Reference, Secret, Spec, Way};

use super::spec;
use crate::support::{
    forge::{Team, authority},
    netns::in_netns,
};

/// A fault: its name, the source that meets it, the reason, and words of the sentence.
type Fault<'a> = (&'a str, Spec, Reason, &'a [&'a str]);

fn http(team: &Team, path: &str) -> Spec {
    Spec { timeout: Duration::from_secs(1), ..spec(team, &format!("https://127.0.0.1/{path}")) }
}

fn ssh(team: &Team) -> Spec {
    spec(team, &format!("ssh://root@127.0.0.1:2222{}", team.path("network.git").display()))
}

#[test]
fn every_fault_of_a_remote_has_its_reason_and_leaves_what_was_there() {
    in_netns(|| async {
        let team = Team::new();
        team.write("site.yaml", "good");
        let good = team.push("good");
        team.sh("git init -q --bare -b main empty.git; echo '127.0.0.1 ssh-rsa AAAA' > others");
        fs::write(team.path("token"), "wr0ng").unwrap();
        let _https = team.https("127.0.0.1", &[(443, "good"), (1, "expired"), (2, "wrong-name")]);
        let _sshd = team.sshd(2222);
        let state = tempfile::tempdir().unwrap();
        let first = Follower::new(http(&team, "git/network.git"), state.path());
        let before = first.fetch(vec![Way::default()], None).await.unwrap().snapshot;
        assert_eq!(before.revision, good);
        // There is something to fetch in each of the cases.
        team.write("large.yaml", &format!("# {}\n", team.sh("head -c 60000 /dev/urandom | base64 -w0")));
        team.push("more");
        let mut seen = Vec::new();
        // The last of them brings everything that there is, and the others would have nothing to fetch after it.
        let commit = Spec { reference: Reference::Commit("1".repeat(40)), ..http(&team, "git/network.git") };
        let last = ("a commit that is gone", commit, Reason::NoSuchReference, &["commit 1111"][..]);
        for (name, spec, reason, words) in web(&team).into_iter().chain(shell(&team)).chain(tls(&team)).chain([last]) {
            let begin = std::time::Instant::now();
            let result = Follower::new(spec, state.path()).fetch(vec![Way::default()], None).await;
            let Err(error) = result else { panic!("{name}: it was fetched") };
            assert_eq!(error.reason, reason, "{name}: {error}");
            for word in words {
                assert!(error.to_string().contains(word), "{name}: `{word}` is not in: {error}");
            }
            assert!(!error.remedy.is_empty());
            for secret in ["wr0ng", "s3cret", "user:pw", "token=x", "PRIVATE KEY"] {
                assert!(!error.to_string().contains(secret), "{name}: {error}");
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{name} hung");
            assert_eq!(first.stored(None).await.as_ref(), Ok(&before), "{name}");
            seen.push(name);
        }
        assert!(seen.len() >= 18, "{seen:?}");
        let after = first.fetch(vec![Way::default()], Some(good)).await.unwrap().snapshot;
        assert_eq!(after.files.len(), 2, "and then it goes on");
    });
}

fn web(team: &Team) -> Vec<Fault<'_>> {
    let at = |path: &str| http(team, path);
    let wrong = Spec { secret: Some(Secret::File(team.path("token"))), ..at("private/network.git") };
    let lost = Spec { secret: Some(Secret::File("/nonexistent/token".into())), ..at("private/network.git") };
    let branch = Spec { reference: Reference::Branch("gone".into()), ..at("git/network.git") };
    vec![
        ("401 without credentials", at("private/network.git"), Reason::Authentication, &["401", "give the source"]),
        ("401 with a wrong token", wrong, Reason::Authentication, &["401", "renew the token"]),
        ("a token that is gone", lost, Reason::Settings, &["/nonexistent/token cannot be read"]),
        ("403", at("forbidden/network.git"), Reason::Forbidden, &["403"]),
        ("404", at("gone/network.git"), Reason::NotFound, &["404", "check the address"]),
        ("404 after the first answer", at("gone-later/network.git"), Reason::NotFound, &["404"]),
        ("503", at("busy/network.git"), Reason::Server, &["503"]),
        (
            "a redirect",
            at("moved/network.git"),
            Reason::Redirect,
            &["301", "127.0.0.1:443/git/network.git", "do not go"],
        ),
        ("a downgrade", at("downgrade/network.git"), Reason::Redirect, &["302", "http://127.0.0.1/git"]),
        ("a branch that is gone", branch, Reason::NoSuchReference, &["branch gone", "git ls-remote"]),
        ("an empty repository", at("git/empty.git"), Reason::Empty, &["is empty"]),
        ("a portal", at("login/network.git"), Reason::Corrupt, &["no Git"]),
        ("garbage", at("garbage/network.git"), Reason::Corrupt, &["no Git"]),
        ("a truncated pack", at("truncated/network.git"), Reason::Corrupt, &["damaged"]),
        ("a pack with a wrong byte", at("flipped/network.git"), Reason::Corrupt, &["damaged"]),
        ("a connection that is cut", at("cut/network.git"), Reason::Disconnected, &["too early"]),
        ("a server that hangs in the pack", at("hanging/network.git"), Reason::Timeout, &["receiving", "within 1 s"]),
        ("a server that says nothing", at("silent/network.git"), Reason::Timeout, &["waiting for the answer"]),
        ("a server that drips", at("slow/network.git"), Reason::Timeout, &["receiving"]),
    ]
}

fn tls(team: &Team) -> Vec<Fault<'_>> {
    let at = |port: u16| spec(team, &format!("https://127.0.0.1:{port}/git/network.git"));
    let other = Spec { ca: Some(authority("other-ca")), ..at(443) };
    let none = Spec { ca: Some("/nonexistent/ca.pem".into()), ..at(443) };
    let name = spec(team, "https://git.invalid/network.git");
    vec![
        ("a certificate of another authority", other, Reason::Tls, &["no authority that is trusted", "ca: FILE"]),
        ("an authority that is not there", none, Reason::Settings, &["/nonexistent/ca.pem cannot be used"]),
        ("a certificate that has expired", at(1), Reason::Tls, &["it has expired at 2021", "timedatectl"]),
        ("a certificate for another name", at(2), Reason::Tls, &["for another name"]),
        ("a port that speaks no TLS", at(2222), Reason::Tls, &["another service"]),
        (
            "a port that nobody listens on",
            at(3),
            Reason::Unreachable,
            &["cannot connect to 127.0.0.1:3 over the usual way"],
        ),
        ("a network without a route", spec(team, "https://192.0.2.1/n.git"), Reason::Unreachable, &["192.0.2.1:443"]),
        ("a name without an address", name, Reason::Dns, &["git.invalid has no address", "/etc/resolv.conf"]),
    ]
}

fn shell(team: &Team) -> Vec<Fault<'_>> {
    let changed = team.path("changed");
    fs::write(&changed, fs::read_to_string(team.path("known_hosts")).unwrap()).unwrap();
    team.sh("printf '[127.0.0.1]:2222 ' > changed; cat eve.pub >> changed; touch unknown");
    let known = |file: &str| Spec { known_hosts: Some(team.path(file)), ..ssh(team) };
    let stranger = Spec { secret: Some(Secret::File(team.path("stranger"))), ..ssh(team) };
    let token = Spec { secret: Some(Secret::File(team.path("token"))), ..ssh(team) };
    let absent = spec(team, "ssh://root@127.0.0.1:2222/nonexistent.git");
    let branch = Spec { reference: Reference::Branch("gone".into()), ..ssh(team) };
    vec![
        ("a host key that has changed", known("changed"), Reason::HostKey, &["has changed", "changed:1", "SHA256:"]),
        (
            "a host that is unknown",
            known("unknown"),
            Reason::HostKey,
            &["[127.0.0.1]:2222 is not in", "ssh-keyscan -p 2222"],
        ),
        ("host keys that are not there", known("nowhere"), Reason::Settings, &["nowhere cannot be read"]),
        ("a key that may not log in", stranger, Reason::Authentication, &["does not accept the key", "deploy key"]),
        ("a key that is none", token, Reason::Settings, &["private key", "cannot be used"]),
        ("a repository that is not there, by ssh", absent, Reason::NotFound, &["is no repository"]),
        ("a branch that is gone, by ssh", branch, Reason::NoSuchReference, &["branch gone"]),
    ]
}

#[tokio::test]
async fn a_directory_of_this_machine_can_fail_too() {
    let team = Team::new();
    team.write("site.yaml", "good");
    team.push("good");
    let state = tempfile::tempdir().unwrap();
    let get = |spec: Spec, state: &Path| {
        let follower = Follower::new(spec, state);
        async move { follower.fetch(vec![Way::default()], None).await.unwrap_err() }
    };
    let error = get(spec(&team, "file:///nonexistent.git"), state.path()).await;
    assert_eq!(error.reason, Reason::NotFound, "{error}");
    let file = state.path().join("file");
    fs::write(&file, "").unwrap();
    let error = get(super::local(&team), &file).await;
    assert_eq!(error.reason, Reason::Storage, "{error}");
    assert!(error.to_string().contains("df -h"), "{error}");
    // A damaged object is not read, and the repository is not lost for good.
    let follower = Follower::new(super::local(&team), state.path());
    follower.fetch(vec![Way::default()], None).await.unwrap();
    team.sh(&format!("rm -rf {0}/git/objects/pack/*", state.path().display()));
    let error = follower.stored(None).await.unwrap_err();
    assert!(matches!(error.reason, Reason::Corrupt | Reason::Empty), "{error}");
    follower.fetch(vec![Way::default()], None).await.unwrap();
    let mode = fs::metadata(state.path().join("git")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "for our user only");
    team.sh("chown -R 12345 network.git");
    let error = get(super::local(&team), state.path()).await;
    assert!(error.reason == Reason::Forbidden && error.to_string().contains("another user"), "{error}");
}

#[test]
fn what_is_written_to_a_full_disk_is_an_error_of_this_machine() {
    let team = Team::new();
    team.write("site.yaml", &team.sh("head -c 300000 /dev/urandom | base64 -w0"));
    team.push("large");
    let state = team.path("full");
    fs::create_dir(&state).unwrap();
    let inside = state.clone();
    let result = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let (none, size) = (None::<&str>, Some("size=128k"));
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE, none)
            .unwrap();
        nix::mount::mount(Some("tmpfs"), &inside, Some("tmpfs"), nix::mount::MsFlags::empty(), size).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Follower::new(super::local(&team), &inside).fetch(vec![Way::default()], None))
    });
    let error = result.join().unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::Storage, "{error}");
}
