//! What the program says when something is wrong: one message each, with what to do. The texts are golden files;
//! `PATRONUS_REGENERATE=1` writes them anew.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{
    daemon::PATRONUS,
    netns::{in_netns, ip, nft, veth},
};

const SITE: &str = include_str!("reconcile/site.yaml");
const WORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/messages");

/// A directory for one test, and what is said in it.
struct Place {
    dir: tempfile::TempDir,
    wrong: Vec<String>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
        for sub in ["conf", "several", "broken", "empty", "siteless"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("conf/site.yaml", SITE);
        write(
            "several/site.yaml",
            &format!("{SITE}---\n{}", SITE.replace("berlin", "paris").replace("192.168.10", "192.168.20")),
        );
        write(
            "broken/site.yaml",
            &SITE
                .replace("protocol: udp", "protocol: upd")
                .replace("{failover: critical}}\n    g", "{failover: critcal}}\n    g"),
        );
        write(
            "siteless/class.yaml",
            "apiVersion: patronus.network/v1alpha1\nkind: SlaClass\nmetadata: {name: voice}\nspec: {latency: 100ms}\n",
        );
        write("good.yaml", "site: berlin\n");
        write("bad.yaml", "site: berlin\nranges: {tableBase: 7}\nstatedir: /var\n");
        // For users without privilege.
        let open = ["755", dir.path().to_str().unwrap()];
        assert!(Command::new("chmod").args(open).status().unwrap().success());
        Self { dir, wrong: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program here with these words; `%` stands for the directory. Returns exit status and output.
    fn run(&self, wrap: &[&str], words: &str) -> (i32, String) {
        let dir = self.dir.path().to_str().unwrap();
        let place = words.replace('%', dir);
        let mut line: Vec<&str> = wrap.to_vec();
        line.push(PATRONUS);
        line.extend(place.split_whitespace());
        let output = Command::new(line[0])
            .args(&line[1..])
            .env("NO_COLOR", "1")
            .env("PATRONUS_CONFIG", self.path("good.yaml"))
            .env("PATRONUS_STATE_DIR", self.path("state"))
            .env("PATRONUS_RUNTIME_DIR", self.path("run"))
            .env_remove("PATRONUS_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), steady(&text.replace(dir, "DIR")))
    }

    /// Checks what the program says against the golden file of this name.
    fn says(&mut self, name: &str, exit: i32, wrap: &[&str], words: &str) {
        let (code, text) = self.run(wrap, words);
        let whole = format!("$ patronus {}\n{text}[{code}]\n", words.replace('%', "DIR"));
        if code != exit {
            self.wrong.push(format!("{name}: exit status {code}, not {exit}\n{whole}"));
        }
        let file = Path::new(WORDS).join(format!("{name}.txt"));
        if std::env::var_os("PATRONUS_REGENERATE").is_some() {
            fs::create_dir_all(WORDS).unwrap();
            fs::write(&file, &whole).unwrap();
        }
        let golden = fs::read_to_string(&file).unwrap_or_default();
        if golden != whole {
            self.wrong.push(format!("{name}: it says\n{whole}and not\n{golden}"));
        }
    }

    fn finish(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

/// Without what differs from run to run: process ids, inodes, ids of plans, durations, times.
fn steady(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let line = match line.split_once("Z ") {
            Some((stamp, rest)) if stamp.len() > 18 && stamp.contains('T') => format!("TIME {}", rest.trim_start()),
            _ => line.to_owned(),
        };
        let line = after(&line, "pid ", "PID");
        let line = after(&line, "lock-", "INODE");
        let line = after(&line, "plan 0", "ID");
        let line = after(&line, "steps in ", "N");
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Puts a word in place of the number after a text.
fn after(line: &str, text: &str, word: &str) -> String {
    let Some((before, rest)) = line.split_once(text) else { return line.to_owned() };
    let number: String = rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '-').collect();
    if number.is_empty() { line.to_owned() } else { format!("{before}{text}{word}{}", &rest[number.len()..]) }
}

/// A router with the site's interfaces.
fn router() {
    for (name, address) in [("wan0", "198.51.100.2/24"), ("wwan0", "203.0.113.2/24"), ("lan0", "192.168.10.1/24")] {
        veth(name, &format!("{name}x"), address);
    }
    ip("route add default via 203.0.113.1 dev wwan0");
}

const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
/// In a mount namespace in which the program is missing.
const NO_NFT: [&str; 6] = ["unshare", "-m", "sh", "-c", "mount --bind /dev/null /usr/sbin/nft; exec \"$@\"", "sh"];

#[test]
fn wrong_words_settings_and_configurations() {
    in_netns(|| async {
        let mut place = Place::new();
        place.says("an-unknown-verb", 64, &[], "aply");
        place.says("an-unknown-option", 64, &[], "plan --nope");
        place.says("nothing-at-all", 64, &[], "");
        place.says("no-configuration", 78, &[], "plan");
        place.says("settings-that-are-wrong", 78, &[], "plan --config %/bad.yaml");
        place.says("settings-that-are-missing", 78, &[], "plan --config %/none.yaml");
        place.says("a-directory-that-is-missing", 1, &[], "plan %/none");
        place.says("a-directory-without-configuration", 1, &[], "plan %/empty");
        place.says("a-configuration-with-errors", 65, &[], "apply %/broken --yes");
        place.says("validate-without-a-site", 0, &[], "validate %/siteless");
        place.says("a-site-that-is-not-there", 78, &[], "plan %/conf --site rome");
        place.says("several-sites", 78, &["env", "-u", "PATRONUS_CONFIG"], "plan %/several");
        place.says("run-without-a-site", 78, &["env", "-u", "PATRONUS_CONFIG"], "run --dir %/conf");
        place.says("run-without-a-configuration", 78, &[], "run");
        place.says("a-daemon-that-does-not-run", 1, &[], "status --socket %/run/patronus.sock");
        place.says("a-kind-of-event-that-there-is-not", 64, &[], "events --kind failovers");
        let (settings, at) = (place.path("placed.yaml"), place.path("elsewhere"));
        fs::write(&settings, format!("stateDir: {0}\nruntimeDir: {0}\n", at.display())).unwrap();
        let settings = format!("PATRONUS_CONFIG={}", settings.display());
        let by_settings = ["env", "-u", "PATRONUS_STATE_DIR", "-u", "PATRONUS_RUNTIME_DIR", &settings];
        place.says("events-where-the-settings-say", 1, &by_settings, "events");
        let elsewhere = ["env", "PATRONUS_SOCKET=/nowhere/patronus.sock"];
        place.says("nothing-to-confirm", 1, &elsewhere, "confirm");
        place.says("nothing-to-undo", 1, &[], "rollback --socket /nowhere/patronus.sock");
        place.finish();
    });
}

#[test]
fn missing_programs_privileges_and_interfaces() {
    in_netns(|| async {
        let mut place = Place::new();
        place.says("an-interface-that-is-missing", 0, &[], "plan %/conf");
        router();
        for verb in ["plan %/conf", "apply %/conf --yes", "run --dir %/conf", "teardown --yes"] {
            let name = verb.split(' ').next().unwrap();
            place.says(&format!("{name}-without-nft"), 1, &NO_NFT, verb);
        }
        place.says(
            "apply-without-privilege",
            77,
            &NOBODY,
            "apply %/conf --yes --state-dir %/state2 --runtime-dir %/run2",
        );
        place.says("run-without-privilege", 77, &NOBODY, "run --dir %/conf --state-dir %/state2 --runtime-dir %/run2");
        place.says(
            "teardown-without-privilege",
            77,
            &NOBODY,
            "teardown --yes --state-dir %/state2 --runtime-dir %/run2",
        );
        place.says("plan-without-privilege", 77, &NOBODY, "plan %/conf");
        fs::write(place.path("file"), "").unwrap();
        place.says("a-state-directory-that-is-none", 0, &[], "apply %/conf --yes --state-dir %/file/state");
        place.says("a-runtime-directory-that-is-none", 1, &[], "apply %/conf --yes --runtime-dir %/file/run");
        place.finish();
    });
}

#[test]
fn plan_apply_and_teardown_in_turn() {
    in_netns(|| async {
        router();
        let mut place = Place::new();
        let (first, second) =
            (place.run(&[], "plan %/conf --output json"), place.run(&[], "plan %/conf --output json"));
        assert_eq!(first, second, "two plans of one state differ");
        assert!(!place.path("state").exists(), "a plan creates nothing");
        place.says("a-first-plan", 2, &[], "plan %/conf --detailed-exitcode --all");
        place.says("apply-without-a-terminal", 64, &[], "apply %/conf");
        let before = data_plane();
        place.says("apply-dry-run", 0, &[], "apply %/conf --dry-run");
        assert_eq!(data_plane(), before, "a dry run changed something");
        let lock = patronus::kernel::lock::Lock::acquire(&place.path("run"), "run").unwrap();
        place.says("apply-while-another-runs", 75, &[], "apply %/conf --yes");
        place.says("run-while-another-runs", 75, &[], "run --dir %/conf");
        place.says("teardown-while-another-runs", 75, &[], "teardown --yes");
        assert_eq!(place.run(&[], "plan %/conf").0, 0, "a plan waits for nobody");
        drop(lock);
        assert_eq!(data_plane(), before, "a refusal changed something");
        place.says("apply", 0, &[], "apply %/conf --yes");
        place.says("a-plan-with-nothing-to-do", 0, &[], "plan %/conf --detailed-exitcode");
        place.says("a-generation-that-is-to-come", 1, &[], "rollback --to 9 --yes");
        place.says("apply-with-nothing-to-do", 0, &[], "apply %/conf");
        ip("rule add pref 20001 from 10.0.0.1 lookup main");
        ip("route add blackhole 10.0.0.0/8 table 20001");
        place.says("objects-of-others-in-our-ranges", 0, &[], "plan %/conf");
        ip("rule del pref 20001 proto 157");
        place.says("drift", 2, &[], "plan %/conf --detailed-exitcode");
        nft("flush ruleset");
        place.says("teardown-after-a-flush", 0, &[], "teardown --yes");
        ip("rule del pref 20001 from 10.0.0.1");
        ip("route del blackhole 10.0.0.0/8 table 20001");
        assert_eq!(data_plane(), before, "the teardown left or took something");
        place.says("teardown-with-nothing-to-do", 0, &[], "teardown");
        place.finish();
    });
}

fn data_plane() -> String {
    let run = |program: &str, words: &str| {
        let output = Command::new(program).args(words.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let sysctls = run(
        "sh",
        "-c find${IFS}/proc/sys/net/ipv4/conf${IFS}-name${IFS}rp_filter${IFS}-exec${IFS}grep${IFS}-H${IFS}.${IFS}{}${IFS}+",
    );
    let all = ["-4 rule", "-6 rule", "-d -4 route show table all", "-6 route show table all proto 157"]
        .map(|words| run("ip", words));
    all.concat() + &run("nft", "list ruleset") + &sysctls
}
