//! A plan in a file: made now, looked at and perhaps signed by somebody, carried out later or not at all.
//!
//! Invariant: a saved plan does exactly the steps that it shows, and only where it was made for. It binds the
//! configuration and the live objects; whoever applies it makes the plan anew and [`Saved::moved`] says what is not as
//! it was. The file is an agreement and not an authority: steps that a fresh plan would not have are never run.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Action, Step, text::key_text};
use crate::{
    state::{Stamp, State},
    units::Name,
};

/// Version of the format.
pub const FORMAT_VERSION: u32 = 1;
/// Largest file that is read: a hub with a thousand tunnels takes about 20 MB.
pub const MAX: usize = 128 << 20;
/// Lines that say what has moved, of each kind.
const SHOWN: usize = 10;

/// A plan in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Version of this format.
    pub format_version: u32,
    /// What it is bound to.
    #[serde(flatten)]
    pub binding: Binding,
    /// The fingerprint of the live objects, for people to compare.
    pub live: String,
    /// The live objects themselves, so that it can be said what has moved.
    pub before: State,
    /// The stamp of the new state: its generation and the plan's id.
    pub stamp: Stamp,
    /// The steps, in their order.
    pub steps: Vec<Step>,
    /// The plan as people read it.
    pub shown: String,
}

/// What a plan is bound to beside the live objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The site.
    pub site: Name,
    /// The directory that was planned, where one was named in place of the settings' source.
    pub directory: Option<String>,
    /// The revision of the configuration.
    pub revision: String,
    /// The commit that was checked out around the directory.
    pub commit: Option<String>,
    /// The hash of the configuration's files.
    pub configuration: String,
    /// What the kernel's table carried: who made the state that the plan starts from.
    pub previous: Option<Stamp>,
}

/// Why a file is no saved plan.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It is not what we write.
    #[error("this is no saved plan: `patronus plan --out FILE` makes one")]
    Format(#[source] serde_json::Error),
    /// It is from another version.
    #[error("this saved plan has format {0}, and this Patronus knows {FORMAT_VERSION}: make the plan again")]
    Version(u32),
    /// Somebody edited it.
    #[error("this saved plan was changed after it was made: its live objects are not those of its fingerprint")]
    Edited,
}

impl Saved {
    /// A plan that can be carried out later.
    #[must_use]
    pub fn new(binding: Binding, before: State, stamp: Stamp, steps: Vec<Step>, shown: String) -> Self {
        let live = fingerprint(&before, binding.previous.as_ref());
        Self { format_version: FORMAT_VERSION, binding, live, before, stamp, steps, shown }
    }

    /// Reads a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        #[derive(Deserialize)]
        struct Head {
            format_version: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(SavedError::Format)?;
        if head.format_version != FORMAT_VERSION {
            return Err(SavedError::Version(head.format_version));
        }
        let saved: Self = serde_json::from_slice(bytes).map_err(SavedError::Format)?;
        if saved.live == fingerprint(&saved.before, saved.binding.previous.as_ref()) {
            Ok(saved)
        } else {
            Err(SavedError::Edited)
        }
    }

    /// The file's text.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// What is not as it was when the plan was made, one line each; nothing: the plan may be carried out.
    #[must_use]
    pub fn moved(&self, now: &Binding, live: &State, steps: &[Step]) -> Vec<String> {
        let mut lines = self.configuration_moved(now);
        lines.extend(self.live_moved(now, live));
        // Links, addresses and gateways are not ours, but the plan follows from them.
        if lines.is_empty() && self.steps != steps {
            lines.push(
                "what surrounds us has changed (links, addresses, gateways): the plan would be another one".into(),
            );
            lines.extend(shortened(difference(&self.steps, steps)));
        }
        lines
    }

    fn configuration_moved(&self, now: &Binding) -> Vec<String> {
        let then = &self.binding;
        let mut lines = Vec::new();
        if then.site != now.site {
            lines.push(format!("the plan is for site {}, this router is {}", then.site, now.site));
        }
        if then.revision != now.revision || then.commit != now.commit {
            let name = |b: &Binding| b.commit.clone().unwrap_or_else(|| b.revision.clone());
            lines.push(format!("the configuration moved on: planned {}, now {}", name(then), name(now)));
        } else if then.configuration != now.configuration {
            lines.push(format!("the files of revision {} are not those that were planned", then.revision));
        }
        lines
    }

    fn live_moved(&self, now: &Binding, live: &State) -> Vec<String> {
        let mut lines = Vec::new();
        if self.binding.previous != now.previous {
            let name = |s: Option<&Stamp>| s.map_or_else(|| "nothing of ours".to_owned(), ToString::to_string);
            let (then, now) = (name(self.binding.previous.as_ref()), name(now.previous.as_ref()));
            lines.push(format!("another change came first: the plan starts from {then}, in force is {now}"));
        }
        let changed = super::diff(live, &self.before);
        if !changed.is_empty() {
            let are = if changed.len() == 1 { "is not as it was" } else { "are not as they were" };
            lines.push(format!("{} of our objects in the kernel {are}", changed.len()));
            lines.extend(shortened(changed.iter().filter_map(line).collect()));
        }
        lines
    }
}

