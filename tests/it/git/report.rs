//! What a forge is told of commits: the exact requests, and what happens when it cannot be told.

use std::{fs, net::TcpListener, sync::Arc, time::Duration};

use patronus::{
    clock::Wall,
    engine::status::{Status, Tally, UnconfirmedStatus},
    forge::{Forge as Kind, Reporter, Spec},
    guard::Who,
    source::git::Secret,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    records,
    support::{
        daemon::PATIENCE,
        statuses::{Forge, Post},
    },
};

const TOKEN: &str = "t0p-s3cret";

/// A router that has commit `a…` in force.
fn status() -> Status {
    let mut status = records::status();
    status.source.held = None;
    status.source.suspended = None;
    status.source.attempted = None;
    status.unconfirmed = None;
    status.source.applied = Some("a".repeat(40));
    status.source.desired = Some("a".repeat(40));
    status
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A reporter, the way to tell it a status, and its counts.
struct Rig {
    _reporter: Reporter,
    status: watch::Sender<Arc<Status>>,
    tally: Arc<Tally>,
    _dir: tempfile::TempDir,
}

fn rig(kind: Kind, project: &str, api: String) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let token = Secret::File(dir.path().join("token"));
    let spec = Spec { forge: kind, api, project: project.into(), token, ca: None };
    let (sender, receiver) = watch::channel(Arc::new(records::status()));
    let tally = Arc::new(Tally::default());
    let reporter = Reporter::start(spec, receiver, Arc::clone(&tally)).unwrap();
    Rig { _reporter: reporter, status: sender, tally, _dir: dir }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "waited in vain for {what}");
}

/// What a router says of a commit in force.
async fn one_post(kind: Kind, project: &str) -> Post {
    let forge = Forge::new(listener(), &[]);
    let rig = rig(kind, project, format!("http://{}/api", forge.at));
    rig.status.send_replace(Arc::new(status()));
    until("the post", || !forge.posts().is_empty()).await;
    let mut post = forge.posts().remove(0);
    let host = ("host".to_owned(), forge.at.to_string());
    post.headers.retain(|header| *header != host && header.0 != "content-length");
    post
}

fn expect(post: &Post, line: &str, headers: &[(&str, &str)], body: &Value) {
    let agent = format!("patronus/{}", env!("CARGO_PKG_VERSION"));
    let mut headers: Vec<(String, String)> = [("user-agent", agent.as_str()), ("content-type", "application/json")]
        .iter()
        .chain(headers)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    headers.sort();
    assert_eq!((post.line.as_str(), &post.headers, &post.body), (line, &headers, body));
}

#[tokio::test]
async fn each_forge_is_told_in_its_own_words() {
    let sha = "a".repeat(40);
    let bearer = ("authorization", "Bearer t0p-s3cret");
    let body = json!({"state": "success", "context": "patronus/berlin", "description": "in force"});

    let headers = [bearer, ("accept", "application/vnd.github+json"), ("x-github-api-version", "2022-11-28")];
    let line = format!("POST /api/repos/team/network/statuses/{sha}");
    expect(&one_post(Kind::GitHub, "team/network").await, &line, &headers, &body);

    let headers = [("authorization", "token t0p-s3cret"), ("accept", "application/json")];
    expect(&one_post(Kind::Gitea, "team/network").await, &line, &headers, &body);

    let headers = [bearer, ("accept", "application/json")];
    let line = format!("POST /api/projects/team%2Fsub%2Fnetwork/statuses/{sha}");
    let body = json!({"state": "success", "name": "patronus/berlin", "description": "in force"});
    expect(&one_post(Kind::GitLab, "team/sub/network").await, &line, &headers, &body);
}

#[tokio::test]
async fn a_forge_that_was_away_is_told_the_newest_word_and_once() {
    let place = listener();
    let at = place.local_addr().unwrap();
    drop(place);
    let rig = rig(Kind::GitHub, "team/network", format!("http://{at}"));
    let mut on_trial = status();
    on_trial.unconfirmed = Some(UnconfirmedStatus {
        generation: 43,
        revision: "a".repeat(40),
        previous: None,
        who: Who::DAEMON,
        until: Wall::default(),
        seconds_left: 90,
        by_hand: false,
        waits: Vec::new(),
        against: Vec::new(),
    });
    rig.status.send_replace(Arc::new(on_trial));
    until("the first failure", || rig.tally.counts().contains_key("failed")).await;
    rig.status.send_replace(Arc::new(status()));
    let forge = Forge::new(TcpListener::bind(at).unwrap(), &[(503, "retry-after: 1\r\n", "")]);
    until("it to be told", || rig.tally.counts().contains_key("taken")).await;
    let posts = forge.posts();
    let said: Vec<(u16, String)> = posts.iter().map(|post| (post.status, post.told().1)).collect();
    let success = || "success".to_owned();
    assert_eq!(said, [(503, success()), (201, success())], "not one `pending`");

    // The same status again is no news; another commit is.
    rig.status.send_replace(Arc::new(status()));
    let mut newer = status();
    newer.source.applied = Some("b".repeat(40));
    newer.source.desired = Some("b".repeat(40));
    rig.status.send_replace(Arc::new(newer));
    until("the next commit", || rig.tally.counts().get("taken") == Some(&2)).await;
    assert_eq!(forge.posts().len(), 3, "{:#?}", forge.posts());
}

#[tokio::test]
async fn what_a_forge_will_never_take_is_not_sent_again() {
    let forge = Forge::new(listener(), &[(422, "", "{}")]);
    let rig = rig(Kind::GitHub, "team/network", format!("http://{}", forge.at));
    rig.status.send_replace(Arc::new(status()));
    until("the refusal", || rig.tally.counts().contains_key("refused")).await;
    let mut newer = status();
    newer.source.desired = Some("b".repeat(40));
    newer.source.applied = Some("b".repeat(40));
    rig.status.send_replace(Arc::new(newer));
    until("the next commit", || rig.tally.counts().contains_key("taken")).await;
    let commits: Vec<String> = forge.posts().iter().map(|post| post.told().0).collect();
    assert_eq!(commits, ["a".repeat(40), "b".repeat(40)]);
}
