//! How the families of paths were at an earlier moment, and where they went, by the records.
//!
//! Each change of a path or of one family of it is an event that carries the path's whole health, so the newest one before
//! a moment tells how both families were. Which way a family went is told by the newest time that it left a path alone.

use serde::Serialize;

use crate::{
    clock::Wall,
    engine::status::Event,
    failover::{Choice, Transition, TransitionKind},
    health::{PathHealth, PathState},
    settings::Settings,
    store::{TransitionRecord, read},
    units::{Family, Name},
};

/// How one family of a path was.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FamilyThen {
    pub path: Name,
    pub family: Family,
    pub state: PathState,
    /// Why it was so.
    pub reason: String,
}

/// The families of these paths, as far as they were measured apart.
pub(super) fn then<'n>(settings: &Settings, paths: impl Iterator<Item = &'n Name>, at: Wall) -> Vec<FamilyThen> {
    let of = |path: &'n Name| {
        let event = read::last_event(&settings.state_dir, &["path"], path, at, |_| true).ok().flatten();
        let health = event.and_then(|event| serde_json::from_value::<PathHealth>(event.detail).ok());
        let families = health.map(|health| health.families).unwrap_or_default();
        let told = |(family, health): (Family, PathHealth)| FamilyThen {
            path: path.clone(),
            family,
            state: health.state,
            reason: health.reason,
        };
        families.into_iter().map(told)
    };
    paths.flat_map(of).collect()
}

/// Lets the families of a rule go where they went then. `record` is the last change of the rule's own path.
pub(super) fn part(settings: &Settings, record: &TransitionRecord, choice: &mut Choice, at: Wall) {
    for family in Family::ALL {
        let Some((when, path, why)) = left(settings, &record.rule, family, at) else { continue };
        // A rule that moved since may have come back to a path that was well again.
        let dead = |then: &FamilyThen| then.family == family && then.state == PathState::Down;
        if when >= record.at || then(settings, std::iter::once(&path), at).iter().any(dead) {
            choice.leave(&path, family, why);
        }
    }
}

/// When a family of a rule left a path alone, which one and why, if that was the last that it did.
fn left(settings: &Settings, rule: &Name, family: Family, at: Wall) -> Option<(Wall, Name, String)> {
    let of = |event: &Event| serde_json::from_value::<Transition>(event.detail.clone()).ok();
    let kinds = [TransitionKind::FamilyLeft, TransitionKind::FamilyBack].map(TransitionKind::word);
    let is_of = |event: &Event| of(event).is_some_and(|t| t.family == Some(family));
    let event = read::last_event(&settings.state_dir, &kinds, rule, at, is_of).ok()??;
    let told = of(&event).filter(|t| t.kind == TransitionKind::FamilyLeft)?;
    let path = told.from?;
    let why = told.alternatives.into_iter().find(|other| other.path == path).map(|other| other.lost);
    Some((event.at, path, why.filter(|why| !why.is_empty()).unwrap_or(told.reason)))
}
