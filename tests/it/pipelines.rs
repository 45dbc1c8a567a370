//! The pipelines in `examples/ci`: they are YAML, their scripts run, and they give nothing away.
//!
//! A script is run as its service runs it (`bash -e`), with the real program, real repositories, and a forge that only
//! writes down what it is told.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::{preview::Git, support::daemon::PATRONUS};

const PREVIEW: &str = "examples/ci/github/preview.yml";
const COMMENT: &str = "examples/ci/github/comment.yml";
const GITLAB: &str = "examples/ci/gitlab/patronus.gitlab-ci.yml";

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn yaml(path: &str) -> Value {
    yaml_serde::from_str(&fs::read_to_string(root().join(path)).unwrap()).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The script of a named step of a GitHub job.
fn step(path: &str, job: &str, name: &str) -> String {
    let yaml = yaml(path);
    let steps = yaml["jobs"][job]["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("{path} has no step {name}"));
    step["run"].as_str().unwrap().to_owned()
}

/// A place with a repository, and programs that stand in for a forge's.
struct Place {
    git: Git,
    dir: tempfile::TempDir,
}

impl Place {
    /// With a base commit, and a head that takes away every backup.
    fn new() -> (Self, String) {
        let git = Git::new();
        let fleet = root().join("examples/fleet/.");
        assert!(Command::new("cp").arg("-r").arg(fleet).arg(git.path()).status().unwrap().success());
        let base = git.commit("the fleet");
        let text = fs::read_to_string(git.path().join("shared/failover.yaml")).unwrap();
        git.write("shared/failover.yaml", &text.replace("backups: [lte]", "backups: []"));
        git.commit("no backups");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let place = Self { git, dir };
        place.program("patronus", &format!("exec {PATRONUS} \"$@\""));
        (place, base)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mut mode = fs::metadata(&file).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(&file, mode).unwrap();
    }

    /// Runs a script in the repository, with these variables and hardly any others.
    fn run(&self, script: &str, variables: &[(&str, &str)]) -> Output {
        self.run_in(self.git.path(), script, variables)
    }

    fn run_in(&self, dir: &Path, script: &str, variables: &[(&str, &str)]) -> Output {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]).current_dir(dir).env_clear();
        command.env("PATH", path).env("HOME", self.dir.path()).env("RUNNER_TEMP", self.dir.path());
        command.env("GITHUB_STEP_SUMMARY", self.path("summary")).env("GITHUB_PATH", self.path("paths"));
        command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

#[test]
fn the_preview_of_a_pull_request_is_its_summary() {
    let (place, base) = Place::new();
    good(&place.run(&step(PREVIEW, "preview", "Validate"), &[]));
    good(&place.run(&step(PREVIEW, "preview", "Test"), &[]));
    let preview = step(PREVIEW, "preview", "Preview");
    good(&place.run(&preview, &[("BASE", &base)]));
    let summary = place.read("summary");
    assert!(summary.contains("12 of 12 sites change, 12 get worse"), "{summary}");
    place.git.write("shared/failover.yaml", "kind: FailoverRule\n");
    place.git.commit("broken\u{1b}[2J");
    let output = place.run(&preview, &[("BASE", &base)]);
    assert_eq!(output.status.code(), Some(65), "a broken change fails the job: {}", said(&output));
    assert!(place.read("summary").contains("this change is not valid"), "and the summary says why");
    assert!(!place.run(&step(PREVIEW, "preview", "Validate"), &[]).status.success());
}

#[test]
fn what_is_installed_has_the_checksum_that_was_asked_for() {
    let (place, _) = Place::new();
    fs::write(place.path("build"), "#!/bin/sh\n").unwrap();
    let url = format!("file://{}", place.path("build").display());
    // The file stands in for a download.
    place.program("curl", "while [ \"$1\" != --output ]; do shift; done; cp \"${3#file://}\" \"$2\"");
    let install = step(PREVIEW, "preview", "Install");
    let sum = Command::new("sha256sum").arg(place.path("build")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sum = sum.split(' ').next().unwrap();
    good(&place.run(&install, &[("PATRONUS_URL", &url), ("PATRONUS_SHA256", sum)]));
    assert_eq!(place.read("paths").trim(), place.path("bin").display().to_string());
    let other = "0".repeat(64);
    let output = place.run(&install, &[("PATRONUS_URL", &url), ("PATRONUS_SHA256", &other)]);
    assert!(!output.status.success(), "another program was taken");
}

/// A forge that answers from `answers/` and writes down what it is told.
const GH: &str = r#"
echo "$*" >> "$RUNNER_TEMP/told"
for word in "$@"; do case "$word" in body=@*) cp "${word#body=@}" "$RUNNER_TEMP/posted";; esac; done
case "$*" in *pulls*) echo "$FAKE_PULL";; *PATCH*|*POST*) ;; *comments*) echo "$FAKE_COMMENT";; esac
"#;

