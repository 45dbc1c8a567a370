//! The directory of YAML changes in every way that people and programs change directories.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use patronus::engine::status::Status;

use super::{SITE, all_up, repository};
use crate::support::daemon::{Daemon, Repository};

/// The site with another line as first of its policies.
fn with_policy(line: &str) -> String {
    SITE.replace("  policies:\n", &format!("  policies:\n    {line}\n"))
}

fn extra(number: usize) -> String {
    with_policy(&format!(
        "extra{number}: {{priority: {number}, match: {{destination: [10.77.{number}.0/24]}}, action: {{path: lte}}}}"
    ))
}

fn has(status: &Status, number: usize) -> bool {
    let name = format!("extra{number}");
    status.policies.iter().any(|p| p.name.as_str() == name) && status.source.applied == status.source.desired
}

fn newest(status: &Status) -> Option<&str> {
    status.policies.first().map(|p| p.name.as_str())
}

/// Nothing but this policy was ever in force while `work` ran.
fn stays(daemon: &Daemon, work: impl FnOnce(), time: Duration) {
    let generation = daemon.status().generation;
    work();
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(daemon.status().generation, generation, "unsettled content was applied:\n{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn only_settled_and_valid_content_is_put_in_force() {
    let parent = tempfile::tempdir().unwrap();
    let repository = repository();
    let lab = repository.lab();
    let daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both paths", all_up);
    let (dir, file) = (repository.path(), repository.path().join("site.yaml"));

    fs::write(&file, extra(1)).unwrap();
    daemon.wait("an edit in place", |s| has(s, 1));

    // As vim: a swap file beside, the old one renamed away, the new one written, the old one removed.
    fs::write(dir.join(".site.yaml.swp"), "x").unwrap();
    fs::rename(&file, dir.join("site.yaml~")).unwrap();
    fs::write(&file, extra(2)).unwrap();
    fs::remove_file(dir.join("site.yaml~")).unwrap();
    fs::remove_file(dir.join(".site.yaml.swp")).unwrap();
    daemon.wait("an editor's rename", |s| has(s, 2));

    half_written(&daemon, &file);
    invalid(&daemon, &file);
    replaced(&daemon, dir, parent.path());
    many_files(&daemon, dir);
    a_path_is_removed(&daemon, &file);
}

/// The first half is valid in itself: a document that ends with its policies.
fn half_written(daemon: &Daemon, file: &Path) {
    let text = extra(3);
    let (first, rest) = text.split_at(text.find("    voice:").unwrap());
    let mut open = File::create(file).unwrap();
    stays(daemon, || open.write_all(first.as_bytes()).unwrap(), Duration::from_secs(1));
    assert!(daemon.status().source.errors.is_empty(), "half a file is no error yet: {:?}", daemon.status().source);
    open.write_all(rest.as_bytes()).unwrap();
    drop(open);
    let status = daemon.wait("the whole file", |s| has(s, 3));
    assert_eq!(status.policies.len(), 4);
}

fn invalid(daemon: &Daemon, file: &Path) {
    let voice = counter(daemon, "voice");
    let wrong = extra(4).replace("protocol: udp", "protocol: upd");
    stays(daemon, || fs::write(file, &wrong).unwrap(), Duration::from_millis(500));
    let status = daemon.wait("the errors", |s| !s.source.errors.is_empty());
    let (line, text) = wrong.lines().enumerate().find(|(_, l)| l.contains("upd")).unwrap();
    let place = format!("site.yaml:{}:{}", line + 1, text.find("upd").unwrap() + 1);
    assert!(status.source.errors[0].starts_with(&place), "{:?}, not {place}", status.source.errors);
    assert_eq!(newest(&status), Some("extra3"));
    let event = daemon.wait_event("source", |e| e.message.contains(&place));
    assert!(event.message.contains("stays in force"), "{event:?}");
    let log = daemon.log();
    assert!(
        log.lines().any(|l| l.contains("WARN") && l.contains(&place)),
        "no warning with {place} in the log:\n{log}"
    );
    let metrics = daemon.metrics();
    assert_eq!(metrics.iter().find(|(k, _)| k.starts_with("patronus_source_errors")).map(|(_, v)| *v), Some(1.0));
    assert!(daemon.says(&["status"]).contains(&place), "{}", daemon.says(&["status"]));
    fs::write(file, extra(4)).unwrap();
    let status = daemon.wait("the mended file", |s| has(s, 4));
    assert!(status.source.errors.is_empty());
    assert!(counter(daemon, "voice") >= voice);
}

fn counter(daemon: &Daemon, policy: &str) -> u64 {
    daemon.status().policies.iter().find(|p| p.name.as_str() == policy).map_or(0, |p| p.counter.packets)
}

fn replaced(daemon: &Daemon, dir: &Path, parent: &Path) {
    let away = parent.join("away");
    stays(daemon, || fs::rename(dir, &away).unwrap(), Duration::from_millis(500));
    let status = daemon.wait("the loss to be told", |s| !s.source.errors.is_empty());
    assert!(status.source.errors[0].contains("No such file"), "{:?}", status.source.errors);
    fs::create_dir(dir).unwrap();
    daemon.wait("the empty directory to be told", |s| s.source.errors.iter().any(|e| e.contains("no *.yaml")));
    fs::write(dir.join("site.yaml"), extra(5)).unwrap();
    daemon.wait("a directory made anew", |s| has(s, 5));

    let other = parent.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("site.yaml"), extra(6)).unwrap();
    fs::rename(dir, parent.join("gone")).unwrap();
    fs::rename(&other, dir).unwrap();
    daemon.wait("a directory replaced by another", |s| has(s, 6));
    fs::write(dir.join("site.yaml"), extra(7)).unwrap();
    daemon.wait("an edit in the other one", |s| has(s, 7));

    // The link's target is out of sight; it is read at the next audit.
    let target = parent.join("target.yaml");
    fs::write(&target, extra(8)).unwrap();
    fs::remove_file(dir.join("site.yaml")).unwrap();
    std::os::unix::fs::symlink(&target, dir.join("site.yaml")).unwrap();
    daemon.wait("a linked file", |s| has(s, 8));
    fs::write(&target, extra(9)).unwrap();
    daemon.wait("a linked file's new content", |s| has(s, 9));
    fs::remove_file(dir.join("site.yaml")).unwrap();
    fs::write(dir.join("site.yaml"), extra(9)).unwrap();
}