/// A change to one of our objects since, as a line.
fn line(step: &Step) -> Option<String> {
    let sign = match step.action() {
        Action::Add => '+',
        Action::Remove => '-',
        _ => '~',
    };
    Some(format!("  {sign} {}", key_text(step.key()?)))
}

/// Steps that only one of the two plans has.
fn difference(then: &[Step], now: &[Step]) -> Vec<String> {
    let only = |these: &[Step], those: &[Step], what: &str| -> Vec<String> {
        let steps = these.iter().filter(|step| !those.contains(step));
        steps.filter_map(|step| Some(format!("  {what}: {} {}", step.kind(), key_text(step.key()?)))).collect()
    };
    let mut lines = only(now, then, "would be done too");
    lines.extend(only(then, now, "would not be done"));
    lines
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("  … and {more} more"));
    }
    lines
}

/// The fingerprint of our objects in the kernel.
#[must_use]
pub fn fingerprint(state: &State, stamp: Option<&Stamp>) -> String {
    // Serialising plain values into memory does not fail.
    let bytes = serde_json::to_vec(&(state, stamp)).unwrap_or_default();
    hashed(|hash| hash.update(&bytes))
}

/// The hash of a configuration's files.
#[must_use]
pub fn digest(files: &BTreeMap<String, Vec<u8>>) -> String {
    hashed(|hash| {
        for (name, content) in files {
            for part in [name.as_bytes(), content.as_slice()] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
    })
}

fn hashed(feed: impl FnOnce(&mut Sha256)) -> String {
    let mut hash = Sha256::new();
    feed(&mut hash);
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        state::{Key, SysctlKey, Value},
        units::Family,
    };

    fn state(values: &[(&str, &str)]) -> State {
        let entry = |(path, value): &(&str, &str)| {
            (Key::Sysctl(SysctlKey { path: (*path).into() }), Value::Sysctl { value: (*value).into() })
        };
        State { objects: values.iter().map(entry).collect() }
    }

    fn rule(priority: u32) -> (Key, Value) {
        let family = Family::V4;
        let key =
            crate::state::RuleKey { priority, family, fwmark: None, oif: None, table: 1, suppress_prefixlength: None };
        (Key::Rule(key), Value::Rule)
    }

    fn binding() -> Binding {
        Binding {
            site: "berlin".parse().unwrap(),
            directory: None,
            revision: "r1".into(),
            commit: None,
            configuration: digest(&BTreeMap::new()),
            previous: None,
        }
    }

    fn saved() -> Saved {
        let before = State { objects: [rule(1)].into() };
        let steps = crate::plan::diff(&State { objects: [rule(1), rule(2)].into() }, &before);
        Saved::new(binding(), before, Stamp { generation: 1, plan: Uuid::nil() }, steps, "shown".into())
    }

    #[test]
    fn a_plan_survives_its_file_and_moves_nowhere_by_itself() {
        let saved = saved();
        let again = Saved::parse(saved.text().unwrap().as_bytes()).unwrap();
        assert_eq!(again, saved);
        assert!(again.moved(&binding(), &saved.before, &saved.steps).is_empty());
    }

    #[test]
    fn what_moved_is_named() {
        let saved = saved();
        let told = |now: &Binding, live: &State, steps: &[Step]| saved.moved(now, live, steps).join("\n");
        let next = Binding { revision: "r2".into(), ..binding() };
        assert_eq!(told(&next, &saved.before, &saved.steps), "the configuration moved on: planned r1, now r2");
        let commit = Binding { commit: Some("c".into()), ..binding() };
        assert!(told(&commit, &saved.before, &saved.steps).contains("planned r1, now c"));
        let edited = Binding { configuration: "sha256:0".into(), ..binding() };
        assert!(told(&edited, &saved.before, &saved.steps).contains("are not those that were planned"));
        let lost = told(&binding(), &State::default(), &saved.steps);
        assert!(
            lost.contains("1 of our objects in the kernel is not as it was")
                && lost.contains("- rule   IPv4 priority 1"),
            "{lost}"
        );
        let other = Binding { previous: Some(Stamp { generation: 7, plan: Uuid::nil() }), ..binding() };
        assert!(told(&other, &saved.before, &saved.steps).contains("in force is generation 7"));
        assert!(told(&binding(), &saved.before, &[]).contains("what surrounds us has changed"));
    }

    #[test]
    fn a_file_that_is_none_or_was_edited_is_refused() {
        assert!(matches!(Saved::parse(b"kind: Site"), Err(SavedError::Format(_))));
        assert!(matches!(Saved::parse(br#"{"format_version": 99}"#), Err(SavedError::Version(99))));
        let mut edited = saved();
        edited.before = state(&[("ipv4/ip_forward", "1")]);
        assert!(matches!(Saved::parse(edited.text().unwrap().as_bytes()), Err(SavedError::Edited)));
    }
}
