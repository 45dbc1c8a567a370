//! One decision over a thousand paths and a thousand policies; an hour of a site on the virtual clock.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use patronus::{
    clock::{self, Instant},
    config::{self, Snapshot},
    failover::{self, Inputs, Overrides, Selection},
    health::{Link, Monitor, Notes, Sample},
    prove::{Weather, World},
    units::Name,
    validate::{self, intent::Site},
};

use super::row::{Bound, Row, ms};

const PATHS: usize = 1000;
const DECISIONS: usize = 101;

/// Paths in pairs, a rule over each pair, and two policies for each rule.
fn site() -> Site {
    let mut yaml = String::from(
        "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: hub}\nspec:\n  lan: [{interface: lan0, prefixes: [10.0.0.0/8]}]\n",
    );
    let mut each = |head: &str, line: &dyn Fn(usize) -> String, n: usize| {
        let _ = writeln!(yaml, "  {head}:");
        for i in 0..n {
            let _ = writeln!(yaml, "    {}", line(i));
        }
    };
    each("endpoints", &|i| format!("e{i}: {{interface: w{i}}}"), PATHS);
    each(
        "paths",
        &|i| {
            format!(
                "p{i}: {{from: e{i}, to: internet, nat: masquerade, probe: {{targets: [1.1.1.1, 9.9.9.9, 8.8.8.8]}}}}"
            )
        },
        PATHS,
    );
    let rule =
        |i: usize| format!("r{i}: {{primary: p{}, backups: [p{}], damping: {{}}, holdDown: 10s}}", 2 * i, 2 * i + 1);
    each("failover", &rule, PATHS / 2);
    let policy = |i: usize| {
        let (high, low) = (i / 256, i % 256);
        format!(
            "q{i}: {{priority: {i}, match: {{destination: [172.{}.{low}.0/24]}}, action: {{failover: r{}}}}}",
            16 + high,
            i / 2
        )
    };
    each("policies", &policy, PATHS);
    let files = [("hub.yaml".to_owned(), yaml.into_bytes())].into();
    let (config, found) = config::load(&Snapshot { files, ..Snapshot::default() });
    let options = validate::Options {
        target_mask: "0xfff00000".parse().expect("a mask"),
        policy_mask: "0x000fff00".parse().expect("a mask"),
        ..validate::Options::default()
    };
    let (intent, more) = validate::check_with(&config, &options);
    let intent = intent.unwrap_or_else(|| panic!("{found:?} {more:?}"));
    intent.sites().values().next().expect("the site").clone()
}

/// Answers of all targets of a path, or none.
fn round(site: &Site, path: &Name, number: u64, answered: bool, now: Instant) -> Sample {
    let rtt = answered.then_some(Duration::from_millis(20));
    let answers = site.paths[path].probe.targets.iter().map(|target| (*target, rtt)).collect();
    Sample { path: path.clone(), round: number, sent: now, done: now, answers, notes: Notes::default() }
}

struct Fair;

impl Weather for Fair {
    fn answer(&mut self, _: &Name, _: IpAddr, at: Duration) -> Option<Duration> {
        // Three lost seconds in every minute.
        (at.as_secs() % 60 > 3).then_some(Duration::from_millis(20))
    }

    fn links(&self, _: &Name) -> Vec<(Duration, Link)> {
        Vec::new()
    }
}

/// The rows.
pub fn run() -> Vec<Row> {
    let site = site();
    let mut now = clock::now();
    let mut monitor = Monitor::new(&site, now);
    let mut number = 0;
    for _ in 0..10 {
        now = now + Duration::from_secs(1);
        number += 1;
        for path in site.paths.keys() {
            monitor.handle_sample(&round(&site, path, number, true, now), now);
        }
    }
    let (mut selection, overrides) = (Selection::default(), Overrides::default());
    let mut times = Vec::new();
    let victims: Vec<Name> = site.rules.values().map(|r| r.members[0].clone()).collect();
    for n in 0..DECISIONS {
        now = now + Duration::from_secs(1);
        number += 1;
        let victim = &victims[n % victims.len()];
        for _ in 0..4 {
            number += 1;
            now = now + Duration::from_millis(100);
            monitor.handle_sample(&round(&site, victim, number, false, now), now);
        }
        let inputs =
            Inputs { site: &site, healths: monitor.healths(), measures: monitor.measures(), overrides: &overrides };
        let begun = std::time::Instant::now();
        let decision = failover::decide(&inputs, &mut selection, now);
        times.push(ms(begun.elapsed()));
        assert!(n == 0 || decision.transitions.len() == 1, "one path dies, one rule moves");
    }
    let two = Site { paths: site.paths.iter().take(2).map(|(n, p)| (n.clone(), p.clone())).collect(), ..small(&site) };
    let begun = std::time::Instant::now();
    let mut world = World::new(&two, Fair);
    world.play_until(Duration::from_secs(3600));
    let hour = ms(begun.elapsed());
    vec![
        Row::new(
            format!("one decision over {PATHS} paths and {PATHS} policies, one path dies"),
            "ms",
            times,
            Bound::Most(5.0),
        ),
        Row::new("an hour of two paths on the virtual clock", "ms", vec![hour], Bound::Most(1000.0)),
    ]
}

/// The site with its first rule alone.
fn small(site: &Site) -> Site {
    let rules = site.rules.iter().take(1).map(|(n, r)| (n.clone(), r.clone())).collect();
    Site { rules, policies: Vec::new(), ..site.clone() }
}
