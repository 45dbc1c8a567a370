//! `patronus diff` on real repositories: what it reads, what it says, how it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::daemon::PATRONUS;

mod fleet;

/// A repository of which nobody's configuration knows.
pub struct Git(tempfile::TempDir);

impl Git {
    pub fn new() -> Self {
        let git = Self(tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap());
        git.run(&["init", "-q", "-b", "main", "."]);
        git
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs git here as a person whose clock stands still, so that commits have the same id each time.
    pub fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(words).current_dir(self.path()).env("HOME", self.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ada").env(format!("GIT_{who}_EMAIL"), "ada@example.net");
            command.env(format!("GIT_{who}_DATE"), "2026-01-01T00:00:00Z");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits everything that is there.
    pub fn commit(&self, subject: &str) -> String {
        self.run(&["add", "-A"]);
        self.run(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.run(&["rev-parse", "HEAD"])
    }

    /// Runs the program here, without privilege and without any configuration of the host.
    pub fn patronus(&self, words: &[&str]) -> Output {
        run_in(self.path(), words)
    }
}

fn run_in(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(PATRONUS);
    command.args(words).current_dir(dir).env("NO_COLOR", "1").env("HOME", "/nonexistent");
    command.env_remove("PATRONUS_CONFIG").env_remove("PATRONUS_SITE").output().unwrap()
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The example fleet with one commit.
fn fleet() -> Git {
    let git = Git::new();
    let copied = Command::new("cp").arg("-r").arg(root().join("examples/fleet/.")).arg(git.path()).status().unwrap();
    assert!(copied.success());
    git.commit("the fleet");
    git
}

fn replace(git: &Git, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(git.path().join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    git.write(file, &text.replace(from, to));
}

#[test]
fn revisions_directories_and_the_working_tree_are_compared() {
    let git = fleet();
    let same = git.patronus(&["diff", "main", "--detailed-exitcode"]);
    assert_eq!((code(&same), err(&same)), (0, ""), "{}", out(&same));
    replace(&git, "shared/policies.yaml", "priority: 200", "priority: 150");
    let one = git.patronus(&["diff", "main", "--detailed-exitcode"]);
    assert_eq!(code(&one), 2, "{}", out(&one));
    assert!(out(&one).contains("~ policy   guests           priority: 200 -> 150"), "{}", out(&one));
    let head = git.commit("guests earlier");
    let two = git.patronus(&["diff", "HEAD~1", "HEAD", "--output", "json"]);
    let value: Value = serde_json::from_str(out(&two)).unwrap();
    assert_eq!((&value["format_version"], &value["summary"]["changed"]), (&1.into(), &12.into()));
    assert_eq!(value["head"], format!("HEAD ({})", &head[..12]));
    assert_eq!(value["sites"][0]["plan"]["objects"][0]["name"], "guests");
    let none = git.patronus(&["diff", &head, "."]);
    assert!(out(&none).contains("no router would do anything else"), "{}", out(&none));
    // A directory of the repository is compared with the same directory of the revision.
    let below = run_in(&git.path().join("sites"), &["diff", "HEAD"]);
    assert!(err(&below).is_empty() || code(&below) == 65, "{}", err(&below));
    let shipped = root().join("examples/fleet");
    let directories = git.patronus(&["diff", shipped.to_str().unwrap(), ".", "--site", "aachen"]);
    assert!(
        out(&directories).contains("Site aachen") && !out(&directories).contains("bergen"),
        "{}",
        out(&directories)
    );
}

#[test]
fn nothing_of_the_host_or_of_the_repository_is_followed_or_run() {
    let git = fleet();
    git.run(&["config", "core.fsmonitor", "touch RAN; false"]);
    git.run(&["config", "filter.evil.smudge", "touch RAN"]);
    git.write(".gitattributes", "*.yaml filter=evil\n");
    git.run(&["config", "core.hooksPath", "."]);
    git.write("post-checkout", "#!/bin/sh\ntouch RAN\n");
    git.write(".gitconfig", "[broken");
    let output = Command::new(PATRONUS)
        .args(["diff", "main", "main"])
        .current_dir(git.path())
        .env("HOME", git.path())
        .env("XDG_CONFIG_HOME", git.path())
        .output()
        .unwrap();
    assert_eq!((code(&output), err(&output)), (0, ""));
    assert!(!git.path().join("RAN").exists());
}

#[test]
fn a_repository_of_another_user_and_a_bare_one_can_be_read() {
    let git = fleet();
    let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(git.path()).status().unwrap();
    assert!(owned.success());
    let output = git.patronus(&["diff", "main", "main"]);
    assert_eq!((code(&output), err(&output)), (0, ""));
    let place = tempfile::tempdir().unwrap();
    let bare = place.path().join("net.git");
    let source = fleet();
    source.run(&["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
    let output = run_in(&bare, &["diff", "main", "main"]);
    assert_eq!((code(&output), err(&output)), (0, ""));
    let linked = place.path().join("linked");
    source.run(&["worktree", "add", "-q", "-b", "other", linked.to_str().unwrap()]);
    let output = run_in(&linked, &["diff", "main"]);
    assert_eq!((code(&output), err(&output)), (0, ""));
}

#[test]
fn what_a_router_would_refuse_of_a_working_tree_is_named_before_it_is_committed() {
    let git = fleet();
    git.write("extra.sh", "");
    assert!(Command::new("chmod").args(["+x", "extra.sh"]).current_dir(git.path()).status().unwrap().success());
    std::os::unix::fs::symlink("fleet.yaml", git.path().join("link.yaml")).unwrap();
    for words in [&["diff", "main"][..], &["validate", "."]] {
        let output = git.patronus(words);
        let text = err(&output);
        assert!(text.contains("extra.sh is executable") && text.contains("chmod a-x"), "{words:?}: {text}");
        assert!(text.contains("link.yaml is a symbolic link"), "{words:?}: {text}");
    }
}

#[test]
fn what_cannot_be_read_says_why_and_what_to_do() {
    let git = fleet();
    let output = git.patronus(&["diff", "nowhere"]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("`nowhere` is neither a directory nor a revision"), "{}", err(&output));
    assert!(!err(&output).contains("shallow"), "{}", err(&output));
    let output = git.patronus(&["diff", "main..HEAD"]);
    assert!(err(&output).contains("as two arguments: `patronus diff main HEAD`"), "{}", err(&output));
    let place = tempfile::tempdir().unwrap();
    let (clone, source) = (place.path().join("clone"), format!("file://{}", git.path().display()));
    git.write("README.md", "A second commit, so that there is something to cut.\n");
    git.commit("a second commit");
    git.run(&["clone", "-q", "--depth", "1", &source, clone.to_str().unwrap()]);
    let output = run_in(&clone, &["diff", "nowhere"]);
    let text = err(&output);
    assert!(text.contains("fetch --unshallow") && text.contains("fetch-depth: 0"), "{text}");
    fs::write(place.path().join("a.yaml"), "").unwrap();
    let output = run_in(place.path(), &["diff", "main"]);
    assert!(err(&output).contains("is in no Git repository"), "{}", err(&output));
    let output = git.patronus(&["diff", "main", "--site", "aachn"]);
    assert_eq!(
        (code(&output), err(&output)),
        (65, "patronus: neither side has a site `aachn`; did you mean `aachen`?\n")
    );
}

#[test]
fn a_deletion_that_leaves_references_is_an_error_and_one_that_cascades_is_listed() {
    let git = Git::new();
    let shipped = root().join("examples/hub-and-branches/.");
    assert!(Command::new("cp").arg("-r").arg(shipped).arg(git.path()).status().unwrap().success());
    git.commit("three sites");
    fs::remove_file(git.path().join("north.yaml")).unwrap();
    let dangling = git.patronus(&["diff", "main"]);
    assert_eq!(code(&dangling), 65);
    assert!(out(&dangling).contains("error[PAT02"), "{}", out(&dangling));
    assert!(
        out(&dangling).contains("deleted, and still referred to: north: the path hq/north-cable leads to it"),
        "{}",
        out(&dangling)
    );
    let comment = git.patronus(&["diff", "main", "--output", "markdown"]);
    assert_eq!(code(&comment), 65);
    assert!(out(&comment).contains("## Patronus: this change is not valid"), "{}", out(&comment));
    let without = |file: &str| {
        let text = fs::read_to_string(git.path().join(file)).unwrap();
        let kept = text.lines().filter(|line| !line.contains("north"));
        git.write(file, &(kept.collect::<Vec<_>>().join("\n") + "\n"));
    };
    without("hq.yaml");
    let cascade = git.patronus(&["diff", "main", "--output", "json"]);
    assert_eq!(code(&cascade), 0, "{}", out(&cascade));
    let value: Value = serde_json::from_str(out(&cascade)).unwrap();
    let deletion = &value["deletions"][0];
    assert_eq!(deletion["site"], "north");
    let named = |list: &Value, key: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|x| x[key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(named(&deletion["prefixes"], "prefix"), ["10.2.0.0/16", "2001:db8:2::/48"]);
    assert_eq!(named(&deletion["elsewhere"], "name"), ["north-cable", "north-fiber", "north", "north"]);
    assert_eq!(value["summary"]["taken"], 4);
    // Coming back is an ordinary change.
    let back = git.patronus(&["diff", ".", "main", "--output", "json"]);
    let value: Value = serde_json::from_str(out(&back)).unwrap();
    assert_eq!((&value["summary"]["added"], &value["summary"]["removed"]), (&1.into(), &0.into()));
}

#[test]
fn a_base_with_errors_is_nothing_to_compare_with_and_no_fault_of_the_head() {
    let git = fleet();
    replace(&git, "shared/policies.yaml", "priority: 200", "priority: many");
    git.commit("broken");
    git.run(&["checkout", "-q", "HEAD~1", "--", "."]);
    let output = git.patronus(&["diff", "main"]);
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(out(&output).contains("nothing to compare with"), "{}", out(&output));
}

#[test]
fn the_risks_of_a_change_stand_at_their_policies_in_sarif() {
    let git = fleet();
    replace(&git, "shared/failover.yaml", "backups: [lte]", "backups: []");
    let output = git.patronus(&["diff", "main", "--output", "sarif"]);
    let log: Value = serde_json::from_str(out(&output)).unwrap();
    let results = log["runs"][0]["results"].as_array().unwrap();
    let risks: Vec<&Value> = results.iter().filter(|r| r["ruleId"] == "preview-risk").collect();
    assert_eq!(risks.len(), 24, "voice and default at twelve sites");
    let place = &risks[0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "shared/policies.yaml");
    assert!(risks[0]["message"]["text"].as_str().unwrap().contains("stops if path main fails"), "{}", risks[0]);
    let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    assert!(results.iter().all(|r| rules.iter().any(|rule| rule["id"] == r["ruleId"])));
}

/// The comment of a change that touches a fleet-wide policy of 200 sites and deletes one is in the documentation as
/// it came out.
#[test]
fn the_comment_in_the_documentation_is_what_comes_out() {
    let git = Git::new();
    for (file, text) in fleet::before() {
        git.write(&file, &text);
    }
    git.commit("the fleet");
    git.run(&["checkout", "-q", "-b", "guests-off-lte"]);
    for (file, text) in fleet::after() {
        match text {
            Some(text) => git.write(&file, &text),
            None => fs::remove_file(git.path().join(file)).unwrap(),
        }
    }
    git.commit("Guests no longer use LTE; store-117 is closed");
    let output = git.patronus(&["diff", "main", "guests-off-lte", "--output", "markdown"]);
    assert_eq!((code(&output), err(&output)), (0, ""));
    let comment = out(&output);
    assert!(comment.chars().count() <= 65_000);
    assert_eq!(
        comment,
        out(&git.patronus(&["diff", "main", "guests-off-lte", "--output", "markdown"])),
        "twice the same"
    );
    let text = format!("{}\n{comment}", fleet::INTRODUCTION);
    super::docs::generated("docs/explanation/a-preview.md", &text);
}

#[test]
fn the_readme_shows_rows_of_that_comment() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (readme, comment) = (read("README.md"), read("docs/explanation/a-preview.md"));
    let rows: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("> ")).collect();
    let shown: Vec<&str> = rows.into_iter().filter(|row| row.starts_with(['|', '*'])).collect();
    assert!(shown.len() >= 4, "the first screen shows the preview");
    let lost: Vec<&&str> = shown.iter().filter(|row| !comment.lines().any(|line| line == **row)).collect();
    assert!(lost.is_empty(), "not in the comment: {lost:#?}");
}
