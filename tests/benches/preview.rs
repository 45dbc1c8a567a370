//! `patronus diff` of a commit that touches a policy of the whole fleet, as a whole process.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use super::{
    row::{Bound, Row, ms},
    validate::fleet,
    world::PATRONUS,
};

const SITES: usize = 200;

fn git(dir: &Path, words: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.net"]).args(words).current_dir(dir);
    assert!(command.stdout(Stdio::null()).status().expect("git").success(), "git {words:?}");
}

fn policy(dir: &Path, dscp: &str) {
    let text = format!(
        "apiVersion: patronus.network/v1alpha1\nkind: Policy\nmetadata: {{name: shared}}\nspec:\n  selector: {{role: branch}}\n  \
         priority: 50\n  match: {{protocol: udp, dscp: [{dscp}]}}\n  action: {{failover: critical}}\n"
    );
    fs::write(dir.join("shared.yaml"), text).expect("a file");
}

/// The comment on a change to 200 sites.
pub fn run() -> Vec<Row> {
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path();
    fs::create_dir(dir.join("sites")).expect("a directory");
    for (file, text) in fleet(SITES).files {
        fs::write(dir.join(file), text).expect("a file");
    }
    policy(dir, "cs5");
    git(dir, &["init", "-q", "-b", "main", "."]);
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-q", "-m", "one"]);
    policy(dir, "cs5, cs6");
    git(dir, &["commit", "-q", "-a", "-m", "two"]);
    let times = (0..7).map(|_| once(dir)).collect();
    let figure = format!("`diff` of a commit that touches a policy of {SITES} sites, Markdown, whole process");
    vec![Row::new(figure, "ms", times, Bound::Most(2000.0))]
}

fn once(dir: &Path) -> f64 {
    let begun = Instant::now();
    let words = ["diff", "HEAD~1", "HEAD", "--output", "markdown", "--detailed-exitcode"];
    let output = Command::new(PATRONUS).args(words).current_dir(dir).output().expect("to run it");
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("200 of 200 sites change"));
    ms(took)
}
