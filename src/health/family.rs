//! The tracks of a path: one over all of its targets or, where there are targets of both families, one for each family.
//!
//! IPv6 may be dead on a line whose IPv4 is well, and the reverse. Each family is judged by its own targets, with the same
//! rounds, thresholds and bands. The path is as its better family: it is lost when both are.
//!
//! Invariant: with targets of one family there is one track, and the path is what that track says.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use super::{
    HealthEvent, Link, PathHealth, PathState, Sample,
    quality::Spread,
    track::{Track, View},
};
use crate::{
    clock::Instant,
    units::{Family, Name},
    validate::intent::Path,
};

/// The tracks of one path.
#[derive(Debug, Clone)]
pub(super) struct Tracks {
    path: Arc<Path>,
    /// Since when it is probed in this way.
    since: Instant,
    /// Of all targets, or of those of IPv4.
    first: Track,
    /// Of those of IPv6, where there are both.
    six: Option<Box<Track>>,
    /// Whether IPv6 is the better one.
    six_speaks: bool,
}

/// The path, or the path with the targets of each family alone.
fn split(path: &Arc<Path>) -> (Arc<Path>, Option<Arc<Path>>) {
    let part = |family| {
        let probe = path.probe.of_family(family)?;
        Some(Arc::new(Path { probe: Arc::new(probe), ..Path::clone(path) }))
    };
    (part(Family::V4).unwrap_or_else(|| Arc::clone(path)), part(Family::V6))
}

impl Tracks {
    pub fn new(path: &Arc<Path>, now: Instant) -> Self {
        let (first, six) = split(path);
        let six = six.map(|six| Box::new(Track::new(&six, now)));
        Self { path: Arc::clone(path), since: now, first: Track::new(&first, now), six, six_speaks: false }
    }

    /// Takes over new settings. When the history does not fit them, the path begins anew. Whether it did not.
    pub fn reconfigure(&mut self, path: &Arc<Path>, now: Instant) -> bool {
        let same = self.path.probe == path.probe && self.path.interface == path.interface;
        let (first, six) = split(path);
        match (&mut self.six, six) {
            (Some(track), Some(six)) => drop(track.reconfigure(&six, now)),
            (None, None) => {}
            _ => {
                let link = self.first.link();
                *self = Self::new(path, now);
                self.set_link(link);
            }
        }
        self.first.reconfigure(&first, now);
        self.path = Arc::clone(path);
        if !same {
            self.since = now;
        }
        same
    }

    fn parts(&self) -> impl Iterator<Item = &Track> {
        std::iter::once(&self.first).chain(self.six.as_deref())
    }

    fn parts_mut(&mut self) -> impl Iterator<Item = &mut Track> {
        std::iter::once(&mut self.first).chain(self.six.as_deref_mut())
    }

    /// Whether its interface is there, up and has a carrier.
    pub fn is_ready(&self) -> bool {
        self.first.link() == Link::Ready
    }

    /// Whether a round is one of this path as it is probed now. Another configuration's answers are not its own, and nor is
    /// the absence of answers that it never asked for.
    pub fn has_asked(&self, sample: &Sample) -> bool {
        let known = |(target, _): &(IpAddr, Option<Duration>)| self.targets().contains(target);
        sample.sent >= self.since && sample.answers.iter().all(known)
    }

    /// What it probes.
    pub fn targets(&self) -> &[IpAddr] {
        &self.path.probe.targets
    }

