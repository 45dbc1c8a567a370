//! Configuration: valid and invalid samples, schema drift, hostile input.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patronus::{
    config::{
        self, Config, Snapshot,
        schema::{self, Kind},
    },
    diag::{self, CODES, Diagnostic},
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
    Snapshot { revision: "test".into(), files: named.collect() }
}

fn inspect(snapshot: &Snapshot, options: &Options) -> (Config, Option<Intent>, Vec<Diagnostic>) {
    let (config, mut found) = config::load(snapshot);
    let (intent, more) = validate::check_with(&config, options);
    found.extend(more);
    diag::sort(&mut found);
    (config, intent, found)
}

fn one(text: &str) -> Snapshot {
    Snapshot { revision: "test".into(), files: BTreeMap::from([("a.yaml".to_owned(), text.as_bytes().to_vec())]) }
}

fn assert_valid(name: &str, snapshot: &Snapshot) -> Intent {
    let (config, intent, found) = inspect(snapshot, &Options::default());
    let shown = diag::terminal(&found, config.sources(), false);
    intent.unwrap_or_else(|| panic!("{name} is not valid:\n{shown}"))
}

#[test]
fn the_examples_are_valid() {
    for example in ["one-site", "hub-and-branches", "fleet"] {
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
