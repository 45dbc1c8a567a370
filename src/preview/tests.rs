//! Previews of small fleets: what moves, what stops, what goes with a deleted site, what the comment looks like.

use super::*;
use crate::config::{self, Snapshot};

fn intent(files: &[(&str, &str)]) -> Intent {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    let (config, mut found) = config::load(&Snapshot { revision: "r".into(), files, ..Snapshot::default() });
    let (intent, more) = crate::validate::check(&config);
    found.extend(more);
    intent.unwrap_or_else(|| panic!("{found:#?}"))
}

fn preview(base: &Intent, head: &Intent) -> Preview {
    let side = |label, intent| Side { label, intent };
    compare(side("base", base), side("head", head), None, &Ranges::default()).expect("it compiles")
}

const HEAD: &str = "apiVersion: patronus.network/v1alpha1\nkind: Site\n";

/// A branch with a line and LTE, whose policies follow.
fn branch(name: &str, net: u8, backups: &str, policies: &str) -> String {
    format!(
        "{HEAD}metadata: {{name: {name}, labels: {{role: branch}}}}
spec:
  lan: [{{interface: lan0, prefixes: [10.0.{net}.0/24]}}]
  endpoints: {{line: {{interface: wan0, gateway: 198.51.100.1}}, lte: {{interface: wwan0}}}}
  paths:
    line: {{from: line, to: internet, nat: masquerade}}
    lte: {{from: lte, to: internet, nat: masquerade}}
  failover: {{critical: {{primary: line, backups: [{backups}]}}}}
  policies: {{{policies}}}\n"
    )
}

const WEB: &str = "web: {priority: 10, match: {protocol: tcp}, action: {failover: critical}}";

fn one(backups: &str, policies: &str) -> Intent {
    intent(&[("a.yaml", &branch("a", 1, backups, policies))])
}

/// A hub with a tunnel to `north`, and `north`; without it the hub has the other policies given.
fn hub(north: bool, policies: &str) -> Intent {
    let tunnel = if north { "    north: {from: line, to: north/line, tunnel: {type: vxlan, id: 7}}\n" } else { "" };
    let rule = if north { "  failover: {north: {primary: north, backups: []}}\n" } else { "" };
    let steer = if north {
        "north: {priority: 5, match: {destination: [10.0.2.0/24]}, action: {failover: north}}, "
    } else {
        ""
    };
    let site = |name: &str, net: u8, address: &str, rest: &str| {
        format!(
            "{HEAD}metadata: {{name: {name}}}\nspec:\n  lan: [{{interface: lan0, prefixes: [10.0.{net}.0/24]}}]\n  \
             endpoints: {{line: {{interface: wan0, address: {address}, gateway: 198.51.100.1}}}}\n  paths:\n    \
             line: {{from: line, to: internet}}\n{rest}"
        )
    };
    let hq = site("hq", 1, "198.51.100.2", &format!("{tunnel}{rule}  policies: {{{steer}{policies}}}\n"));
    let far = site("north", 2, "198.51.100.3", "    hq: {from: line, to: hq/line, tunnel: {type: vxlan, id: 7}}\n");
    if north { intent(&[("hq.yaml", &hq), ("north.yaml", &far)]) } else { intent(&[("hq.yaml", &hq)]) }
}

#[test]
fn the_same_twice_is_no_change() {
    let site = one("lte", WEB);
    let found = preview(&site, &site);
    assert!(found.is_empty() && found.summary.changed == 0);
    assert!(text::render(&found, false).contains("no router would do anything else"));
}

#[test]
fn a_lost_backup_is_told_as_what_stops_without_it() {
    let found = preview(&one("lte", WEB), &one("", WEB));
    let change = &found.sites[0];
    assert_eq!(change.outages.len(), 1);
    let outage = &change.outages[0];
    assert_eq!((outage.fault.to_string().as_str(), outage.policy.as_str()), ("path line", "web"));
    assert_eq!(outage.before.as_ref().map(Name::as_str), Some("lte"));
    let risks: Vec<String> = change.risks().into_iter().map(|r| r.what).collect();
    assert_eq!(risks, ["stops if path line fails"]);
    assert_eq!(found.summary.worse, 1);
    assert!(preview(&one("", WEB), &one("lte", WEB)).sites[0].risks().is_empty(), "the way back is no risk");
}

