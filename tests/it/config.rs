//! Configuration: valid and invalid samples, schema drift, hostile input.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use patronus::{
    config::{
        self, Config, Snapshot,
        schema::{self, Kind, Schemas},
    },
    diag::{self, CODES, Diagnostic},
    settings::{Settings, SettingsError},
    validate::{self, Options, intent::Intent},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            found.push(path);
        }
    }
}

/// The snapshot of files and directories, with names relative to `base`.
fn snapshot(base: &Path, paths: &[PathBuf]) -> Snapshot {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() { yaml_files(path, &mut files) } else { files.push(path.clone()) }
    }
    let named = files.into_iter().map(|path| {
        let name = path.strip_prefix(base).unwrap_or(&path).to_str().unwrap().to_owned();
        (name, fs::read(&path).unwrap())
    });
    Snapshot { revision: "test".into(), files: named.collect(), commit: None }
}

fn inspect(snapshot: &Snapshot, options: &Options) -> (Config, Option<Intent>, Vec<Diagnostic>) {
    let (config, mut found) = config::load(snapshot);
    let (intent, more) = validate::check_with(&config, options);
    found.extend(more);
    diag::sort(&mut found);
    (config, intent, found)
}

fn one(text: &str) -> Snapshot {
    Snapshot {
        revision: "test".into(),
        files: BTreeMap::from([("a.yaml".to_owned(), text.as_bytes().to_vec())]),
        commit: None,
    }
}

fn assert_valid(name: &str, snapshot: &Snapshot) -> Intent {
    let (config, intent, found) = inspect(snapshot, &Options::default());
    let shown = diag::terminal(&found, config.sources(), false);
    intent.unwrap_or_else(|| panic!("{name} is not valid:\n{shown}"))
}

#[test]
fn the_examples_are_valid() {
    for example in ["one-site", "two-lines", "hub-and-branches", "fleet"] {
        let directory = root().join("examples").join(example);
        assert_valid(example, &snapshot(&directory, std::slice::from_ref(&directory)));
    }
}

#[test]
fn the_valid_samples_are_valid() {
    let directory = root().join("tests/config/valid");
    let every = directory.join("every-field.yaml");
    assert_valid("every-field", &snapshot(&directory, &[every]));
    let with = [directory.join("with-policies.yaml"), root().join("policies")];
    let intent = assert_valid("with-policies", &snapshot(root(), &with));
    let site = intent.sites().values().next().unwrap();
    assert_eq!(site.policies.len(), 6, "every policy of the library applies");
}

#[test]
fn every_policy_file_is_valid_alone() {
    let mut files = Vec::new();
    yaml_files(&root().join("policies"), &mut files);
    assert!(files.len() >= 5);
    for file in files {
        assert_valid(file.to_str().unwrap(), &snapshot(root(), std::slice::from_ref(&file)));
    }
}

/// Compares a text with the file that holds what it should be; `PATRONUS_REGENERATE=1` writes the file instead.
fn expect_file(path: &Path, actual: &str, stale: &mut Vec<String>) {
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, actual).unwrap();
        return;
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    if wanted != actual {
        stale.push(format!("{}: expected\n{wanted}\nfound\n{actual}", path.display()));
    }
}

fn assert_current(stale: &[String]) {
    assert!(stale.is_empty(), "run again with PATRONUS_REGENERATE=1 and review:\n{}", stale.join("\n"));
}

/// The samples are checked for a router with few target numbers and one protected prefix, so that a small
/// file can break those limits.
fn sample_options() -> Options {
    Options {
        target_mask: "0xf0000000".parse().unwrap(),
        protected: vec!["198.18.0.0/24".parse().unwrap()],
        ..Options::default()
    }
}

fn samples(directory: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.retain(|path| path.is_dir() || path.extension().is_some_and(|end| end == "yaml"));
    entries.sort();
    entries
}

