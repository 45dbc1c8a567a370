//! A Git repository as the source: real git pushes, real servers offer, and every way in which that goes wrong.

mod daemon;
mod faults;
mod report;
mod routine;
mod trees;

use std::{path::Path, time::Duration};

use patronus::{
    config::Snapshot,
    source::{
        commit::{Lineage, Signature},
        git::{Address, Follower, GitError, Reference, Scheme, Secret, Spec, Verify, Way},
    },
};

use crate::support::{
    forge::{Team, authority},
    netns::in_netns,
};

/// What is followed in most of the tests.
fn spec(team: &Team, url: &str) -> Spec {
    let url = Address::parse(url).unwrap();
    let (ssh, https) = (url.scheme == Scheme::Ssh, url.scheme == Scheme::Https);
    Spec {
        reference: Reference::Branch("main".into()),
        path: String::new(),
        interval: Duration::from_secs(60),
        jitter: "0%".parse().unwrap(),
        timeout: Duration::from_secs(20),
        username: None,
        secret: ssh.then(|| Secret::File(team.path("router"))),
        known_hosts: ssh.then(|| team.path("known_hosts")),
        ca: https.then(|| authority("ca")),
        verify: Verify::Off,
        url,
    }
}

fn local(team: &Team) -> Spec {
    spec(team, &format!("file://{}", team.path("network.git").display()))
}

/// Fetches and reads, with what was accepted before.
async fn fetch(spec: Spec, state: &Path, accepted: Option<&str>) -> Result<Snapshot, GitError> {
    let ways = vec![Way::default()];
    Follower::new(spec, state).fetch(ways, accepted.map(str::to_owned)).await.map(|fetched| fetched.snapshot)
}

fn lineage(snapshot: &Snapshot) -> Lineage {
    snapshot.commit.as_ref().unwrap().lineage
}

fn text<'a>(snapshot: &'a Snapshot, file: &str) -> &'a str {
    std::str::from_utf8(&snapshot.files[file]).unwrap()
}

#[test]
fn what_is_pushed_is_read_over_file_ssh_and_https() {
    in_netns(|| async {
        let team = Team::new();
        let _sshd = team.sshd(2222);
        let _https = team.https("127.0.0.1", &[(443, "good")]);
        let repository = team.path("network.git").display().to_string();
        let home = format!("127.0.0.1:{}", repository.trim_start_matches('/'));
        assert!(Address::parse(&home).unwrap().path.starts_with("tmp"), "a path without a slash is relative");
        for (name, url) in [
            ("file", format!("file://{repository}")),
            ("ssh", format!("ssh://root@127.0.0.1:2222{repository}")),
            ("https", "https://127.0.0.1/git/network.git".to_owned()),
            ("https that closes", "https://localhost/closing/network.git".to_owned()),
        ] {
            team.work("git checkout -q --orphan fresh && (git branch -q -D main 2>/dev/null || true) && git branch -q -m main");
            team.write("site.yaml", "first");
            team.push("the beginning");
            team.write("site.yaml", "old");
            team.push("an old one");
            team.write("site.yaml", "one");
            let one = team.push("one\n\nSome text.\n\nPatronus-Allow-Large: yes\nSigned-off-by: Ada");
            let state = tempfile::tempdir().unwrap();
            let get = |accepted: Option<String>| {
                let (spec, state) = (spec(&team, &url), state.path().to_owned());
                async move { fetch(spec, &state, accepted.as_deref()).await.unwrap_or_else(|e| panic!("{name}: {e}")) }
            };
            let snapshot = get(None).await;
            let commit = snapshot.commit.clone().unwrap();
            assert_eq!((&snapshot.revision, text(&snapshot, "site.yaml")), (&one, "one"), "{name}");
            assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("one", "Ada <ada@example.net>"));
            assert_eq!((commit.lineage, &commit.signature), (Lineage::First, &Signature::Off));
            assert_eq!(commit.trailer("patronus-allow-large"), Some("yes"));
            let whole = team.sh(&format!("git --git-dir {}/git rev-list --count {one}", state.path().display()));
            assert_eq!(whole, if name == "file" { "3" } else { "1" }, "{name}: shallow where it can be");

            assert_eq!(lineage(&get(Some(one.clone())).await), Lineage::Same, "{name}");
            team.write("site.yaml", "two");
            team.push("two");
            team.write("more/other.yml", "three");
            let three = team.push("three");
            let snapshot = get(Some(one.clone())).await;
            assert_eq!((snapshot.revision.as_str(), lineage(&snapshot)), (three.as_str(), Lineage::Descends), "{name}");
            assert_eq!(text(&snapshot, "more/other.yml"), "three");

            team.work("git reset -q --hard HEAD~3 && git push -q -f origin HEAD:main");
            let snapshot = get(Some(three.clone())).await;
            assert_eq!((text(&snapshot, "site.yaml"), lineage(&snapshot)), ("old", Lineage::Behind), "{name}");
            team.write("site.yaml", "anew");
            team.push("written anew");
            let snapshot = get(Some(three.clone())).await;
            assert_eq!((text(&snapshot, "site.yaml"), lineage(&snapshot)), ("anew", Lineage::Diverged), "{name}");
            // A router that has lost its repository still knows what it has accepted.
            std::fs::remove_dir_all(state.path().join("git")).unwrap();
            team.work(&format!("git reset -q --hard {three} && git push -q -f origin HEAD:main"));
            assert_eq!(lineage(&get(Some(one.clone())).await), Lineage::Descends, "{name}");
        }
    });
}