#[test]
fn what_stopped_before_is_not_told_again() {
    let more = format!("{WEB}, dns: {{priority: 20, match: {{protocol: udp}}, action: {{drop: true}}}}");
    let found = preview(&one("", WEB), &one("", &more));
    assert!(found.sites[0].outages.is_empty(), "{:#?}", found.sites[0].outages);
}

#[test]
fn a_new_policy_on_one_path_is_told_and_is_no_loss() {
    let more = format!("{WEB}, dns: {{priority: 20, match: {{protocol: udp}}, action: {{path: lte}}}}");
    let change = &preview(&one("lte", WEB), &one("lte", &more)).sites[0];
    assert_eq!(change.outages.len(), 1);
    assert_eq!((change.outages[0].policy.as_str(), &change.outages[0].before), ("dns", &None));
    assert!(!change.is_worse());
}

#[test]
fn a_backup_over_the_same_uplink_is_none_when_the_uplink_fails() {
    let apart = one("lte", WEB).sites().values().next().cloned().expect("a site");
    let mut shared = apart.clone();
    let line = shared.paths["line"].from.clone();
    std::sync::Arc::make_mut(shared.paths.get_mut("lte").expect("a path")).from = line;
    let faults: Vec<String> = outages(Some(&apart), &shared).iter().map(|o| o.fault.to_string()).collect();
    assert_eq!(faults, ["uplink line"]);
    assert!(outages(Some(&shared), &shared).is_empty() && outages(Some(&shared), &apart).is_empty());
}

#[test]
fn a_policy_that_goes_and_one_that_moves_are_told() {
    let guests = "guests: {priority: 5, match: {source: [10.0.1.128/25]}, action: {path: line}}";
    let (old, new) = (one("lte", &format!("{guests}, {WEB}")), one("lte", &guests.replace("path: line", "path: lte")));
    let change = &preview(&old, &new).sites[0];
    let text = anstream::adapter::strip_str(&text::render(&preview(&old, &new), false)).to_string();
    assert!(text.contains("guests  line -> lte"), "{text}");
    assert!(text.contains("web     line -> main table"), "{text}");
    assert!(change.weight() > 1000, "traffic without a path of ours weighs most");
}

#[test]
fn what_only_the_router_knows_is_called_auto() {
    let text = text::render(&preview(&one("", WEB), &one("lte", WEB)), true);
    assert!(text.contains("via auto dev wwan0"), "{text}");
    assert!(!text.contains("192.0.0.8"), "{text}");
}

#[test]
fn a_deleted_site_is_told_with_all_that_goes_along() {
    let rest = "rest: {priority: 10, action: {path: line}}";
    let gone = preview(&hub(true, rest), &hub(false, rest));
    assert_eq!((gone.summary.removed, gone.summary.taken), (1, 3));
    let deletion = &gone.deletions[0];
    assert_eq!(deletion.prefixes[0].prefix.to_string(), "10.0.2.0/24");
    let taken: Vec<String> = deletion.elsewhere.iter().map(|t| format!("{} {}/{}", t.kind, t.site, t.name)).collect();
    assert_eq!(taken, ["path hq/north", "failover hq/north", "policy hq/north"]);
    assert!(deletion.left.is_empty());
    assert_eq!(gone.sites.len(), 1, "and the hub's own plan is there: {:?}", gone.sites);
    let named = "rest: {priority: 10, match: {destination: [10.0.2.0/24]}, action: {path: line}}";
    let left = &preview(&hub(true, rest), &hub(false, named)).deletions[0].left;
    assert_eq!(left[0].policy.as_str(), "rest", "a policy that still names the network is told");
}

#[test]
fn the_worst_site_comes_first_and_what_is_alike_comes_together() {
    let fleet = |backups: [&str; 4], web: &str| {
        let texts: Vec<(String, String)> = ["a", "b", "c", "d"]
            .iter()
            .zip(backups)
            .zip(1..)
            .map(|((name, backups), net)| (format!("{name}.yaml"), branch(name, net, backups, web)))
            .collect();
        let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        intent(&files)
    };
    let found = preview(&fleet(["lte"; 4], WEB), &fleet(["lte", "lte", "", "lte"], &WEB.replace("tcp", "udp")));
    let groups = groups(&found.sites);
    let names: Vec<Vec<&str>> = groups.iter().map(|g| g.sites.iter().map(|n| n.as_str()).collect()).collect();
    assert_eq!(names, [vec!["c"], vec!["a", "b", "d"]]);
}