    /// Round-trip times of all targets.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.parts().flat_map(Track::rtts).collect())
    }

    /// Whether each target belongs to the second track, in the order of the configuration.
    fn are_six(&self) -> impl Iterator<Item = bool> + '_ {
        self.targets().iter().map(|target| self.six.is_some() && target.is_ipv6())
    }

    /// Which of its targets are suspect.
    pub fn suspects(&self) -> Vec<bool> {
        let mut first = self.first.suspects().into_iter();
        let mut six = self.six.iter().flat_map(|six| six.suspects());
        self.are_six().filter_map(|is_six| if is_six { six.next() } else { first.next() }).collect()
    }

    /// Takes the vote from targets that are suspect, in the order of the configuration.
    pub fn suspect(&mut self, suspects: &[bool]) {
        let of = |wanted| self.are_six().zip(suspects).filter(move |(is_six, _)| *is_six == wanted).map(|(_, s)| *s);
        let (first, six): (Vec<bool>, Vec<bool>) = (of(false).collect(), of(true).collect());
        self.first.suspect(&first);
        self.six.iter_mut().for_each(|track| track.suspect(&six));
    }

    pub fn set_link(&mut self, link: Link) {
        self.parts_mut().for_each(|track| track.set_link(link));
    }

    /// Takes in which share of its bandwidth is used, if it is busy.
    pub fn set_load(&mut self, used: Option<f64>, busy: bool) {
        self.parts_mut().for_each(|track| track.set_load(used, busy));
    }

    /// Whether it is slow from its own traffic, and that does not count.
    pub fn is_congested(&self) -> bool {
        let voice = self.six.as_deref().filter(|_| self.six_speaks).unwrap_or(&self.first);
        voice.is_congested()
    }

    pub fn add(&mut self, sample: &Sample, now: Instant) {
        self.parts_mut().for_each(|track| track.add(sample, now));
    }

    /// Takes over the states that an earlier process knew.
    pub fn remember(&mut self, known: &PathHealth) {
        let of = |family| known.families.get(&family).map_or(known.state, |h| h.state);
        self.first.remember(if self.six.is_some() { of(Family::V4) } else { known.state });
        self.six.iter_mut().for_each(|six| six.remember(of(Family::V6)));
    }

    /// Takes in that for so long, up to now, nothing could be heard.
    pub fn excuse(&mut self, deaf: Duration, now: Instant) {
        self.parts_mut().for_each(|track| track.excuse(deaf, now));
    }

    /// When the path is to be called unknown because not even lost rounds are reported any more.
    pub fn silent_at(&self) -> Option<Instant> {
        self.parts().filter_map(Track::silent_at).min()
    }

    /// Looks at the path anew. `before` is what was published last.
    pub fn look(&mut self, before: Option<&PathHealth>, now: Instant) -> View {
        let Some(six) = &mut self.six else { return self.first.look(before, now) };
        let known = |family| before.and_then(|b| b.families.get(&family));
        let (four, six) = (self.first.look(known(Family::V4), now), six.look(known(Family::V6), now));
        let worth = |view: &View| (rank(view.health.state), !view.health.held, view.health.score);
        self.six_speaks = worth(&six) > worth(&four);
        let (stats, voice) = if self.six_speaks { (six.stats, &six) } else { (four.stats, &four) };
        let voice = voice.health.clone();
        let families = BTreeMap::from([(Family::V4, four.health), (Family::V6, six.health)]);
        View { health: whole(PathHealth { families, ..voice }, before, now), stats }
    }
}

/// The health of a path, from that of its better family.
fn whole(mut health: PathHealth, before: Option<&PathHealth>, now: Instant) -> PathHealth {
    let state = health.state;
    for (family, other) in health.families.iter().filter(|(_, other)| other.state != state) {
        health.reason = format!("{}; {family} is {}: {}", health.reason, other.state, other.reason);
    }
    health.since = before.filter(|old| old.state == state).map_or(now, |old| old.since);
    health.good = health.families.values().filter_map(|family| family.good).max();
    health
}

/// How good a state is.
const fn rank(state: PathState) -> u8 {
    match state {
        PathState::Down => 0,
        PathState::Unknown => 1,
        PathState::Degraded => 2,
        PathState::Up => 3,
    }
}

/// What changed: the path, and each family that does not simply go along with it.
pub(super) fn events(
    path: &Name,
    before: Option<&PathHealth>,
    after: &PathHealth,
    now: Instant,
) -> impl Iterator<Item = HealthEvent> {
    let state = |health: Option<&PathHealth>| health.map_or(PathState::Unknown, |h| h.state);
    let event = |family, from, to: &PathHealth| HealthEvent {
        path: path.clone(),
        family,
        from,
        to: to.state,
        reason: to.reason.clone(),
        at: now,
    };
    let was = state(before);
    let whole = (was != after.state).then(|| event(None, was, after));
    let families = after.families.iter().filter_map(|(family, new)| {
        let old = state(before.and_then(|b| b.families.get(family)));
        let apart = new.state != after.state || old != was;
        (old != new.state && apart).then(|| event(Some(*family), old, new))
    });
    whole.into_iter().chain(families).collect::<Vec<_>>().into_iter()
}
