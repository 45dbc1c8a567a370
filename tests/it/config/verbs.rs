//! `patronus validate` and `patronus schema` as a person or a pipeline runs them.

use std::process::{Command, Output};

use serde_json::Value;

use super::*;

fn patronus(arguments: &[&str]) -> Output {
    with(arguments, &[])
}

fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patronus"));
    for name in ["NO_COLOR", "CLICOLOR_FORCE", "PATRONUS_CONFIG", "PATRONUS_SITE"] {
        command.env_remove(name);
    }
    command.current_dir(root()).args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A tree of two sites, one of them faulty, and a warning in the other.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let site = |name: &str, net: u8, rest: &str| {
        format!(
            "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {{name: {name}, labels: {{role: branch}}}}\nspec:\n  \
             lan: [{{interface: lan0, prefixes: [10.{net}.0.0/24]}}]\n  endpoints: {{fiber: {{interface: wan0}}}}\n{rest}"
        )
    };
    fs::create_dir(dir.path().join("sites")).unwrap();
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    write(
        "sites/a.yaml",
        site("a", 1, "  paths: {fiber: {from: fibre, to: internet, probe: {targets: [1.1.1.1, 9.9.9.9]}}}\n"),
    );
    write("sites/b, 100%.yaml", site("b", 2, "  paths:\n    fiber: {from: fiber, to: internet}\n"));
    dir
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

#[test]
fn a_valid_tree_ends_with_0_and_one_line() {
    let output = patronus(&["validate", "examples/hub-and-branches"]);
    assert_eq!((status(&output), stdout(&output)), (0, ""));
    assert_eq!(stderr(&output), "valid: 3 sites, 29 objects in 5 files\n");
}

#[test]
fn faults_are_shown_at_their_places_and_end_with_65() {
    let dir = tree();
    let output = patronus(&["validate", dir.path().to_str().unwrap()]);
    assert_eq!(status(&output), 65);
    let text = stdout(&output);
    assert!(text.contains("error[PAT0202]: site `a` has no endpoint `fibre`"), "{text}");
    assert!(text.contains("sites/a.yaml:7:25") && text.contains("did you mean `fiber`?"), "{text}");
    assert!(text.contains("warning[PAT0607]: path `fiber` is not probed"), "{text}");
    assert_eq!(
        stderr(&output),
        "not valid: 1 error in 2 files, 1 warning; `patronus validate --explain CODE` says more\n"
    );
}

#[test]
fn colour_is_only_for_terminals_that_want_it() {
    let bad = "tests/config/invalid/field-misspelt.yaml";
    let escape = |output: &Output| stdout(output).contains('\u{1b}');
    assert!(!escape(&patronus(&["validate", bad])), "a pipe is no terminal");
    assert!(escape(&with(&["validate", bad], &[("CLICOLOR_FORCE", "1")])));
    assert!(!escape(&with(&["validate", bad], &[("NO_COLOR", "1")])));
}

#[test]
fn json_says_what_where_and_whether_all_is_well() {
    let dir = tree();
    let output = patronus(&["validate", "--output", "json", dir.path().to_str().unwrap()]);
    assert_eq!((status(&output), stderr(&output)), (65, ""));
    let value = json(&output);
    assert_eq!(value["format_version"], 1);
    assert_eq!(value["summary"]["valid"], false);
    assert_eq!((&value["summary"]["errors"], &value["summary"]["warnings"]), (&1.into(), &1.into()));
    let first = &value["diagnostics"][0];
    assert_eq!((&first["code"], &first["severity"]), (&"PAT0202".into(), &"error".into()));
    assert_eq!((&first["place"]["line"], &first["place"]["column"]), (&7.into(), &25.into()));
    assert_eq!(first["sites"], serde_json::json!(["a"]));
    assert_eq!(first["help"], "did you mean `fiber`?");
    let good = json(&patronus(&["validate", "--output", "json", "examples/one-site"]));
    assert_eq!(good["summary"]["valid"], true);
}

/// What SARIF 2.1.0 (OASIS, sections 3.13 to 3.30) requires and code scanning services read.
#[test]
fn sarif_has_the_structure_of_its_standard() {
    let dir = tree();
    let output = patronus(&["validate", "--output", "sarif", dir.path().to_str().unwrap()]);
    assert_eq!(status(&output), 65);
    let log = json(&output);
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().ends_with("sarif-2.1.0.json"));
    let run = &log["runs"][0];
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "patronus");
    let rules = driver["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["shortDescription"]["text"].is_string()));
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(["error", "warning"].contains(&result["level"].as_str().unwrap()));
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let place = &result["locations"][0]["physicalLocation"];
        assert!(place["artifactLocation"]["uri"].as_str().unwrap().starts_with("file:///"), "{place}");
        let number = |name: &str| place["region"][name].as_u64().unwrap();
        assert!(number("startLine") >= 1 && number("startColumn") >= 1);
        assert!((number("startLine"), number("startColumn")) < (number("endLine"), number("endColumn")));
    }
    let uri = results[1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].as_str().unwrap();
    assert!(uri.ends_with("/sites/b%2C%20100%25.yaml"), "{uri}");
    let relative =
        json(&patronus(&["validate", "--output", "sarif", "tests/config/invalid/backup-is-the-primary.yaml"]));
    let file = &relative["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"];
    assert_eq!(file["uri"], "tests/config/invalid/backup-is-the-primary.yaml");
    assert_eq!(file["uriBaseId"], "%SRCROOT%");
    let empty = json(&patronus(&["validate", "--output", "sarif", "policies"]));
    assert_eq!(empty["runs"][0]["results"], serde_json::json!([]), "no results is a list, not its absence");
}

