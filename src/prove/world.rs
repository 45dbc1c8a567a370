//! One site on a virtual clock.
//!
//! The order of events of one moment is that in which they were planned, so that a story repeats exactly.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::IpAddr,
    time::Duration,
};

use super::story::Story;
use crate::{
    clock::Instant,
    failover::{self, Decision, Inputs, Overrides, Selection},
    health::{Link, Monitor, Notes, Sample},
    units::{Name, Ratio},
    validate::intent::{Path, Site},
};

/// How the paths behave.
pub trait Weather {
    /// The answer to a probe of a path that is sent at a time, counted from the beginning; `None` = lost. Targets of a
    /// path are asked one after another in each round.
    fn answer(&mut self, path: &Name, target: IpAddr, at: Duration) -> Option<Duration>;

    /// How much of the bandwidth of a path's endpoint is in use then, where that is known.
    fn load(&self, _path: &Name, _at: Duration) -> Option<Ratio> {
        None
    }

    /// The moments at which the link of a path changes, and to what.
    fn links(&self, path: &Name) -> Vec<(Duration, Link)>;
}

/// Where the virtual clock begins: long enough after boot that nothing reaches back before it.
const BEGIN: Instant = Instant::from_nanos(1_000_000_000_000);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Link(Name, u8),
    Send(Name, u64),
    Done(Box<Pending>),
}

/// A round that is under way; ordered by its path and number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    path: Name,
    round: u64,
    sent: Instant,
    answers: Vec<(IpAddr, Option<Duration>)>,
}

/// One site on a virtual clock.
#[derive(Debug)]
pub struct World<'a, W> {
    site: &'a Site,
    weather: W,
    monitor: Monitor,
    selection: Selection,
    /// What people ordered by hand.
    pub overrides: Overrides,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    planned: u64,
    now: Instant,
    next: Option<Instant>,
    links: BTreeMap<Name, Link>,
    story: Story,
}

const LINKS: [Link; 4] = [Link::Ready, Link::NoCarrier, Link::Disabled, Link::Missing];

impl<'a, W: Weather> World<'a, W> {
    /// A site whose daemon starts now.
    pub fn new(site: &'a Site, weather: W) -> Self {
        let mut world = Self {
            site,
            monitor: Monitor::new(site, BEGIN),
            selection: Selection::default(),
            overrides: Overrides::default(),
            events: BinaryHeap::new(),
            planned: 0,
            now: BEGIN,
            next: None,
            links: site.paths.keys().map(|name| (name.clone(), Link::Ready)).collect(),
            story: Story::new(site, BEGIN),
            weather,
        };
        for path in site.paths.values() {
            world.begin(path);
        }
        world.decide();
        world
    }

    fn begin(&mut self, path: &Path) {
        for (at, link) in self.weather.links(&path.name) {
            let link = LINKS.iter().position(|l| *l == link).and_then(|n| u8::try_from(n).ok()).unwrap_or(0);
            self.plan(BEGIN + at, Event::Link(path.name.clone(), link));
        }
        if !path.probe.targets.is_empty() {
            self.plan(BEGIN, Event::Send(path.name.clone(), 0));
        }
    }

    fn plan(&mut self, at: Instant, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((at, self.planned, event)));
    }

    /// Lets the time pass up to a moment, counted from the beginning, that one included.
    pub fn play_until(&mut self, end: Duration) {
        let end = BEGIN + end;
        while let Some(at) = self.upcoming().filter(|at| *at <= end) {
            self.now = at;
            self.monitor.handle_timeout(at);
            while let Some(event) = self.due(at) {
                self.take(event);
            }
            self.decide();
        }
        self.now = end;
    }

    /// The next moment at which something happens.
    fn upcoming(&self) -> Option<Instant> {
        let event = self.events.peek().map(|Reverse((at, ..))| *at);
        let health = self.monitor.poll_timeout().map(|(at, _)| at);
        [event, health, self.next].into_iter().flatten().min().map(|at| at.max(self.now))
    }

    fn due(&mut self, at: Instant) -> Option<Event> {
        let due = self.events.peek().is_some_and(|Reverse((when, ..))| *when <= at);
        due.then(|| self.events.pop()).flatten().map(|Reverse((.., event))| event)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Link(path, link) => {
                let link = LINKS[usize::from(link)];
                self.links.insert(path.clone(), link);
                self.monitor.set_link(&path, link, self.now);
            }
            Event::Send(path, round) => self.send(path, round),
            Event::Done(round) => {
                let Pending { path, round, sent, answers } = *round;
                self.weigh(&path);
                let sample = Sample { path, round, sent, done: self.now, answers, notes: Notes::default() };
                self.monitor.handle_sample(&sample, self.now);
            }
        }
    }

    /// The daemon looks at the load before each judgement too.
    fn weigh(&mut self, name: &Name) {
        let Some(used) = self.weather.load(name, self.now.since(BEGIN)).map(Ratio::as_f64) else { return };
        let busy_at = self.site.paths.get(name).map_or(1.0, |path| path.probe.busy_at.as_f64());
        self.monitor.set_load(name, Some(used), used >= busy_at);
    }

    fn send(&mut self, name: Name, round: u64) {
        let Some(path) = self.site.paths.get(&name) else { return };
        let (probe, at) = (&path.probe, self.now.since(BEGIN));
        let linked = self.links.get(&name) == Some(&Link::Ready);
        let mut answers = Vec::with_capacity(probe.targets.len());
        for target in &probe.targets {
            let answer = self.weather.answer(&name, *target, at).filter(|rtt| linked && *rtt <= probe.timeout);
            answers.push((*target, answer));
        }
        let wait = answers.iter().map(|(_, rtt)| rtt.unwrap_or(probe.timeout)).max().unwrap_or_default();
        let interval = probe.interval;
        self.plan(
            self.now + wait,
            Event::Done(Box::new(Pending { path: name.clone(), round, sent: self.now, answers })),
        );
        self.plan(self.now + interval, Event::Send(name, round + 1));
    }

    /// Asks the rules now, as the daemon does after every event.
    pub fn decide(&mut self) -> Decision {
        for (_, over) in self.overrides.expire(self.now) {
            tracing::trace!(?over, "an order by hand ended");
        }
        let inputs = Inputs {
            site: self.site,
            healths: self.monitor.healths(),
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let decision = failover::decide(&inputs, &mut self.selection, self.now);
        self.next = decision.next.map(|(at, _)| at);
        self.story.note(&inputs, &self.selection, &decision, self.now);
        decision
    }

    /// Now, on the virtual clock.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// The path choice now.
    pub const fn selection(&mut self) -> &mut Selection {
        &mut self.selection
    }

    /// The paths' health now.
    #[must_use]
    pub const fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// What happened.
    #[must_use]
    pub fn into_story(self) -> Story {
        self.story
    }

    /// What happened so far.
    #[must_use]
    pub const fn story(&self) -> &Story {
        &self.story
    }
}
