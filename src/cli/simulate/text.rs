//! A replay as a table, and as JSON.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::Story;
use crate::{
    prove::replay::{Column, Side, Switch, Tally},
    units::{Name, Span, plural},
};

/// The figures of one column.
#[derive(Clone, Copy, Default)]
struct Figures {
    switches: usize,
    tally: Tally,
}

impl Figures {
    fn of(column: &Column) -> Self {
        Self { switches: column.switches.len(), tally: column.tally }
    }

    fn plus(self, other: Self) -> Self {
        Self { switches: self.switches + other.switches, tally: self.tally.plus(&other.tally) }
    }

    fn json(&self) -> Value {
        let mut value = serde_json::to_value(self.tally).unwrap_or_default();
        value["switches"] = self.switches.into();
        value["bad_seconds"] = self.tally.bad().as_secs_f64().into();
        value
    }
}

/// Rules of a class together, by column. A column that lacks one of them would compare less with more, and is left out.
fn classes<'a>(story: &'a Story<'_>) -> BTreeMap<&'a Name, Vec<(&'static str, Figures)>> {
    let mut rules: BTreeMap<&Name, Vec<&Side>> = BTreeMap::new();
    for (side, class) in &story.sides {
        if let Some(class) = class {
            rules.entry(class).or_default().push(side);
        }
    }
    let sum = |sides: &[&Side], name: &str| {
        let of = |side: &&Side| side.columns.iter().find(|c| c.name == name).map(Figures::of);
        sides.iter().map(of).try_fold(Figures::default(), |sum, figures| Some(sum.plus(figures?)))
    };
    let columns = |sides: Vec<&Side>| {
        story.columns.iter().filter_map(|(name, _)| Some((*name, sum(&sides, name)?))).collect::<Vec<_>>()
    };
    rules.into_iter().map(|(class, sides)| (class, columns(sides))).collect()
}

pub(super) fn json(story: &Story<'_>) -> Value {
    let columns = |all: &[(&'static str, Figures)]| -> Value {
        all.iter().map(|(name, figures)| ((*name).to_owned(), figures.json())).collect::<serde_json::Map<_, _>>().into()
    };
    let rules = story.sides.iter().map(|(side, class)| {
        let mut value: serde_json::Map<String, Value> = serde_json::Map::new();
        for column in &side.columns {
            let mut figures = Figures::of(column).json();
            figures["changes"] = serde_json::to_value(&column.switches).unwrap_or_default();
            value.insert(column.name.to_owned(), figures);
        }
        json!({"rule": side.rule, "class": class, "columns": value})
    });
    let classes = classes(story);
    let classes = classes.iter().map(|(class, all)| json!({"class": class, "columns": columns(all)}));
    json!({
        "format_version": 1,
        "site": story.site,
        "since": story.since,
        "until": story.until,
        "samples": story.samples,
        "columns": story.columns.iter().map(|(name, label)| json!({"name": name, "label": label})).collect::<Vec<_>>(),
        "rules": rules.collect::<Vec<_>>(),
        "classes": classes.collect::<Vec<_>>(),
        "notes": story.notes,
    })
}

pub(super) fn table(story: &Story<'_>, switches: bool) -> String {
    let mut text =
        format!("Site {}, {} to {}, {}\n", story.site, story.since, story.until, plural(story.samples, "sample"));
    for (side, class) in &story.sides {
        let class = class.as_ref().map(|class| format!(" (class {class})")).unwrap_or_default();
        let figures: Vec<_> = side.columns.iter().map(|c| (c.name, Figures::of(c))).collect();
        rows(story, &format!("rule {}{class}", side.rule), &figures, &mut text);
        for column in side.columns.iter().filter(|_| switches) {
            for switch in &column.switches {
                let _ = writeln!(text, "    {:<8} {}", column.name, told(switch));
            }
        }
    }
    for (class, figures) in classes(story) {
        rows(story, &format!("class {class}"), &figures, &mut text);
    }
    text += "\nBad is what the last column's configuration calls so. Played are stored figures, not probes.\n";
    for note in &story.notes {
        let _ = writeln!(text, "! {note}");
    }
    text
}

fn told(s: &Switch) -> String {
    let name = |path: &Option<Name>| path.as_ref().map_or_else(|| "no path".to_owned(), ToString::to_string);
    format!("{} {} {} -> {}: {}", s.at, s.kind.word(), name(&s.from), name(&s.to), s.reason)
}

const HEAD: [&str; 7] = ["switches", "bad", "outside class", "below threshold", "down", "no path", "unrecorded"];

fn rows(story: &Story<'_>, title: &str, figures: &[(&'static str, Figures)], text: &mut String) {
    let label = |name: &str| story.columns.iter().find(|(n, _)| *n == name).map_or("", |(_, label)| label.as_str());
    let width = story.columns.iter().map(|(_, label)| label.chars().count() + 2).max().unwrap_or(0);
    let width = width.max(title.chars().count());
    let _ = write!(text, "\n{title:width$}");
    for head in HEAD {
        let _ = write!(text, "  {head:>9}");
    }
    *text += "\n";
    for (name, Figures { switches, tally }) in figures {
        let times =
            [tally.bad(), tally.outside_class, tally.below_threshold, tally.down, tally.no_path, tally.unrecorded];
        let _ = write!(text, "{:width$}  {switches:>9}", format!("  {}", label(name)));
        for (time, head) in times.into_iter().zip(&HEAD[1..]) {
            let _ = write!(text, "  {:>1$}", shown(time), head.len().max(9));
        }
        *text += "\n";
    }
}

/// Whole seconds, as people write them.
fn shown(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_millis() >= 500);
    Span::from(Duration::from_secs(seconds)).to_string()
}
