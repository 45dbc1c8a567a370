//! Windows, statistics, score and state of each path. Pure: `now` is an argument.
//!
//! [`Monitor`] takes samples and link changes and publishes [`Healths`] and [`Measures`]. How figures and score
//! come about is told in [`estimate`].
//!
//! A path with targets of both families has a state per family too (`health::family`).
//!
//! Invariant: a path becomes worse at once and better only on evidence. One that was down, or lost its link, has to
//! answer `up_after` rounds in a row first; its score then still remembers what the window saw before that outage.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

mod answers;
mod band;
pub mod estimate;
mod family;
pub mod load;
pub mod quality;
mod track;
mod vote;

pub use band::Breach;
pub use estimate::{Figures, Stats, points, score};
use family::Tracks;
pub(crate) use track::explain;
use vote::{Jury, Service};

use crate::{
    clock::Instant,
    units::{Family, Name, Ratio, pack},
    validate::intent::Site,
};

/// The result of one probe round of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The path.
    pub path: Name,
    /// Rises by one with each round of a path.
    pub round: u64,
    /// When the round was sent.
    pub sent: Instant,
    /// When it was complete: all answers there, or timed out.
    pub done: Instant,
    /// Per target, the round-trip time; `None` = no valid answer in time.
    pub answers: Vec<(IpAddr, Option<Duration>)>,
    /// What else was seen.
    pub notes: Notes,
}

/// What a round showed beside its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Answers since the last round that came a second time.
    pub duplicates: u32,
    /// Answers since the last round that were overtaken by that of a later probe.
    pub reordered: u32,
    /// Delays of both directions, where both ends' clocks are synchronised.
    pub one_way: Option<OneWay>,
    /// What a target answered that is not the expected answer, for a person.
    pub said: Option<Box<str>>,
}

impl Sample {
    /// The answers of the targets of a family, or of all.
    pub fn of(&self, family: Option<Family>) -> impl Iterator<Item = &(IpAddr, Option<Duration>)> {
        self.answers.iter().filter(move |(target, _)| family.is_none_or(|family| Family::of(target) == family))
    }

    /// Whether of the targets of a family so many answered as have to; beside targets of the other one, all of them are
    /// enough.
    #[must_use]
    pub fn is_good(&self, family: Family, quorum: u32) -> bool {
        let targets = || self.of(Some(family));
        let (asked, answered) = (targets().count(), targets().filter(|(_, rtt)| rtt.is_some()).count());
        let quorum = usize::try_from(quorum).unwrap_or(usize::MAX);
        let least = if asked < self.answers.len() { quorum.min(asked) } else { quorum };
        asked > 0 && answered >= least
    }
}

/// Delays of the two directions of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneWay {
    /// Towards the target.
    pub there: Duration,
    /// Back from it.
    pub back: Duration,
}

/// State of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// Not yet measured.
    Unknown,
    /// Score 80 or more.
    Up,
    /// Score 50 or more.
    Degraded,
    /// Score below 50, no answers, no carrier or no interface.
    Down,
}

/// What is known of a path now. `latency` and `jitter` are absent when nothing was answered: never 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathHealth {
    /// Its state.
    pub state: PathState,
    /// 0 to 100.
    pub score: u8,
    /// Lost probes of the window.
    pub loss: Ratio,
    /// Mean round-trip time of the window.
    pub latency: Option<Duration>,
    /// Interarrival jitter (RFC 3550, section 6.4.1) over the window.
    pub jitter: Option<Duration>,
    /// Rounds in the window.
    pub rounds: u32,
    /// Whether the interface is there, up and has a carrier.
    pub carrier: bool,
    /// Whether somebody set the interface down.
    #[serde(default)]
    pub disabled: bool,
    /// Whether the state is that of before, because nothing that is probed answers on any path.
    #[serde(default)]
    pub held: bool,
    /// When the newest round was sent that was answered by as many targets as have to.
    #[serde(default)]
    pub good: Option<Instant>,
    /// The share of its endpoint's declared bandwidth that is in use, by the direction that uses more of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<f64>,
    /// Since when the state holds.
    pub since: Instant,
    /// Why it is in this state, for a person: "3 rounds lost in a row".
    pub reason: String,
    /// Each family by itself, where both are probed; the path is as its better family.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub families: BTreeMap<Family, PathHealth>,
}