#[test]
fn every_fault_is_found_and_shown_as_expected() {
    let directory = root().join("tests/config/invalid");
    let (mut stale, mut codes) = (Vec::new(), BTreeSet::new());
    for sample in samples(&directory) {
        let (config, intent, found) = inspect(&snapshot(&directory, std::slice::from_ref(&sample)), &sample_options());
        let name = sample.file_stem().unwrap().to_str().unwrap();
        assert_eq!(intent.is_some(), name.starts_with("warning-"), "{name}: {found:?}");
        assert!(!found.is_empty(), "{name}");
        codes.extend(found.iter().map(|d| d.code));
        let shown = diag::terminal(&found, config.sources(), false);
        expect_file(&sample.with_extension("expected"), &shown, &mut stale);
    }
    let directory = root().join("tests/config/invalid-settings");
    for sample in samples(&directory) {
        let name = sample.file_name().unwrap().to_str().unwrap();
        let error = Settings::parse(name, &fs::read(&sample).unwrap()).unwrap_err();
        let SettingsError::Invalid { rendered, found, .. } = error else { panic!("{name}: {error}") };
        codes.extend(found.iter().map(|d| d.code));
        expect_file(&sample.with_extension("expected"), &format!("{rendered}\n"), &mut stale);
    }
    assert_current(&stale);
    codes.extend(super::prove::CODES_OF_TESTS);
    let missing: Vec<_> = CODES.iter().filter(|info| !codes.contains(&info.is)).map(|info| info.code).collect();
    assert!(missing.is_empty(), "codes without a sample: {missing:?}");
}

#[test]
fn codes_are_numbered_in_order() {
    assert!(CODES.windows(2).all(|two| two[0].code < two[1].code));
    assert!(CODES.iter().all(|info| info.is.info() == info));
}

#[test]
fn the_schemas_are_current() {
    let mut stale = Vec::new();
    let file = |name: &str| root().join("schema").join(format!("{name}.schema.json"));
    for kind in Kind::ALL {
        let text = format!("{:#}\n", schema::document(kind));
        expect_file(&file(&kind.text().to_lowercase()), &text, &mut stale);
    }
    expect_file(&file("patronus"), &format!("{:#}\n", schema::any()), &mut stale);
    assert_current(&stale);
}

#[test]
fn the_schema_of_any_document_is_a_valid_schema_and_takes_the_example() {
    let validator = jsonschema::validator_for(&schema::any()).unwrap();
    let text = fs::read_to_string(root().join("examples/one-site/berlin.yaml")).unwrap();
    let (_, found) = config::load(&one(&text));
    assert!(found.is_empty(), "{found:?}");
    let document: serde_json::Value = yaml_serde::from_str(&text).unwrap();
    assert!(validator.is_valid(&document));
}

/// Prose for people, generated so that it cannot drift: one section per kind, one table per object.
fn reference() -> String {
    let mut out = String::from(
        "# The configuration language\n\nGenerated from the types that read it (`PATRONUS_REGENERATE=1 cargo test --test it config::`).\n\n\
         Every document has `apiVersion`, `kind`, `metadata` and `spec`. Durations, ratios and rates carry units;\n\
         booleans are `true` and `false`; unknown fields are errors. `${name}` in a text is replaced by the `vars` of\n\
         the site that the object applies to. A field marked * is required.\n\n\
         Limits: 1 MiB, 100,000 values and 10,000 documents a file; 50,000 values a document; 10,000 files and 16 MiB a tree.\n\n\
         Derived inner addresses of a VXLAN tunnel with id *n*: the *(n mod 32,512)*-th /31 from 169.254.1.0, and\n\
         fe80::1/64 and fe80::2/64; the end whose `site/endpoint` sorts first has the first of each.\n",
    );
    for kind in Kind::ALL {
        let schema = schema::document(kind);
        let _ = write!(out, "\n## {}\n\n{}\n", kind.text(), schema["description"].as_str().unwrap_or_default());
        if kind == Kind::Site {
            table(&mut out, "metadata", &schema["properties"]["metadata"]);
        }
        table(&mut out, "spec", &schema["properties"]["spec"]);
    }
    out
}