/// Many sites of which no two change alike.
fn crowd(sites: usize, path: &str) -> Intent {
    let texts: Vec<(String, String)> = (0..sites)
        .map(|n| {
            let policies: Vec<String> = (0..=n % 40)
                .map(|p| format!("p{n}-{p}: {{priority: {}, match: {{protocol: tcp, destinationPorts: [{}]}}, action: {{path: {path}}}}}", p + 1, p + 1))
                .collect();
            let text = branch(&format!("site-{n:04}"), 1, "lte", &policies.join(", "));
            (format!("{n}.yaml"), text.replace("10.0.1.0/24", &format!("10.{}.{}.0/24", n / 250, n % 250)))
        })
        .collect();
    let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    intent(&files)
}

#[test]
fn a_comment_never_grows_over_its_limit_and_counts_what_it_leaves_out() {
    let found = preview(&crowd(300, "line"), &crowd(300, "lte"));
    let comment = markdown::render(&found);
    assert!(comment.chars().count() <= markdown::MOST, "{}", comment.chars().count());
    let number = |after: &str, before: &str| -> usize {
        let at = comment.split(before).next().and_then(|t| t.rsplit(after).next()).unwrap_or_default();
        at.trim().parse().unwrap_or_else(|_| panic!("no number before {before}: {at:?}"))
    };
    let rows = comment.lines().filter(|l| l.starts_with("| `site-")).count();
    let folds = comment.matches("<details>").count();
    assert_eq!(rows + number("**", " sites left out of the table"), 300);
    assert_eq!(folds + number("details of ", " sites are left out"), 300);
    assert!(rows > 50 && folds > 5, "{rows} {folds}");
    assert_eq!(comment, markdown::render(&found), "the same bytes");
}

/// What of a comment is outside code and outside the tags that are ours.
fn outside(comment: &str) -> Option<String> {
    let (mut out, mut fence) = (String::new(), String::new());
    for line in comment.lines() {
        let ticks: String = line.chars().take_while(|c| *c == '`').collect();
        if fence.is_empty() && ticks.len() >= 3 {
            fence = ticks;
        } else if !fence.is_empty() {
            if line == fence {
                fence.clear();
            }
        } else {
            let pieces: Vec<&str> = line.split('`').collect();
            // A tick without a partner begins no code.
            let lone = pieces.len().is_multiple_of(2).then_some(pieces[pieces.len() - 1]);
            let bare: String = pieces.iter().step_by(2).copied().chain(lone).collect();
            out.push_str(&bare.replace("<details><summary>", "").replace("</summary>", "").replace("</details>", ""));
            out.push('\n');
        }
    }
    fence.is_empty().then_some(out)
}

fn harmless(comment: &str) -> bool {
    let Some(outside) = outside(comment) else { return false };
    !outside.contains(['<', '@', '!', '[']) && !comment.chars().any(|c| c.is_control() && c != '\n')
}

const HOSTILE: &str = "x`<img src=x onerror=a>|@everyone\u{202e}\u{1b}[2J\r\n```\n</details>![](http://e)";

#[test]
fn hostile_names_and_comments_stay_code() {
    let (old, new) = (one("lte", WEB), one("", WEB));
    let side = |label, intent| Side { label, intent };
    let ranges = Ranges::default();
    let mut found = compare(side(HOSTILE, &old), side(HOSTILE, &new), None, &ranges).expect("it compiles");
    found.warnings = vec![HOSTILE.to_owned()];
    let comment = markdown::render(&found);
    assert!(harmless(&comment), "{comment}");
    let refused = markdown::refused(HOSTILE, HOSTILE, 1, &[HOSTILE.to_owned()], HOSTILE);
    assert!(harmless(&refused), "{refused}");
    assert!(!refused.contains('\u{202e}'));
}

/// The sabotage twin: without the guard the same texts get out.
#[test]
fn the_checker_sees_text_that_leaves_its_code() {
    for text in [HOSTILE, "`a`<b>", "x ` @all", "a\u{7}"] {
        assert!(!harmless(&format!("a {text}\n")), "{text}");
    }
    assert!(harmless("| `a<b>@c` | plain |\n```text\n<b>@all\n```\n"));
}