fn many_files(daemon: &Daemon, dir: &Path) {
    let generation = daemon.status().generation;
    for number in 0..2_000 {
        fs::write(dir.join(format!("empty{number}.yaml")), "# nothing\n").unwrap();
    }
    fs::write(dir.join("site.yaml"), extra(10)).unwrap();
    let status = daemon.wait("two thousand files", |s| has(s, 10));
    assert_eq!(status.generation, generation + 1, "one change is one generation");
    (0..2_000).for_each(|number| fs::remove_file(dir.join(format!("empty{number}.yaml"))).unwrap());
}

/// What is removed disappears everywhere, and what stays keeps number and counter.
fn a_path_is_removed(daemon: &Daemon, file: &Path) {
    let numbers = |daemon: &Daemon| {
        daemon.sh("nft list set inet patronus targets | grep -o '0x[0-9a-f]* comment \"[^\"]*\"' | sort")
    };
    let before = numbers(daemon);
    daemon.sh("nft -s list table inet patronus | grep -q lte; ip rule show | grep -q 20003");
    let smaller: String =
        SITE.lines().filter(|l| !l.starts_with("    lte:")).map(|l| l.replace("backups: [lte], ", "") + "\n").collect();
    fs::write(file, smaller).unwrap();
    let status =
        daemon.wait("the path to go", |s| !s.paths.contains_key("lte") && s.source.applied == s.source.desired);
    assert_eq!(status.policies.len(), 3);
    let table = daemon.sh("nft list table inet patronus; ip rule show");
    assert!(!table.contains("_lte") && !table.contains("wwan0"), "{table}");
    let series: Vec<String> = daemon.metrics().into_keys().filter(|k| k.contains("lte")).collect();
    assert!(series.is_empty(), "{series:?}");
    let after = numbers(daemon);
    assert!(after.lines().all(|line| before.contains(line)) && !after.is_empty(), "{before}\n{after}");
}

#[test]
fn a_start_with_a_broken_source_goes_on_with_the_last_good_one() {
    let repository = repository();
    let lab = repository.lab();
    let mut daemon = Daemon::start(&lab, &repository, "berlin");
    let before = super::ours(&daemon);
    daemon.terminate();
    for (what, breaks) in [("invalid", true), ("missing", false)] {
        if breaks {
            repository.write("site.yaml", "kind: Sight\n");
        } else {
            fs::remove_file(repository.path().join("site.yaml")).unwrap();
        }
        let status = daemon.settle();
        assert!(status.paths.contains_key("fiber"), "{what}: {status:?}");
        let status = daemon.wait("the error", |s| !s.source.errors.is_empty());
        assert_eq!(status.policies.len(), 3, "{what}");
        assert_eq!(super::ours(&daemon), before, "{what}");
        daemon.wait("probes", all_up);
        daemon.terminate();
    }
}

#[test]
fn a_start_with_nothing_at_all_changes_nothing_and_says_so() {
    let good = repository();
    let lab = good.lab();
    let broken = Repository::new(&[("site.yaml", "kind: Sight\n")]);
    let daemon = Daemon::launched(&lab, &broken, "berlin");
    let status = daemon.wait("the error", |s| !s.source.errors.is_empty());
    assert!(status.paths.is_empty() && status.generation == 0 && status.reconcile.is_none(), "{status:?}");
    assert_eq!(daemon.sh("nft list tables; ip rule show | grep proto || true"), "");
    assert!(daemon.says(&["status"]).contains("nothing is in force"), "{}", daemon.says(&["status"]));
    broken.write("site.yaml", SITE);
    daemon.wait("the first configuration", all_up);
}