fn table(out: &mut String, path: &str, schema: &serde_json::Value) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(|r| r.as_str()).collect();
    let _ = write!(out, "\n### `{path}`\n\n| field | is | meaning |\n|---|---|---|\n");
    let mut inner = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let star = if required.contains(&name.as_str()) { " *" } else { "" };
        let about = field["description"].as_str().unwrap_or_default().replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(out, "| `{name}`{star} | {} | {about} |", what(field));
        let here = format!("{path}.{name}");
        if field["properties"].is_object() && field["type"] == "object" {
            inner.push((here, field));
        } else if field["items"]["properties"].is_object() {
            inner.push((format!("{here}[]"), &field["items"]));
        } else if field["additionalProperties"]["properties"].is_object() && ["endpoints"].contains(&name.as_str()) {
            inner.push((format!("{here}.NAME"), &field["additionalProperties"]));
        }
    }
    for (path, schema) in inner {
        table(out, &path, schema);
    }
}

fn what(field: &serde_json::Value) -> String {
    let expects = field["x-expects"].as_str().map(ToOwned::to_owned);
    let items =
        || field["items"]["x-expects"].as_str().map_or("a list".to_owned(), |item| format!("a list; each is {item}"));
    let range = match (&field["minimum"], &field["maximum"]) {
        (serde_json::Value::Number(min), serde_json::Value::Number(max)) => format!(", {min} to {max}"),
        (serde_json::Value::Number(min), _) => format!(", at least {min}"),
        (_, serde_json::Value::Number(max)) => format!(", at most {max}"),
        _ => String::new(),
    };
    let plain = match field["type"].as_str() {
        Some("array") => items(),
        Some("object") => "a mapping".into(),
        Some("integer") => format!("a whole number{range}"),
        Some("boolean") => "`true` or `false`".into(),
        Some("string") if field["enum"].is_array() => format!("one of {}", field["enum"]),
        Some("string") => "text".into(),
        _ => "anything".into(),
    };
    expects.unwrap_or(plain).replace('|', "\\|")
}

fn diagnostics() -> String {
    let mut out = String::from(
        "# Diagnostics\n\nGenerated. A code never changes its meaning. `patronus validate --explain CODE` prints a row of this list.\n",
    );
    for info in CODES {
        let _ = write!(out, "\n## {}: {}\n\n{}\n", info.code, info.title, info.explanation);
    }
    out
}

#[test]
fn the_reference_is_current() {
    let mut stale = Vec::new();
    expect_file(&root().join("docs/reference/configuration.md"), &reference(), &mut stale);
    expect_file(&root().join("docs/reference/diagnostics.md"), &diagnostics(), &mut stale);
    assert_current(&stale);
}

/// Time that this thread has spent on a processor, in which the load of other tests does not show (proc(5),
/// `schedstat`).
fn busy() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Refused in less than a second of processor time, in a debug build too.
fn assert_refused_quickly(what: &str, text: &[u8]) {
    let files = BTreeMap::from([("a.yaml".to_owned(), text.to_vec())]);
    let before = busy();
    let (config, intent, found) = inspect(&Snapshot { revision: "x".into(), files, commit: None }, &Options::default());
    let shown = diag::terminal(&found, config.sources(), false);
    let took = busy().checked_sub(before).unwrap();
    assert!(intent.is_none() && !shown.is_empty(), "{what}: accepted");
    assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    println!("{what}: {took:?}, {} findings", found.len());
}

