//! The documentation: its commands run, its links lead somewhere, its tables are those of the program.
//!
//! A block of shell commands after `<!-- test -->` is run, with all such blocks of its file as one script, in a directory with
//! `examples/`, and in network, mount and process namespaces of its own. `<!-- test: exit N -->` expects that exit
//! status; `<!-- test-only: COMMAND -->` runs what the reader does by waiting or looking.
//! `PATRONUS_REGENERATE=1` rewrites what is generated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use patronus::{
    metrics,
    settings::{Settings, Source},
    state::Ranges,
};

use super::support::quiet::quiet;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown file, relative to the repository.
fn documents() -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path);
            }
        }
    }
    let mut found = vec![root().join("README.md")];
    walk(&root().join("docs"), &mut found);
    found.sort();
    found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect()
}

/// The marked commands of a document as one script.
fn script(document: &str) -> String {
    let mut script = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(command) = line.strip_prefix("<!-- test-only: ") {
            let _ = writeln!(script, "{}", command.trim_end_matches(" -->"));
        }
        let Some(mark) = line.strip_prefix("<!-- test") else { continue };
        let Some(mark) = mark.strip_suffix(" -->").filter(|mark| !mark.starts_with("-only")) else { continue };
        let fence = lines.find(|line| !line.is_empty());
        assert_eq!(fence, Some("```sh"), "a ```sh block follows {line}");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let block = block.join("\n");
        match mark.strip_prefix(": exit ") {
            Some(status) => {
                let _ = writeln!(script, "set +e\n(\n{block}\n); got=$?\nset -e\ntest $got -eq {status}");
            }
            None => {
                let _ = writeln!(script, "{block}");
            }
        }
    }
    script
}

