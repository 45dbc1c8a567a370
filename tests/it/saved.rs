//! Plans in files on a real kernel: what was shown is done, or nothing; and plans against a captured state.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::{
    preview::Git,
    support::{
        daemon::PATRONUS,
        netns::{in_netns, ip, nft, veth},
    },
};

const SITE: &str = include_str!("reconcile/site.yaml");

/// A router in this namespace whose configuration is a repository.
struct Router {
    git: Git,
    place: tempfile::TempDir,
}

impl Router {
    fn new() -> Self {
        for (name, address) in [("wan0", "198.51.100.2/24"), ("wwan0", "203.0.113.2/24"), ("lan0", "192.168.10.1/24")] {
            veth(name, &format!("{name}x"), address);
        }
        ip("route add default via 203.0.113.1 dev wwan0");
        let place = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        let git = Git::new();
        git.write("site.yaml", SITE);
        git.commit("the site");
        Self { git, place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn settings(&self, more: &str) {
        let text = format!("site: berlin\nsource: {{dir: {}}}\n{more}", self.git.path().display());
        fs::write(self.path("patronus.yaml"), text).unwrap();
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(PATRONUS);
        command.args(words).stdin(Stdio::null()).env("NO_COLOR", "1").current_dir(self.place.path());
        command.env("PATRONUS_STATE_DIR", self.path("state")).env("PATRONUS_RUNTIME_DIR", self.path("run"));
        if self.path("patronus.yaml").exists() {
            command.env("PATRONUS_CONFIG", self.path("patronus.yaml"));
        }
        command.output().unwrap()
    }

    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must be refused, and gives back why.
    fn refused(&self, words: &[&str]) -> String {
        let before = data_plane();
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", said(&output));
        assert_eq!(data_plane(), before, "a refusal changed something");
        String::from_utf8(output.stderr).unwrap()
    }

    fn change(&self, from: &str, to: &str) {
        assert!(fs::read_to_string(self.git.path().join("site.yaml")).unwrap().contains(from));
        let text = fs::read_to_string(self.git.path().join("site.yaml")).unwrap().replace(from, to);
        self.git.write("site.yaml", &text);
        self.git.commit(to);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn data_plane() -> String {
    ip("-4 rule") + &ip("-6 rule") + &ip("-d -4 route show table all proto 157") + &nft("list ruleset")
}

/// The steps of the run that the journal has last.
fn journaled(state: &Path) -> Vec<Value> {
    let db = rusqlite::Connection::open(state.join("journal.db")).unwrap();
    let sql = "SELECT step FROM steps WHERE run = (SELECT max(id) FROM runs) ORDER BY number";
    let mut rows = db.prepare(sql).unwrap();
    let texts = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    texts.map(|text| serde_json::from_str(&text.unwrap()).unwrap()).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_saved_plan_is_carried_out_as_shown_or_not_at_all() {
    in_netns(|| async {
        let router = Router::new();
        router.settings("");
        router.good(&["apply", "--yes"]);

        // Nothing has moved: exactly the steps of the file.
        router.change("failbackDelay: 1s}", "failbackDelay: 2s}\n    spare: {primary: lte}");
        let shown = json(&router.good(&["plan", "--out", "plan.json", "--output", "json"]));
        let saved = json(&fs::read_to_string(router.path("plan.json")).unwrap());
        assert!(!saved["steps"].as_array().unwrap().is_empty());
        assert_eq!(saved["steps"], shown["changes"], "what is saved is what was shown");
        let output = router.run(&["apply", "plan.json", "--yes"]);
        assert!(output.status.success(), "{}", said(&output));
        let id = saved["stamp"]["plan"].as_str().unwrap();
        assert!(said(&output).contains(id), "it is that plan: {}", said(&output));
        assert_eq!(journaled(&router.path("state")), *saved["steps"].as_array().unwrap());
        let again = router.refused(&["apply", "plan.json", "--yes"]);
        assert!(again.contains("another change came first"), "{again}");

        // One foreign change to our objects.
        router.change("spare: {primary: lte", "other: {primary: lte");
        router.good(&["plan", "--out", "plan.json"]);
        ip("rule del pref 20001");
        let why = router.refused(&["apply", "plan.json", "--yes"]);
        assert!(why.contains("1 of our objects in the kernel is not as it was"), "{why}");
        assert!(why.contains("- rule   IPv4 priority 20001") && why.contains("nothing was changed"), "{why}");
        router.good(&["plan", "--out", "plan.json"]);
        router.good(&["apply", "plan.json", "--yes"]);

        // One commit, though it touches no YAML.
        router.change("other: {primary: lte", "spare: {primary: lte");
        router.good(&["plan", "--out", "plan.json"]);
        let then = router.git.run(&["rev-parse", "HEAD"]);
        let now = router.git.commit("nothing at all");
        let why = router.refused(&["apply", "plan.json", "--yes"]);
        assert!(why.contains(&format!("the configuration moved on: planned {then}, now {now}")), "{why}");

        // What surrounds us: the gateway that `auto` follows.
        router.good(&["plan", "--out", "plan.json"]);
        ip("route replace default via 203.0.113.9 dev wwan0");
        let why = router.refused(&["apply", "plan.json", "--yes"]);
        assert!(why.contains("what surrounds us has changed"), "{why}");

        // A file that somebody edited, and one that is none.
        router.good(&["plan", "--out", "plan.json"]);
        let text = fs::read_to_string(router.path("plan.json")).unwrap();
        let (head, steps) = text.split_once("\"steps\"").unwrap();
        fs::write(router.path("edited.json"), format!("{head}\"steps\"{}", steps.replacen("wwan0", "wan0", 1)))
            .unwrap();
        let why = router.refused(&["apply", "edited.json", "--yes"]);
        assert!(why.contains("out of date"), "steps that no fresh plan has are not run: {why}");
        fs::write(router.path("none.json"), "{}").unwrap();
        assert!(router.refused(&["apply", "none.json", "--yes"]).contains("this is no saved plan"));
        router.good(&["apply", "plan.json", "--yes"]);
    });
}

/// What a plan says, without how rulesets are listed.
fn gist(plan: &str) -> (Value, Value, Vec<String>) {
    let plan = json(plan);
    let steps = plan["changes"].as_array().unwrap().iter().chain(plan["drift"].as_array().unwrap());
    let keys = steps.map(|step| format!("{} {}", step["do"], step["key"])).collect();
    (plan["objects"].clone(), plan["consequences"].clone(), keys)
}

#[test]
fn a_plan_against_a_captured_state_is_the_router_s_own() {
    let (captured, expected, quiet, git) = in_netns(|| async {
        let router = Router::new();
        router.settings("");
        router.good(&["apply", "--yes"]);
        let quiet = router.good(&["snapshot"]);
        router.change("failbackDelay: 1s}", "failbackDelay: 2s}\n    spare: {primary: lte}");
        ip("rule del pref 20001");
        let captured = router.good(&["snapshot"]);
        (captured, router.good(&["plan", "--output", "json"]), quiet, router.git)
    });
    // Elsewhere: nothing of the router is here, and nobody may look at a kernel.
    in_netns(move || async move {
        let place = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        let open = ["755", place.path().to_str().unwrap(), git.path().to_str().unwrap()];
        assert!(Command::new("chmod").args(open).status().unwrap().success());
        let plan = |file: &str, text: &str, output: &str| {
            fs::write(place.path().join(file), text).unwrap();
            let mut command = Command::new("/usr/bin/setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", PATRONUS, "plan", "--against", file]);
            command.arg(git.path()).args(["--output", output]).current_dir(place.path());
            let output = command.env_remove("PATRONUS_CONFIG").env("PATH", "/nonexistent").output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(gist(&plan("site.json", &captured, "json")), gist(&expected));
        let text = plan("site.json", &captured, "text");
        assert!(text.contains("+ failover spare") && text.contains("Drift"), "{text}");
        git.run(&["checkout", "-q", "HEAD~1"]);
        assert!(plan("quiet.json", &quiet, "text").contains("Nothing to do"), "the same configuration and state");
    });
}

#[test]
fn a_router_that_asks_for_signatures_takes_no_plan_without_a_good_one() {
    in_netns(|| async {
        let router = Router::new();
        router.settings(&format!("plans: {{allowedSigners: {}}}\n", router.path("signers").display()));
        let keygen = |words: &[&str]| {
            let output = Command::new("ssh-keygen").args(words).current_dir(router.place.path()).output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", said(&output));
        };
        for key in ["ada", "eve"] {
            keygen(&["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", key]);
        }
        let public = fs::read_to_string(router.path("ada.pub")).unwrap();
        fs::write(router.path("signers"), format!("ada@example.net namespaces=\"patronus-plan\" {public}")).unwrap();
        let sign = |key: &str, namespace: &str| {
            let _ = fs::remove_file(router.path("plan.json.sig"));
            keygen(&["-q", "-Y", "sign", "-n", namespace, "-f", key, "plan.json"]);
        };
        router.good(&["plan", "--out", "plan.json"]);
        let apply = ["apply", "plan.json", "--yes"];
        let why = router.refused(&apply);
        assert!(why.contains("takes signed plans only") && why.contains("ssh-keygen -Y sign"), "{why}");
        sign("eve", "patronus-plan");
        assert!(router.refused(&apply).contains("not in the file of allowed signers"));
        sign("ada", "git");
        assert!(router.refused(&apply).contains("made for `git`"), "a signed commit approves no plan");
        sign("ada", "patronus-plan");
        let plan = fs::read_to_string(router.path("plan.json")).unwrap();
        fs::write(router.path("plan.json"), plan.replace("\"reason\": \"wanted", "\"reason\":  \"wanted")).unwrap();
        assert!(router.refused(&apply).contains("the plan was changed after it was signed"));
        fs::write(router.path("plan.json"), plan).unwrap();
        let output = router.run(&apply);
        assert!(output.status.success() && said(&output).contains("ada@example.net"), "{}", said(&output));
        let db = rusqlite::Connection::open(router.path("state/journal.db")).unwrap();
        let sql = "SELECT detail FROM audit WHERE what = 'apply' ORDER BY id DESC LIMIT 1";
        let audit: String = db.query_row(sql, [], |row| row.get(0)).unwrap();
        assert!(audit.contains("a plan signed by ada@example.net (SHA256:"), "{audit}");
    });
}

#[test]
fn a_deleted_site_comes_back_as_it_was_written_and_over_nothing() {
    in_netns(|| async {
        let router = Router::new();
        router.settings("");
        let paris = SITE.replace("berlin", "paris").replace("192.168.10", "192.168.20");
        let paris = format!("# The second one.\n{paris}");
        router.git.write("sites/paris.yaml", &paris);
        router.git.commit("paris");
        router.good(&["apply", "--yes"]);
        assert!(router.good(&["restore", "site"]).contains("No site was removed"));
        fs::remove_file(router.git.path().join("sites/paris.yaml")).unwrap();
        router.git.commit("no paris");
        router.good(&["apply", "--yes"]);
        let listed = router.good(&["restore", "site"]);
        assert!(listed.starts_with("paris  ") && listed.contains("removed 20"), "{listed}");
        let into = router.path("tree");
        let back = ["restore", "site", "paris", "--into", into.to_str().unwrap()];
        assert!(router.refused(&back).contains("there is no directory"), "a typing error makes no tree");
        fs::create_dir(&into).unwrap();
        assert!(router.good(&back).contains("sites/paris.yaml"));
        assert_eq!(fs::read_to_string(into.join("sites/paris.yaml")).unwrap(), paris, "comments and all");
        let why = router.refused(&back);
        assert!(why.contains("is there already and was left alone"), "{why}");
        assert!(router.good(&["restore", "site", "paris", "--print"]).contains("# The second one."));
        assert!(router.refused(&["restore", "site", "rome"]).contains("no site rome was removed"));
        router.settings("retention: 0s\n");
        assert!(router.refused(&["restore", "site", "paris"]).contains("within the retention"));
        router.settings("");
        router.git.write("sites/paris.yaml", &paris);
        router.good(&["apply", "--yes"]);
        assert!(router.good(&["restore", "site"]).contains("No site was removed"), "it is there again");
    });
}