#[test]
fn hostile_yaml_is_refused_quickly() {
    const MIB: usize = 1 << 20;
    let aliases: String = (0..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
        let each = vec![format!("*a{n}"); 10].join(",");
        format!("{text}a{}: &a{} [{each}]\n", n + 1, n + 1)
    });
    let numbered = |f: &dyn Fn(usize) -> String, n: usize| (0..n).map(f).collect::<String>();
    let site = "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: a}\nspec:\n";
    assert_refused_quickly("a scalar of 20 MB", &vec![b'a'; 20 << 20]);
    assert_refused_quickly("a scalar of 1 MiB", &vec![b'a'; MIB]);
    assert_refused_quickly("flow lists, nested", &vec![b'['; MIB]);
    assert_refused_quickly("flow mappings, nested", "{a: ".repeat(MIB / 4).as_bytes());
    assert_refused_quickly("block lists, nested", "- ".repeat(MIB / 2).as_bytes());
    assert_refused_quickly("block mappings, nested", numbered(&|n| format!("{}a:\n", " ".repeat(n)), 1400).as_bytes());
    assert_refused_quickly("explicit keys, nested", "? ".repeat(MIB / 2).as_bytes());
    assert_refused_quickly("aliases that explode", aliases.as_bytes());
    assert_refused_quickly("one key a hundred thousand times", "a: 1\n".repeat(MIB / 5).as_bytes());
    assert_refused_quickly("a hundred thousand keys", numbered(&|n| format!("k{n}: 1\n"), 90_000).as_bytes());
    assert_refused_quickly(
        "unknown fields",
        format!("{site}{}", numbered(&|n| format!("  f{n}: 1\n"), 80_000)).as_bytes(),
    );
    assert_refused_quickly("broken documents", "--- [\n".repeat(MIB / 6).as_bytes());
    assert_refused_quickly("empty kinds", "--- {kind: x}\n".repeat(MIB / 14).as_bytes());
    assert_refused_quickly("quotes", &vec![b'"'; MIB]);
    assert_refused_quickly("anchors", numbered(&|n| format!("- &a{n} x\n"), 80_000).as_bytes());
    let anchored: String = numbered(&|n| format!("&b{n} ["), 30);
    assert_refused_quickly("anchors in anchors", format!("a: {anchored}{}", "x,".repeat(MIB / 2 - 200)).as_bytes());
    assert_refused_quickly("tags", "- !a x\n".repeat(MIB / 7).as_bytes());
    assert_refused_quickly("bytes that are not UTF-8", &vec![0xff; MIB]);
    assert_refused_quickly("one line of many values", format!("a: [{}]", "x,".repeat(MIB / 2 - 4)).as_bytes());
    assert_refused_quickly(
        "policies with faults",
        format!("{site}  policies:\n{}", numbered(&|n| format!("    p{n}: {{priority: x}}\n"), 40_000)).as_bytes(),
    );
}

#[test]
fn a_list_that_is_cut_short_says_so() {
    let cut = |text: &str| {
        let (_, _, found) = inspect(&one(text), &Options::default());
        let last = found.last().unwrap();
        assert_eq!(last.code.info().code, "PAT0008", "{last:?}");
        assert!(found.len() <= diag::MAX_FOUND + 1);
        last.message.clone()
    };
    assert_eq!(
        cut(&"--- {kind: x}\n".repeat(1_500)),
        "and 500 more: reading found 1500 in all, and the first 1000 are shown"
    );
    assert_eq!(cut(&"a: 1\n".repeat(500)), "the rest of the file was not read after 100 errors");
    let fields = (0..60).map(|n| format!("  f{n}: 1\n")).collect::<Vec<_>>().concat();
    let site = format!("apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {{name: a}}\nspec:\n{fields}");
    let (_, _, found) = inspect(&one(&site), &Options::default());
    assert!(found.iter().any(|d| d.message == "and 10 more faults in this document"), "{found:?}");
}

/// Why repeated keys are refused: a reader without the guard takes the last one and says nothing.
#[test]
fn a_reader_without_the_guard_drops_the_first_of_two_equal_keys() {
    let text = fs::read_to_string(root().join("tests/config/invalid/key-given-twice.yaml")).unwrap();
    let (_, intent, found) = inspect(&one(&text), &Options::default());
    assert!(intent.is_none() && found[0].code.info().code == "PAT0004");
    let sabotaged = text.lines().filter(|line| !line.contains("location: Berlin")).collect::<Vec<_>>().join("\n");
    assert!(assert_valid("without the first", &one(&sabotaged)).sites().len() == 1, "only the guard refuses it");
}