impl PathHealth {
    /// That of one family, where families are measured apart; else that of the path.
    #[must_use]
    pub fn of(&self, family: Option<Family>) -> &Self {
        family.and_then(|family| self.families.get(&family)).unwrap_or(self)
    }
}

/// Health of all paths of the site.
pub type Healths = BTreeMap<Name, PathHealth>;

/// Figures of all paths, to score them against other thresholds than their own.
pub type Measures = BTreeMap<Name, Stats>;

impl PathState {
    /// The state that a score means: up from 80, degraded from 50, else down.
    #[must_use]
    pub const fn of(score: u8) -> Self {
        match score {
            80.. => Self::Up,
            50.. => Self::Degraded,
            _ => Self::Down,
        }
    }
}

impl std::fmt::Display for PathState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        })
    }
}

/// What the kernel says of a path's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It is there, up and has a carrier.
    Ready,
    /// It is up and has no carrier.
    NoCarrier,
    /// It is administratively down.
    Disabled,
    /// There is no such interface.
    Missing,
}

/// A change of a path's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthEvent {
    /// The path.
    pub path: Name,
    /// The family that alone is concerned; none if it is the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Its state before.
    pub from: PathState,
    /// Its state now.
    pub to: PathState,
    /// Why, for a person.
    pub reason: String,
    /// When.
    pub at: Instant,
}

/// The health of all paths of one site.
#[derive(Debug, Clone, Default)]
pub struct Monitor {
    tracks: BTreeMap<Name, Tracks>,
    healths: Healths,
    measures: Measures,
    events: VecDeque<HealthEvent>,
    jury: Jury,
    /// Whether the observer was suspect when last looked.
    blind: bool,
    /// No path falls silent before this moment. A sample only moves a path's own later, so that looking at all of
    /// them is needed when it comes, and not with each of a thousand samples a second.
    silence: Option<Instant>,
}

impl Monitor {
    /// Begins with every path unknown and its link taken to be ready until told otherwise.
    #[must_use]
    pub fn new(site: &Site, now: Instant) -> Self {
        let mut monitor = Self::default();
        monitor.reconfigure(site, now);
        monitor
    }

    /// Takes over new settings. A path whose probing and interface did not change keeps its history.
    pub fn reconfigure(&mut self, site: &Site, now: Instant) {
        self.tracks.retain(|name, _| site.paths.contains_key(name));
        let gone: Vec<Name> = self.healths.keys().filter(|name| !site.paths.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.jury.remove(name);
        }
        self.healths.retain(|name, _| site.paths.contains_key(name));
        self.measures.retain(|name, _| site.paths.contains_key(name));
        for (name, path) in &site.paths {
            let same = if let Some(track) = self.tracks.get_mut(name) {
                track.reconfigure(path, now)
            } else {
                self.tracks.insert(name.clone(), Tracks::new(path, now));
                false
            };
            if !same {
                let services = path.probe.targets.iter().map(|t| Service::of(name, *t, &path.probe.method));
                self.jury.begin(name, services);
            }
            self.look(name, now);
        }
        pack(&mut self.tracks);
        pack(&mut self.healths);
        pack(&mut self.measures);
        self.jury.pack();
    }

    /// Takes in the result of a probe round. What is known of the path then; samples of unknown paths are dropped, and
    /// those that another configuration has asked for.
    pub fn handle_sample(&mut self, sample: &Sample, now: Instant) -> Option<&PathHealth> {
        let track = self.tracks.get_mut(&sample.path).filter(|track| track.has_asked(sample))?;
        track.add(sample, now);
        if track.is_ready() {
            let targets = track.targets().iter();
            let answered = |t: &IpAddr| sample.answers.iter().any(|(target, rtt)| target == t && rtt.is_some());
            self.jury.add(&sample.path, sample.sent, targets.map(answered));
        }
        self.weigh(&sample.path, now);
        self.look(&sample.path, now);
        let health = self.healths.get(&sample.path)?;
        if health.state == PathState::Down {
            self.jury.convict(&sample.path);
        }
        for (family, _) in health.families.iter().filter(|(_, health)| health.state == PathState::Down) {
            self.jury.convict_family(&sample.path, *family);
        }
        Some(health)
    }