/// Runs a script where it can harm nobody; what it said, and whether it went well.
fn run(script: &str) -> (bool, String) {
    let place = tempfile::tempdir().unwrap();
    for shipped in ["examples", "policies"] {
        let copied = Command::new("cp").arg("-r").arg(root().join(shipped)).arg(place.path()).status().unwrap();
        assert!(copied.success());
    }
    let file = place.path().join(".script");
    let begin = "mount -t tmpfs tmpfs /run\nmkdir /run/netns\nip link set lo up\nexport HOME=$PWD\n";
    fs::write(&file, format!("{begin}{script}")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_patronus")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let log = place.path().join(".log");
    // A file and not a pipe: what the script leaves behind would keep a pipe open.
    let out = fs::File::create(&log).unwrap();
    let status = Command::new("timeout")
        // The first process of a namespace of its own hears no SIGTERM.
        .args([
            "-k",
            "5",
            "120",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-eux",
        ])
        .arg(&file)
        .current_dir(place.path())
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    (status.success(), fs::read_to_string(log).unwrap())
}

fn commands_work(path: &str) {
    let script = script(&read(path));
    assert!(!script.is_empty(), "{path} has no marked command");
    let (good, said) = run(&script);
    assert!(good, "the commands of {path} do not work:\n{said}");
}

#[test]
fn the_commands_of_the_tutorial_work() {
    let _quiet = quiet();
    commands_work("docs/tutorial.md");
}

#[test]
fn the_commands_of_the_guides_work() {
    for path in documents().iter().filter(|path| path.starts_with("docs/how-to/")) {
        if !script(&read(path)).is_empty() {
            commands_work(path);
        }
    }
}

#[test]
fn the_runner_sees_a_command_that_fails() {
    let document = "<!-- test -->\n```sh\ntrue\nfalse\ntrue\n```\n";
    assert!(!run(&script(document)).0);
    assert!(!run(&script("<!-- test: exit 65 -->\n```sh\npatronus validate examples/fleet\n```\n")).0);
    assert!(run(&script("<!-- test: exit 64 -->\n```sh\npatronus walidate\n```\n")).0);
}

/// The text of a heading as a link names it.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for path in documents() {
        let text = read(&path);
        let here = root().join(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = if file.is_empty() { here.clone() } else { here.parent().unwrap().join(file) };
            let found = fs::read_to_string(&there).ok();
            let anchored = |text: &String| text.lines().any(|line| line.starts_with('#') && slug(line) == anchor);
            if !there.exists() || (!anchor.is_empty() && !found.as_ref().is_some_and(anchored)) {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_test_that_the_docs_name_exists() {
    fn walk(directory: &Path, code: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, code);
            } else if path.extension().is_some_and(|end| end == "rs") {
                code.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut code = String::new();
    walk(&root().join("src"), &mut code);
    walk(&root().join("tests"), &mut code);
    let text = read("docs/architecture.md");
    // A test is named by a sentence of at least four words.
    let named = text.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() >= 3 && !word.contains(' '));
    let lost: Vec<&str> = named.filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    let invariants = text.split("**Invariant:").skip(1);
    let unheld: Vec<_> = invariants.filter(|rest| !rest.split("\n\n").next().unwrap().contains('`')).collect();
    assert!(unheld.is_empty(), "invariants without a test: {unheld:#?}");
}

/// Compares a generated document, or rewrites it.
pub fn generated(path: &str, text: &str) {
    let file = root().join(path);
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::write(&file, text).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(there == text, "{path} is out of date: run `PATRONUS_REGENERATE=1 cargo test --test it`");
}

/// The exit codes as the source has them: comment, name and number.
fn exit_codes() -> Vec<(u8, String)> {
    let source = read("src/cli/mod.rs");
    let body = source.split("pub enum Exit {").nth(1).and_then(|rest| rest.split('}').next()).unwrap().to_owned();
    let lines: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let number = |line: &str| line.trim_end_matches(',').rsplit(' ').next().unwrap().parse().unwrap();
    lines.chunks(2).map(|pair| (number(pair[1]), pair[0].trim_start_matches("/// ").to_owned())).collect()
}

fn help(command: &clap::Command, name: &str, out: &mut String) {
    let shown = command.clone().bin_name(name).term_width(100).mut_args(|arg| arg.hide_env_values(true));
    let help = shown.clone().render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(out, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        help_of(sub, name, out);
    }
}

fn help_of(command: &clap::Command, above: &str, out: &mut String) {
    help(command, &format!("{above} {}", command.get_name()), out);
}

#[test]
fn the_reference_of_verbs_is_that_of_the_program() {
    let mut out = "# Verbs\n\nGenerated from the program. Results go to standard output, progress and logs to standard \
        error;\n`PATRONUS_LOG` filters the log (`info`, `patronus=debug`) and `PATRONUS_LOG_FORMAT=json` makes it JSON;\n\
        `NO_COLOR` is respected.\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n"
        .to_owned();
    for (code, meaning) in exit_codes() {
        let _ = writeln!(out, "| {code} | {meaning} |");
    }
    help(&patronus::cli::command(), "patronus", &mut out);
    generated("docs/reference/verbs.md", &out);
}

#[test]
fn the_reference_of_the_doctor_has_every_check() {
    let mut out =
        "# What the doctor looks at\n\nGenerated from the program. `patronus doctor` makes these checks, one line \
        each, and says what to do about what is not ok.\nIt changes nothing: what has to be tried is tried in an empty \
        network namespace. Exit status 1 if a check fails, 0 if not;\n`warn` works and may bite later, `skipped` could \
        not be made, with the reason. `--output json` has `format_version`, `checks`\n(`id`, `verdict`, `says`, \
        `remedies`) and `summary`; the names of the checks stay.\n\n| check | is ok when |\n|---|---|\n"
            .to_owned();
    for check in patronus::doctor::CHECKS {
        let _ = writeln!(out, "| `{}` | {} |", check.id, check.about);
    }
    generated("docs/reference/doctor.md", &out);
}

#[test]
fn the_reference_of_metrics_is_that_of_the_program() {
    let text = metrics::render(&super::records::status());
    let mut out =
        "# Metrics\n\nGenerated from the program. `GET /metrics` on `127.0.0.1:9469` unless the settings say \
        otherwise;\n`/healthz` says whether the loop is alive, `/readyz` whether a configuration is in force. A figure \
        that is not known\nhas no series, and what left the configuration has none either.\n\n\
        | metric | type | labels | meaning |\n|---|---|---|---|\n"
            .to_owned();
    let metric = |line: &str, word: &str| line.strip_prefix(word).and_then(|rest| rest.split_once(' ')).map(owned);
    let helps = text.lines().filter_map(|line| metric(line, "# HELP "));
    for (name, help) in helps {
        let kind = text.lines().filter_map(|line| metric(line, "# TYPE ")).find(|(n, _)| *n == name).unwrap().1;
        // A histogram's series have a suffix.
        let exact = format!("{name}{{");
        let of = |start: &str| text.lines().find(|line| !line.starts_with('#') && line.starts_with(start));
        let series = of(&exact).or_else(|| of(&name)).unwrap();
        let labels = series.split('{').nth(1).and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let labels: BTreeSet<String> =
            labels.split("\",").filter_map(|label| label.split('=').next()).map(|l| format!("`{l}`")).collect();
        let labels = labels.into_iter().filter(|l| l != "`le`").collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "| `{name}` | {kind} | {labels} | {help} |");
    }
    generated("docs/reference/metrics.md", &out);
    // The sample has a series of every metric.
    let source = read("src/metrics.rs") + &read("src/metrics/source.rs");
    let quoted = source.split('"').skip(1).step_by(2).filter(|word| word.starts_with("patronus_"));
    let missing: Vec<&str> = quoted.filter(|name| !out.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn owned((name, rest): (&str, &str)) -> (String, String) {
    (name.to_owned(), rest.to_owned())
}

#[test]
fn the_reference_of_settings_shows_the_defaults() {
    let text = read("docs/reference/settings.md");
    let yaml = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let shown = Settings::parse("settings.md", yaml.as_bytes()).unwrap();
    let source = Some(Source::Dir("/etc/patronus/site".into()));
    assert_eq!(shown, Settings { site: Some("berlin".parse().unwrap()), source, ..Settings::default() });
    let git = text.split("```yaml\n").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
    let Some(Source::Git(spec)) = Settings::parse("settings.md", git.as_bytes()).unwrap().source else { panic!() };
    let bare = Settings::parse("p", b"source: {git: {url: 'https://git.example.net/network.git'}}").unwrap().source;
    let Some(Source::Git(bare)) = bare else { panic!() };
    assert_eq!(
        (&spec.url, &spec.reference, spec.interval, spec.jitter, spec.timeout),
        (&bare.url, &bare.reference, bare.interval, bare.jitter, bare.timeout)
    );
    let fields = read("src/settings.rs");
    let file = fields.split("struct File {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap();
    for field in file.lines().filter_map(|line| line.trim().split_once(':').map(|(name, _)| name)) {
        let words: Vec<&str> = field.split('_').collect();
        let camel =
            words[1..].iter().fold(words[0].to_owned(), |all, word| all + &word[..1].to_uppercase() + &word[1..]);
        assert!(field.starts_with("///") || text.contains(&format!("\n{camel}:")), "{camel}");
    }
}

#[test]
fn the_reference_of_kernel_objects_has_the_real_numbers_and_chains() {
    let text = read("docs/reference/kernel-objects.md");
    let ranges = Ranges::default();
    let numbers = [
        format!("0x{:08x}", ranges.target_mask.bits()),
        format!("0x{:08x}", ranges.policy_mask.bits()),
        ranges.main_priority().to_string(),
        ranges.priority_base.to_string(),
        ranges.protocol.to_string(),
    ];
    for number in numbers {
        assert!(text.contains(&format!("`{number}")), "{number} is not in the reference");
    }
    let template = read("templates/patronus.nft.j2");
    let chains = template.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.split(['{', ' ']).next());
    for chain in chains {
        assert!(text.contains(&format!("`{chain}")), "chain {chain} is not in the reference");
    }
}

#[test]
fn the_reference_of_the_store_has_every_table_and_column() {
    let text = read("docs/reference/store.md");
    let schema = read("src/store/schema.rs");
    let schema = schema.split("#[cfg(test)]").next().unwrap();
    // A later definition of a table replaces an earlier one.
    let tables: BTreeMap<&str, &str> =
        schema.split("CREATE TABLE ").skip(1).map(|table| (table.split(' ').next().unwrap(), table)).collect();
    for (name, table) in &tables {
        assert!(text.contains(&format!("`{name}`")), "table {name}");
        let body = table[table.find('(').unwrap() + 1..].split(';').next().unwrap();
        let columns = body.split([',', '\n']).map(str::trim).filter_map(|part| part.split_once(' '));
        let types = ["INTEGER", "TEXT", "BLOB", "REAL"];
        for (column, _) in columns.filter(|(_, rest)| types.iter().any(|kind| rest.starts_with(kind))) {
            assert!(text.contains(&format!("`{column}`")), "{name}.{column}");
        }
    }
    assert!(tables.len() >= 8);
}

#[test]
fn the_pipeline_runs_the_readme_s_test_command_with_its_packages() {
    let (readme, pipeline) = (read("README.md"), read(".ci/run"));
    assert!(readme.contains("\n    cargo test\n") || readme.contains("```sh\ncargo test\n```"), "the command is shown");
    assert!(pipeline.contains("\ncargo test\n"), "and is the pipeline's");
    let packages = |text: &str| -> BTreeSet<String> {
        let line = text.replace("\\\n", " ");
        let line = line.lines().find(|line| line.contains("apt-get install")).unwrap().to_owned();
        let line = line.split("--no-install-recommends").nth(1).unwrap().split("&&").next().unwrap().to_owned();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(packages(&readme), packages(&pipeline));
}

#[test]
fn the_shipped_systemd_unit_and_alerts_are_sound() {
    let place = tempfile::tempdir().unwrap();
    let binary = place.path().join("patronus");
    fs::write(&binary, "#!/bin/sh\n").unwrap();
    let mut executable = fs::metadata(&binary).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut executable, 0o755);
    fs::set_permissions(&binary, executable).unwrap();
    let unit = read("examples/systemd/patronus.service").replace("/usr/local/bin/patronus", binary.to_str().unwrap());
    let file = place.path().join("patronus.service");
    fs::write(&file, unit).unwrap();
    let checked = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    let about: Vec<&str> = said.lines().filter(|line| line.contains("patronus")).collect();
    assert!(about.is_empty(), "{about:#?}");
    let rules = root().join("examples/prometheus/patronus.rules.yml");
    let checked = Command::new("promtool").args(["check", "rules"]).arg(rules).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let alerts = read("examples/prometheus/patronus.rules.yml");
    let known = metrics::render(&super::records::status());
    for name in alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("patronus_")) {
        assert!(known.contains(&format!("# TYPE {name} ")), "no such metric: {name}");
    }
}