#[test]
fn the_comment_is_made_once_cleaned_and_cut() {
    let (place, _) = Place::new();
    place.program("gh", GH);
    fs::create_dir(place.path("preview")).unwrap();
    let hostile = format!("\u{1b}[2Jbell\u{7} $(touch ran) `touch ran`\n{}\u{e9}", "x".repeat(64_974));
    fs::write(place.path("preview/preview.md"), hostile + "cut away").unwrap();
    let comment = step(COMMENT, "comment", "Comment");
    let run = |pull: &str, known: &str| {
        let _ = fs::remove_file(place.path("told"));
        let variables = [
            ("REPOSITORY", "o/r"),
            ("HEAD_SHA", "abc"),
            ("OWNER", "someone"),
            ("BRANCH", "x\"; touch ran; \""),
            ("FAKE_PULL", pull),
            ("FAKE_COMMENT", known),
        ];
        good(&place.run(&comment, &variables));
        place.read("told")
    };
    assert!(run("7", "").contains("--method POST repos/o/r/issues/7/comments"));
    let posted = place.read("posted");
    assert!(posted.starts_with("<!-- patronus preview -->\n[2Jbell $(touch ran)"), "{}", &posted[..80]);
    assert!(posted.chars().count() <= 65_100 && !posted.contains("cut away"));
    assert!(run("7", "99").contains("--method PATCH repos/o/r/issues/comments/99"));
    assert!(!run("", "").contains("--method POST"), "a pull request that is gone gets no comment");
    assert!(!place.git.path().join("ran").exists(), "something of the data was run");
}

#[test]
fn the_gitlab_job_notes_only_with_a_token() {
    let (place, base) = Place::new();
    place.program("curl", "echo \"$*\" >> \"$RUNNER_TEMP/told\"");
    let script = yaml(GITLAB)["patronus"]["script"][0].as_str().unwrap().to_owned();
    let variables = [
        ("CI_MERGE_REQUEST_DIFF_BASE_SHA", base.as_str()),
        ("CI_API_V4_URL", "https://gitlab.example.net/api/v4"),
        ("CI_PROJECT_ID", "5"),
        ("CI_MERGE_REQUEST_IID", "7"),
    ];
    good(&place.run(&script, &variables));
    assert_eq!(place.read("told"), "");
    assert!(fs::read_to_string(place.git.path().join("preview.md")).unwrap().contains("12 get worse"));
    let with_token: Vec<(&str, &str)> = variables.into_iter().chain([("PATRONUS_COMMENT_TOKEN", "t")]).collect();
    good(&place.run(&script, &with_token));
    assert!(place.read("told").contains("projects/5/merge_requests/7/notes"));
    place.git.write("shared/failover.yaml", "kind: FailoverRule\n");
    place.git.commit("broken");
    assert_eq!(place.run(&script, &variables).status.code(), Some(65));
}

#[test]
fn the_hook_checks_what_is_staged_and_not_what_lies_around() {
    let (place, _) = Place::new();
    fs::copy(root().join("examples/ci/pre-commit"), place.git.path().join(".git/hooks/pre-commit")).unwrap();
    let commit = "git -c user.name=a -c user.email=a@example.net commit -qm x";
    let broken = "kind: FailoverRule\n";
    let sound = fs::read_to_string(place.git.path().join("shared/failover.yaml")).unwrap();
    place.git.write("shared/failover.yaml", broken);
    let output = place.run(&format!("git add -A; {commit}"), &[]);
    assert!(!output.status.success() && said(&output).contains("error[PAT"), "{}", said(&output));
    place.git.write("shared/failover.yaml", &sound.replace("backups: []", "backups: [lte]"));
    place.run("git add -A", &[]);
    place.git.write("shared/failover.yaml", broken);
    let output = place.run(commit, &[]);
    good(&output);
    assert!(said(&output).contains("12 of 12 sites change"), "{}", said(&output));
}

/// Services put the text of `${{ … }}` into a script before it runs: what others chose must come by the environment.
fn injects(script: &str) -> bool {
    script.contains("${{")
}

#[test]
fn the_pipelines_need_no_secret_and_put_nothing_of_others_into_a_script() {
    for path in [PREVIEW, COMMENT] {
        let yaml = yaml(path);
        let jobs: BTreeMap<String, Value> = serde_json::from_value(yaml["jobs"].clone()).unwrap();
        let steps = jobs.values().flat_map(|job| job["steps"].as_array().unwrap());
        let scripts: Vec<&str> = steps.filter_map(|step| step["run"].as_str()).collect();
        assert!(!scripts.is_empty() && !scripts.iter().any(|script| injects(script)), "{path}");
        let text = fs::read_to_string(root().join(path)).unwrap();
        assert!(!text.contains("secrets.") && !text.contains("pull_request_target"), "{path}");
    }
    assert_eq!(yaml(PREVIEW)["permissions"], serde_json::json!({"contents": "read"}));
    let comment = yaml(COMMENT);
    assert!(!comment.to_string().contains("actions/checkout"), "the job that may write reads no repository");
    assert_eq!(comment["permissions"], serde_json::json!({"actions": "read", "pull-requests": "write"}));
    let hook = Command::new("sh").arg("-n").arg(root().join("examples/ci/pre-commit")).output().unwrap();
    assert!(hook.status.success(), "{}", said(&hook));
}

#[test]
fn the_checker_sees_a_script_that_others_can_write_into() {
    assert!(injects("echo ${{ github.head_ref }}"));
    assert!(!injects("echo \"$BRANCH\" ${HOME}"));
}