    /// Takes the vote from targets that are suspect now, and gives it back to those that are no more.
    fn weigh(&mut self, path: &Name, now: Instant) {
        let observer = self.jury.observer_is_suspect();
        let concerned = if std::mem::replace(&mut self.blind, observer) == observer {
            let suspects = self.jury.suspects(path);
            if self.tracks.get(path).is_some_and(|t| t.suspects() == suspects) {
                return;
            }
            self.jury.sharing(path)
        } else {
            self.tracks.keys().cloned().collect()
        };
        for name in concerned {
            if let Some(track) = self.tracks.get_mut(&name) {
                track.suspect(&self.jury.suspects(&name));
                self.look(&name, now);
            }
        }
    }

    /// Takes in which share of its bandwidth a path uses, where that is known, and whether it is busy with that.
    pub fn set_load(&mut self, path: &Name, used: Option<f64>, busy: bool) {
        if let Some(track) = self.tracks.get_mut(path) {
            track.set_load(used, busy);
        }
        if let Some(health) = self.healths.get_mut(path) {
            health.used = used;
        }
    }

    /// What a person should know: targets that are at fault themselves, and paths that their own traffic slows down.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let congested = self.tracks.iter().filter(|(_, track)| track.is_congested());
        let text = |name: &Name| self.healths.get(name).map(|h| format!("path {name} is {}", h.reason));
        self.jury.alarms().into_iter().chain(congested.filter_map(|(name, _)| text(name))).collect()
    }

    /// Takes in whether a path's interface is there, up and has a carrier.
    pub fn set_carrier(&mut self, path: &Name, carrier: bool, now: Instant) {
        self.set_link(path, if carrier { Link::Ready } else { Link::NoCarrier }, now);
    }

    /// Takes in what the kernel says of a path's interface.
    pub fn set_link(&mut self, path: &Name, link: Link, now: Instant) {
        if let Some(track) = self.tracks.get_mut(path) {
            track.set_link(link);
            if link != Link::Ready {
                self.jury.clear(path);
                self.weigh(path, now);
            }
            self.look(path, now);
        }
    }

    /// When to call [`Self::handle_timeout`], and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Some((self.silence?, "a path of which the prober may report nothing"))
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.silence.is_none_or(|at| at > now) {
            return;
        }
        let due = |track: &Tracks| track.silent_at().is_some_and(|at| at <= now);
        let names: Vec<Name> = self.tracks.iter().filter(|(_, t)| due(t)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.look(&name, now);
        }
        self.silence = self.tracks.values().filter_map(Tracks::silent_at).min();
    }

    /// Takes in that for so long, up to now, nobody listened to the prober: that it was not heard says nothing.
    pub fn excuse(&mut self, deaf: Duration, now: Instant) {
        self.tracks.values_mut().for_each(|track| track.excuse(deaf, now));
        self.silence = self.tracks.values().filter_map(Tracks::silent_at).min();
    }

    /// The next change of a path's state that was not yet fetched.
    pub fn poll_event(&mut self) -> Option<HealthEvent> {
        self.events.pop_front()
    }

    /// All paths.
    #[must_use]
    pub const fn healths(&self) -> &Healths {
        &self.healths
    }

    /// The figures behind the scores.
    #[must_use]
    pub const fn measures(&self) -> &Measures {
        &self.measures
    }

    /// Round-trip times of a path's window; none without answers.
    #[must_use]
    pub fn spread(&self, path: &Name) -> Option<quality::Spread> {
        self.tracks.get(path)?.spread()
    }

    /// Takes over what an earlier process knew of paths that were not measured since.
    pub fn remember(&mut self, known: &Healths, now: Instant) {
        for (name, health) in known {
            let fresh = self.healths.get(name).is_some_and(|h| h.state == PathState::Unknown && h.rounds == 0);
            if let Some(track) = self.tracks.get_mut(name).filter(|_| fresh) {
                track.remember(health);
                self.look(name, now);
            }
        }
    }

    fn look(&mut self, name: &Name, now: Instant) {
        let Some(track) = self.tracks.get_mut(name) else { return };
        if let Some(at) = track.silent_at() {
            self.silence = Some(self.silence.map_or(at, |earlier| earlier.min(at)));
        }
        let before = self.healths.get(name);
        let view = track.look(before, now);
        self.events.extend(family::events(name, before, &view.health, now));
        if let Some(stats) = view.stats {
            put(&mut self.measures, name, stats);
        }
        put(&mut self.healths, name, view.health);
    }
}

/// Puts in what is mostly there already.
fn put<T>(map: &mut BTreeMap<Name, T>, name: &Name, value: T) {
    match map.get_mut(name) {
        Some(old) => *old = value,
        None => drop(map.insert(name.clone(), value)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
