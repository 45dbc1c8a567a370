//! Whole cases: a site's YAML and the router's facts in, the ruleset and the plan out, as golden files.
//!
//! Each folder of `tests/sites` holds YAML, `site` (which one), `facts.json`, and what follows from them: `plan.txt`,
//! `ruleset.nft`. `PATRONUS_REGENERATE=1` writes the latter two anew.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use patronus::{
    clock::Instant,
    config, desired,
    failover::{self, Selection},
    health::{Healths, Measures},
    plan::{
        self,
        report::{self, Revisions, View},
        text,
    },
    source,
    state::{Allocations, Facts, Key, Ranges, State, Value},
    units::Name,
    validate::{self, intent::Site},
};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sites");

/// The site that a folder is about is named in its file `site`.
fn site(dir: &Path) -> Site {
    let (loaded, mut found) = config::load(&source::read(dir).unwrap());
    let (intent, more) = validate::check(&loaded);
    found.extend(more);
    let intent = intent.unwrap_or_else(|| panic!("{}: {found:#?}", dir.display()));
    let name: Name = fs::read_to_string(dir.join("site")).unwrap().trim().parse().unwrap();
    intent.sites()[&name].clone()
}

/// The first selection, the state compiled from it and the plan from an empty router to there.
fn outcome(dir: &Path) -> (String, String, State) {
    let site = site(dir);
    let facts: Facts = serde_json::from_str(&fs::read_to_string(dir.join("facts.json")).unwrap()).unwrap();
    let (now, none) = (Instant::from_nanos(0), Selection::default());
    let (selection, _) = failover::select(&site, &Healths::new(), &Measures::new(), &none, now);
    let (known, ranges, originals) = (Allocations::default(), Ranges::default(), std::collections::BTreeMap::new());
    let inputs =
        desired::Inputs { selection: &selection, facts: &facts, known: &known, ranges: &ranges, originals: &originals };
    let compiled = desired::compile(&site, inputs).unwrap();
    let Some(Value::Nft(table)) = compiled.state.objects.get(&Key::Nft) else { panic!("no ruleset") };
    let ruleset = table.source.to_string();
    let mut state = compiled.state.clone();
    if let Some(Value::Nft(table)) = state.objects.get_mut(&Key::Nft) {
        table.canonical = Arc::clone(&table.source);
    }
    let steps = plan::diff(&state, &State::default());
    let inputs = report::Inputs {
        new: Some(View { site: &site, selection: &selection }),
        old: None,
        steps: &steps,
        applied: None,
        intruders: &[],
        obstacles: &[],
        ranges: &ranges,
        numbers: &compiled.allocations.targets,
    };
    let revision = Revisions { to: "new".into(), from: None };
    let shown = text::render(&report::report(&inputs, site.name.clone(), revision, 0), false);
    (shown, ruleset, state)
}

fn golden(file: &Path, text: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::write(file, text).unwrap();
    }
    let golden = fs::read_to_string(file).unwrap_or_default();
    if golden != text {
        let difference = similar::TextDiff::from_lines(golden.as_str(), text).unified_diff().to_string();
        wrong.push(format!("{}:\n{difference}", file.display()));
    }
}

#[test]
fn sites_and_facts_lead_to_the_rulesets_and_plans_on_file() {
    let mut dirs: Vec<PathBuf> = fs::read_dir(CASES).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    let mut wrong = Vec::new();
    for dir in &dirs {
        let (plan, ruleset, state) = outcome(dir);
        assert_eq!(outcome(dir), (plan.clone(), ruleset.clone(), state), "two runs differ: {}", dir.display());
        golden(&dir.join("plan.txt"), &plan, &mut wrong);
        golden(&dir.join("ruleset.nft"), &ruleset, &mut wrong);
        // The kernel takes what is on file.
        let loaded = ruleset.clone();
        crate::support::netns::in_netns(move || async move {
            crate::support::netns::nft(&loaded);
        });
    }
    assert_eq!(dirs.len(), 4, "{dirs:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