#[test]
fn annotations_escape_what_the_runner_reads() {
    let dir = tree();
    let output = patronus(&["validate", "--output", "github", dir.path().to_str().unwrap()]);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!((status(&output), lines.len()), (65, 2), "{lines:?}");
    assert!(lines[0].starts_with("::error file=") && lines[0].contains(",line=7,col=25,"), "{}", lines[0]);
    assert!(lines[0].ends_with("::site `a` has no endpoint `fibre`%0Adid you mean `fiber`?"), "{}", lines[0]);
    assert!(lines[1].starts_with("::warning file=") && lines[1].contains("/b%2C 100%25.yaml,"), "{}", lines[1]);
    assert!(lines[1].contains("title=PAT0607 path is not probed::"), "{}", lines[1]);
}

#[test]
fn a_site_filters_the_findings_and_must_exist() {
    let dir = tree();
    let path = dir.path().to_str().unwrap();
    let output = patronus(&["validate", "--site", "b", path]);
    assert_eq!(status(&output), 65, "the daemon of b refuses the tree too");
    assert!(stdout(&output).contains("PAT0607") && !stdout(&output).contains("PAT0202"), "{}", stdout(&output));
    assert!(stderr(&output).contains("1 finding elsewhere"), "{}", stderr(&output));
    let output = patronus(&["validate", "--site", "berlinn", "examples/one-site"]);
    assert_eq!(status(&output), 65);
    assert_eq!(stderr(&output), "patronus: the configuration has no site `berlinn`; did you mean `berlin`?\n");
}

#[test]
fn several_paths_are_one_configuration() {
    let output = patronus(&["validate", "tests/config/valid/with-policies.yaml", "policies"]);
    assert_eq!(status(&output), 0, "{}", stdout(&output));
    assert!(stderr(&output).contains("in 6 files"), "{}", stderr(&output));
}

#[test]
fn what_is_no_configuration_is_wrong_usage_or_an_error() {
    let output = patronus(&["validate", "Cargo.toml"]);
    assert_eq!((status(&output), stdout(&output)), (64, ""));
    assert!(stderr(&output).contains("neither *.yaml nor *.yml"), "{}", stderr(&output));
    let output = patronus(&["validate", "nowhere"]);
    assert_eq!(
        (status(&output), stderr(&output)),
        (1, "patronus: cannot read nowhere: No such file or directory (os error 2)\n")
    );
    let output = patronus(&["validate", "src"]);
    assert_eq!((status(&output), stderr(&output)), (65, "patronus: no *.yaml or *.yml file in `src`\n"));
    assert_eq!(status(&patronus(&["validate", "--output", "yaml"])), 64);
}

#[test]
fn a_code_is_explained() {
    let output = patronus(&["validate", "--explain", "pat0402"]);
    assert_eq!(status(&output), 0);
    assert!(stdout(&output).starts_with("PAT0402: policy can never match\n\n"), "{}", stdout(&output));
    let output = patronus(&["validate", "--explain", "PAT9999"]);
    assert_eq!(status(&output), 64);
    assert!(
        stderr(&output).contains("`PAT9999` is not a code; they go from PAT0001 to PAT0903"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_settings_protect_prefixes_from_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("patronus.yaml");
    fs::write(&settings, "protected: {prefixes: [198.18.0.0/24]}\n").unwrap();
    let settings = settings.to_str().unwrap();
    let sample = "tests/config/invalid/protected-prefix-dropped.yaml";
    assert_eq!(status(&patronus(&["validate", sample])), 0, "without settings nothing is protected");
    let output = patronus(&["validate", "--config", settings, sample]);
    assert_eq!(status(&output), 65);
    assert!(stdout(&output).contains("error[PAT0405]"), "{}", stdout(&output));
    assert_eq!(status(&with(&["validate", sample], &[("PATRONUS_CONFIG", settings)])), 65);
    let output = patronus(&["validate", "--config", "tests/config/invalid-settings/field-misspelt.yaml", sample]);
    assert_eq!(status(&output), 78, "{}", stderr(&output));
}

#[test]
fn schemas_are_printed_as_they_are_shipped() {
    for kind in ["Site", "path", "FAILOVERRULE", "SlaClass", "Policy"] {
        let output = patronus(&["schema", kind]);
        let file = root().join("schema").join(format!("{}.schema.json", kind.to_lowercase()));
        assert_eq!((status(&output), stdout(&output)), (0, fs::read_to_string(file).unwrap().as_str()));
    }
    let any = fs::read_to_string(root().join("schema/patronus.schema.json")).unwrap();
    assert_eq!(stdout(&patronus(&["schema"])), any);
    let output = patronus(&["schema", "Polcy"]);
    assert_eq!((status(&output), stderr(&output)), (64, "patronus: unknown kind `Polcy`; did you mean `Policy`?\n"));
}