#[test]
fn branches_tags_and_commits_are_followed() {
    in_netns(|| async {
        let team = Team::new();
        let _https = team.https("127.0.0.1", &[(443, "good")]);
        team.write("site.yaml", "one");
        let one = team.push("one");
        team.work("git tag -a -m 'first release' v1 && git push -q origin v1");
        team.write("site.yaml", "two");
        let two = team.push("two");
        team.work("git push -q origin HEAD:refs/heads/feature/x");
        team.write("site.yaml", "three");
        team.push("three");
        for url in
            [format!("file://{}", team.path("network.git").display()), "https://127.0.0.1/git/network.git".into()]
        {
            let state = tempfile::tempdir().unwrap();
            for (reference, expected) in [
                (Reference::Tag("v1".into()), &one),
                (Reference::Branch("feature/x".into()), &two),
                (Reference::Commit(two.clone()), &two),
                (Reference::Commit(one.clone()), &one),
            ] {
                let shown = reference.to_string();
                let spec = Spec { reference, ..spec(&team, &url) };
                let snapshot = fetch(spec, state.path(), None).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
                assert_eq!(&snapshot.revision, expected, "{shown}");
            }
        }
    });
}

#[tokio::test]
async fn a_signature_is_worth_what_the_router_s_own_file_says() {
    let team = Team::new();
    let state = tempfile::tempdir().unwrap();
    team.write("site.yaml", "x");
    let verdict = |signers: &str| {
        let spec = Spec { verify: Verify::Head(team.path(signers)), ..local(&team) };
        let state = state.path().to_owned();
        async move { fetch(spec, &state, None).await.unwrap().commit.unwrap().signature }
    };
    let reason = |signature: Signature| match signature {
        Signature::Bad { reason } => reason,
        other => panic!("{other:?}"),
    };
    team.push("unsigned");
    assert_eq!(verdict("signers").await, Signature::Missing);
    team.push_signed("by ada", "ada");
    let Signature::Good { signer, key } = verdict("signers").await else { panic!() };
    assert_eq!(signer, "ada@example.net");
    assert_eq!(key, team.sh("ssh-keygen -lf ada.pub | cut -d' ' -f2"));
    // Real git agrees.
    team.work("git -c gpg.ssh.allowedSignersFile=../signers verify-commit HEAD 2>&1");
    let why = reason(verdict("nothing").await);
    assert!(why.contains("cannot be read"), "{why}");

    let by_ada = team.work("git cat-file commit HEAD");
    std::fs::write(team.path("forged"), by_ada.replace("by ada", "by eve")).unwrap();
    let forged = team.work("git hash-object -t commit -w ../forged");
    team.work(&format!("git push -q -f origin {forged}:main"));
    let why = reason(verdict("signers").await);
    assert!(why.contains("changed after it was signed"), "{why}");

    team.push_signed("by eve", "eve");
    let why = reason(verdict("signers").await);
    assert!(why.contains("not in the file of allowed signers") && why.contains("SHA256:"), "{why}");

    for (kind, bits) in [("rsa", "-b 3072"), ("ecdsa", "-b 256"), ("ecdsa", "-b 384")] {
        team.sh(&format!("rm -f k k.pub && ssh-keygen -q -t {kind} {bits} -N '' -f k && printf 'b@example.net ' > ks && cat k.pub >> ks"));
        team.push_signed(kind, "k");
        let found = verdict("ks").await;
        assert!(
            matches!(&found, Signature::Good { signer, .. } if signer == "b@example.net"),
            "{kind} {bits}: {found:?}"
        );
    }
    let pgp = by_ada.split("gpgsig").next().unwrap().to_owned()
        + "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iHUEABYK\n -----END PGP SIGNATURE-----\n\nby pgp\n";
    std::fs::write(team.path("pgp"), pgp).unwrap();
    let commit = team.work("git hash-object -t commit -w ../pgp");
    team.work(&format!("git push -q -f origin {commit}:main"));
    let why = reason(verdict("signers").await);
    assert!(why.contains("OpenPGP"), "{why}");
}

/// With the guards taken away the same commits pass, so it is the guards that stop them.
#[tokio::test]
async fn the_checker_sees_a_router_that_asks_for_no_signature_and_remembers_no_commit() {
    let team = Team::new();
    let state = tempfile::tempdir().unwrap();
    team.write("site.yaml", "one");
    let one = team.push("one");
    team.write("site.yaml", "two");
    let two = team.push_signed("two", "eve");
    team.work(&format!("git push -q -f origin {one}:main"));
    let judged = |verify: Verify, accepted: Option<String>| {
        let (spec, state) = (Spec { verify, ..local(&team) }, state.path().to_owned());
        async move {
            let commit = fetch(spec, &state, accepted.as_deref()).await.unwrap().commit.unwrap();
            (commit.signature.is_accepted(), commit.lineage.is_forward())
        }
    };
    let head = || Verify::Head(team.path("signers"));
    assert_eq!(judged(head(), Some(two.clone())).await, (false, false));
    assert_eq!(judged(Verify::Off, Some(two.clone())).await, (true, false));
    assert_eq!(judged(head(), None).await, (false, true));
    assert_eq!(judged(Verify::Off, None).await, (true, true));
}
