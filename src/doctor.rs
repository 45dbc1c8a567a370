//! The preflight: what of this machine would keep Patronus from doing its work, and what to do about it.
//!
//! [`gather`] looks at the machine, below a root that tests can choose, and changes nothing but the inside of a network
//! namespace of its own; the [`CHECKS`] are pure functions over the [`Facts`] that it brings.
//!
//! Invariant: a check that cannot be made says that it was skipped and why; it is never taken for passed.

pub mod checks;
pub mod facts;
pub mod gather;

use serde::Serialize;

pub use self::{checks::CHECKS, facts::Facts};

/// How a check ended; the order is the order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// It could not be made, or has no meaning here.
    Skipped,
    /// It works, and may bite later.
    Warn,
    /// It does not work like this.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it ended.
    pub verdict: Verdict,
    /// One line for a person.
    pub says: String,
    /// What to do, for what is not ok.
    pub remedies: Vec<String>,
}

/// One check.
#[derive(Debug)]
pub struct Check {
    /// Its name, which stays.
    pub id: &'static str,
    /// What it is about, for the reference.
    pub about: &'static str,
    /// The check itself.
    pub run: fn(&Facts) -> Finding,
}

/// A check and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The check.
    pub id: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// One line for a person.
    pub says: String,
    /// What to do.
    pub remedies: Vec<String>,
}

/// Makes all checks, in their order.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Outcome> {
    let outcome = |check: &Check| {
        let Finding { verdict, says, remedies } = (check.run)(facts);
        Outcome { id: check.id, verdict, says, remedies }
    };
    CHECKS.iter().map(outcome).collect()
}

impl Finding {
    fn ok(says: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, says: says.into(), remedies: Vec::new() }
    }

    fn skipped(why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, says: why.into(), remedies: Vec::new() }
    }

    fn warn(says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, says: says.into(), remedies: vec![remedy.into()] }
    }

    fn fail(says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(says, remedy) }
    }

    /// The worst of several, with all that is not ok in its words; `fine` if there is nothing.
    fn worst(all: impl IntoIterator<Item = Self>, fine: impl Into<String>) -> Self {
        let bad: Vec<Self> = all.into_iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
        let Some(verdict) = bad.iter().map(|finding| finding.verdict).max() else { return Self::ok(fine) };
        let says = bad.iter().map(|finding| finding.says.as_str()).collect::<Vec<_>>().join("; ");
        let mut remedies: Vec<String> = Vec::new();
        for remedy in bad.into_iter().flat_map(|finding| finding.remedies) {
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        Self { verdict, says, remedies }
    }
}

#[cfg(test)]
mod tests;