#[test]
fn the_limits_are_checked_before_parsing() {
    let many = |count: usize, size: usize| Snapshot {
        revision: "x".into(),
        files: (0..count).map(|n| (format!("{n}.yaml"), vec![b'['; size])).collect(),
        commit: None,
    };
    for snapshot in [many(10_001, 1), many(17, 1 << 20), many(1, (1 << 20) + 1)] {
        let (config, intent, found) = inspect(&snapshot, &Options::default());
        assert!(intent.is_none());
        assert_eq!(found.iter().map(|d| d.code.info().code).collect::<Vec<_>>(), ["PAT0003"]);
        assert_eq!(config.objects(), 0);
    }
}

mod shadow;
mod verbs;

mod arbitrary {
    use proptest::{
        collection::vec,
        prelude::*,
        test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner},
    };

    use super::*;

    /// Pieces that samples are mutated with: YAML's own marks and the language's words.
    const PIECES: [&str; 28] = [
        "---\n", "...\n", ": ", "- ", "? ", "[", "]", "{", "}", "&a ", "*a ", "!!x ", "<<: ", "|\n", ">\n", "\"", "'",
        "# ", "\t", "\r\n", "\u{feff}", "\u{0}", "${", "}", "null", "-1", "1e999", "é",
    ];

    /// Compiled once for a hundred thousand inputs.
    static HELD: LazyLock<Arc<Schemas>> = LazyLock::new(Schemas::held);

    fn never_panics(bytes: &[u8]) {
        LazyLock::force(&HELD);
        let files = BTreeMap::from([("a.yaml".to_owned(), bytes.to_vec())]);
        let (config, intent, found) =
            inspect(&Snapshot { revision: "x".into(), files, commit: None }, &Options::default());
        assert_eq!(intent.is_none(), diag::has_errors(&found));
        // Rendering is part of the promise, and costs more than the rest: not for each.
        if bytes.len().is_multiple_of(8) {
            let _ = diag::terminal(&found, config.sources(), false);
            let _ = diag::sarif(&found, config.sources());
            let _ = diag::github(&found, config.sources());
            let _ = diag::json(&found, config.sources());
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        for directory in ["tests/config", "examples", "policies"] {
            yaml_files(&root().join(directory), &mut files);
        }
        files.iter().map(|file| fs::read(file).unwrap()).filter(|text| text.len() < 1500).collect()
    }

    fn mutate(mut text: Vec<u8>, edits: &[(usize, u8, usize, usize)]) -> Vec<u8> {
        for (at, how, length, piece) in edits {
            let at = at % (text.len() + 1);
            let end = (at + length).min(text.len());
            match how % 4 {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..at, PIECES[piece % PIECES.len()].bytes())),
                2 => text[at..end].reverse(),
                _ => {
                    let copy = text[at..end].to_vec();
                    drop(text.splice(at..at, copy));
                }
            }
        }
        text
    }

    /// A fixed seed: the same hundred thousand inputs everywhere.
    fn runner(cases: u32) -> TestRunner {
        let runs = Runs { cases, failure_persistence: None, ..Runs::default() };
        TestRunner::new_with_rng(runs, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    }

    #[test]
    fn bytes_never_panic() {
        runner(30_000)
            .run(&vec(any::<u8>(), 0..64), |bytes| {
                never_panics(&bytes);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn text_of_yaml_marks_never_panics() {
        let text =
            vec(0..PIECES.len(), 0..24).prop_map(|picks| picks.into_iter().map(|n| PIECES[n]).collect::<String>());
        runner(20_000)
            .run(&text, |text| {
                never_panics(text.as_bytes());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn mutated_samples_never_panic() {
        let seeds = seeds();
        assert!(seeds.len() > 50);
        // Rendering and checking are what a fault in a sound file reaches, so half of all inputs begin as one.
        let edits = vec((any::<usize>(), any::<u8>(), 1_usize..20, any::<usize>()), 1..6);
        let case = (0..seeds.len(), edits);
        runner(50_000)
            .run(&case, |(n, edits)| {
                never_panics(&mutate(seeds[n].clone(), &edits));
                Ok(())
            })
            .unwrap();
    }
}
