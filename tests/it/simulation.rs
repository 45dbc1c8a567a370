//! Seeded stories of the whole decision core, with a kernel and a clock that fail: links that are reported late, rounds
//! that come late or twice, machines that sleep, route switches that the kernel refuses, orders by hand.
//!
//! A seed that fails is written into `simulation.seeds` and runs first from then on. `SEEDS=100000` runs more.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use patronus::{
    clock::{Instant, Wall},
    failover::{self, Choice, Decision, Drain, Inputs, Overrides, Pin, Selection, Standing, TransitionKind},
    health::{Link, Monitor, Notes, PathState, Sample},
    units::{Name, Ratio},
    validate::intent::{
        Balance, Damping, Destination, FlowAction, Health, Metric, Nat, NoPath, Path, Probe, Rule, Site, Strategy,
    },
};

const SEEDS: u64 = 20_000;
static MOOD: AtomicU64 = AtomicU64::new(0);
const BEGIN: Instant = Instant::from_nanos(3_600_000_000_000);
const PATHS: [&str; 3] = ["a", "b", "c"];

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Steele, Lea and Flood's `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

fn site(dice: &mut Dice) -> Site {
    let target = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let path = |path: &str| Path {
        name: name(path),
        from: name(path),
        to: Destination::Internet,
        interface: format!("wan-{path}").parse().unwrap(),
        nat: Nat::Masquerade,
        mtu: None,
        probe: Probe {
            targets: vec![target],
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            down_after: 2,
            up_after: 2,
            window: 6,
            ..Probe::default()
        }
        .into(),
        health: Health {
            latency: Duration::from_millis(150),
            loss: Ratio::of(1, 50),
            jitter: Duration::from_millis(500),
            recover: None,
        },
    };
    let seconds = |n: u64| Duration::from_secs(n);
    let mut rule = Rule::new(name("r"), PATHS.map(name).to_vec());
    rule.strategy = dice.of(&[
        Strategy::Ordered,
        Strategy::BestScore,
        Strategy::BestQuality,
        Strategy::LowestCost,
        Strategy::LoadBalance,
        Strategy::Overflow,
    ]);
    rule.overflow = (rule.strategy == Strategy::Overflow).then(|| Ratio::of(8, 10));
    let equally = || Balance { weights: PATHS.map(|p| (name(p), 1)).into(), sticky: None };
    rule.balance = (rule.strategy == Strategy::LoadBalance).then(equally);
    rule.metric = dice.of(&[Metric::Latency, Metric::Loss]);
    rule.advantage = dice.of(&[None, Some(Ratio::of(1, 10))]);
    rule.failback_delay = seconds(dice.of(&[0, 3, 10, 30]));
    rule.hold_down = seconds(dice.of(&[0, 5, 20]));
    rule.no_path = dice.of(&[NoPath::Keep, NoPath::Reject, NoPath::LeastBad, NoPath::NextPolicy]);
    rule.on_failover =
        dice.of(&[FlowAction::Auto, FlowAction::Forced, FlowAction::Drain(seconds(7)), FlowAction::Reject]);
    let damping = Damping { penalty: 1000, half_life: seconds(15), suppress: 2500, reuse: 1000 };
    rule.damping = dice.one_in(2).then_some(damping);
    Site {
        name: name("site"),
        labels: BTreeMap::new(),
        lan: Vec::new(),
        endpoints: BTreeMap::new(),
        paths: PATHS.iter().map(|p| (name(p), path(p).into())).collect(),
        rules: [(name("r"), rule)].into(),
        policies: Vec::new(),
        beyond: BTreeMap::new(),
    }
}

/// What is done wrong on purpose, to see the checker find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    None,
    /// Decisions are taken on what was measured some time ago.
    OldHealth,
    /// Nothing is held or damped.
    NoHold,
    /// Nothing is ever returned to.
    NoReturn,
    /// The kernel's refusals are not noticed.
    ForgetsRefusals,
    /// Something beside the inputs decides.
    Moody,
    /// Full lines are not noticed.
    NeverFull,
}

/// How a path behaves until `until`.
#[derive(Debug, Clone, Copy)]
struct Mood {
    until: u64,
    answers: u64,
    ms: u64,
    /// Of a hundred parts of its bandwidth.
    used: u64,
}

struct Play {
    site: Site,
    /// What is decided upon in its place.
    wrong: Option<Site>,
    dice: Dice,
    sabotage: Sabotage,
    monitor: Monitor,
    stale: patronus::health::Healths,
    selection: Selection,
    overrides: Overrides,
    /// The path that the kernel sends the rule's traffic by.
    kernel: Option<Name>,
    dirty: bool,
    now: Instant,
    moods: BTreeMap<&'static str, Mood>,
    /// Since when each line has been more than four fifths full, at every look; none if it never was.
    over: BTreeMap<&'static str, Option<Instant>>,
    late: Vec<(Instant, Sample)>,
    trace: String,
}

/// The site as a sabotaged decision sees it.
fn wrong(site: &Site, sabotage: Sabotage) -> Option<Site> {
    let mut site = site.clone();
    let rule = site.rules.get_mut("r").unwrap();
    match sabotage {
        Sabotage::NoHold => (rule.hold_down, rule.damping) = (Duration::ZERO, None),
        Sabotage::NeverFull => rule.overflow = rule.overflow.map(|_| Ratio::ONE),
        Sabotage::NoReturn => rule.failback_delay = Duration::from_secs(1_000_000),
        _ => return None,
    }
    Some(site)
}

type Verdict = Result<String, String>;

impl Play {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut dice = Dice(seed);
        let site = site(&mut dice);
        let monitor = Monitor::new(&site, BEGIN);
        let calm = Mood { until: 0, answers: 100, ms: 20, used: 5 };
        Self {
            wrong: wrong(&site, sabotage),
            site,
            dice,
            sabotage,
            stale: monitor.healths().clone(),
            monitor,
            selection: Selection::default(),
            overrides: Overrides::default(),
            kernel: None,
            dirty: false,
            now: BEGIN,
            moods: PATHS.map(|p| (p, calm)).into(),
            over: BTreeMap::new(),
            late: Vec::new(),
            trace: String::new(),
        }
    }

    fn run(mut self) -> Verdict {
        let seconds = 15 + self.dice.below(25);
        for second in 0..seconds {
            self.weather(second);
            self.orders(second);
            for path in PATHS {
                self.round(path, second, false);
            }
            self.arrivals();
            self.decide()?;
            self.now = self.now + Duration::from_secs(if self.dice.one_in(60) { 1 + self.dice.below(300) } else { 1 });
        }
        self.calm_down(seconds)?;
        Ok(self.trace)
    }

    fn weather(&mut self, second: u64) {
        for path in PATHS {
            if self.moods[path].until <= second {
                let until = second + 1 + self.dice.below(12);
                let (answers, ms) = self.dice.of(&[(100, 20), (100, 20), (0, 20), (60, 30), (100, 400), (95, 60)]);
                let used = self.dice.of(&[5, 5, 30, 70, 85, 99]);
                self.moods.insert(path, Mood { until, answers, ms, used });
            }
            let known = !self.dice.one_in(20);
            self.load(path, known.then_some(self.moods[path].used));
            if self.dice.one_in(25) {
                let link = self.dice.of(&[Link::NoCarrier, Link::Ready, Link::Ready, Link::Disabled]);
                self.monitor.set_link(&name(path), link, self.now);
            }
        }
    }

    /// How full a line is, in hundredths, as far as that is known.
    fn load(&mut self, path: &'static str, used: Option<u64>) {
        let share = used.map(|n| f64::from(u32::try_from(n).unwrap()) / 100.0);
        self.monitor.set_load(&name(path), share, used.is_some_and(|n| n > 95));
        let now = self.now;
        match used {
            Some(81..) => drop(self.over.entry(path).or_default().get_or_insert(now)),
            _ => drop(self.over.get_mut(path).map(Option::take)),
        }
    }

    fn orders(&mut self, second: u64) {
        let path = name(self.dice.of(&PATHS));
        match self.dice.below(60) {
            0 => {
                let until = self.now + Duration::from_secs(1 + self.dice.below(15));
                let pin = Pin { to: path, until, reason: format!("second {second}") };
                self.overrides.pins.insert(name("r"), pin);
            }
            1 => drop(self.overrides.drains.insert(path, Drain { since: Wall::default(), force: self.dice.one_in(3) })),
            2 | 3 => drop(self.overrides.drains.pop_first()),
            _ => {}
        }
        self.overrides.expire(self.now);
    }

    fn round(&mut self, path: &'static str, number: u64, calm: bool) {
        let mood = if calm { Mood { until: 0, answers: 100, ms: 20, used: 5 } } else { self.moods[path] };
        let rtt = (self.dice.below(100) < mood.answers).then(|| Duration::from_millis(mood.ms));
        let target = self.site.paths[path].probe.targets[0];
        let sent = self.now;
        let done = sent + rtt.unwrap_or(Duration::from_millis(800));
        let sample = Sample {
            path: name(path),
            round: number,
            sent,
            done,
            answers: vec![(target, rtt)],
            notes: Notes::default(),
        };
        if !calm && self.dice.one_in(12) {
            let at = self.now + Duration::from_secs(self.dice.below(4));
            self.late.push((at, sample.clone()));
            if self.dice.one_in(2) {
                return;
            }
        }
        self.monitor.handle_sample(&sample, self.now);
    }

    fn arrivals(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.late).into_iter().partition(|(at, _)| *at <= now);
        self.late = later;
        let due: Vec<(Instant, Sample)> = due;
        for (_, sample) in due {
            self.monitor.handle_sample(&sample, now);
        }
        self.monitor.handle_timeout(now);
    }

    fn rule(&self) -> &Rule {
        &self.site.rules["r"]
    }

    fn decide(&mut self) -> Result<Decision, String> {
        if self.sabotage == Sabotage::OldHealth && self.dice.one_in(8) {
            self.stale = self.monitor.healths().clone();
        }
        let before = self.selection.clone();
        let inputs = Inputs {
            site: self.wrong.as_ref().unwrap_or(&self.site),
            healths: if self.sabotage == Sabotage::OldHealth { &self.stale } else { self.monitor.healths() },
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let decision = failover::decide(&inputs, &mut self.selection, self.now);
        if self.sabotage == Sabotage::Moody {
            // What another story left behind.
            let _ = write!(self.trace, "{} ", MOOD.fetch_add(1, Ordering::Relaxed) % 7);
        }
        self.check(&before, &decision)?;
        for t in &decision.transitions {
            let _ = writeln!(self.trace, "{} {:?} {:?} -> {:?}: {}", t.at.as_nanos(), t.kind, t.from, t.to, t.reason);
        }
        self.carry_out(&decision);
        Ok(decision)
    }

    /// The kernel takes the switch, or refuses and is asked again with the next pass.
    fn carry_out(&mut self, decision: &Decision) {
        self.dirty |= decision.routes;
        let refused = self.dirty && self.dice.one_in(6);
        if self.dirty && !refused {
            self.kernel.clone_from(&self.selection.rules["r"].active);
        }
        self.dirty = refused && self.sabotage != Sabotage::ForgetsRefusals;
    }

    fn state(&self, path: &Name) -> PathState {
        self.monitor.healths()[path].state
    }

    /// Works, by what is known now, and may be used.
    fn works(&self, path: &Name) -> bool {
        let barred = self.overrides.drains.get(path).is_some_and(|d| d.force);
        !barred && matches!(self.state(path), PathState::Up | PathState::Degraded)
    }

    fn check(&self, before: &Selection, decision: &Decision) -> Result<(), String> {
        let choice = &self.selection.rules["r"];
        let others = |path: &Name| self.rule().members.iter().any(|m| m != path && self.works(m));
        if let Some(active) = choice.in_use().find(|a| self.state(a) == PathState::Down && others(a)) {
            return Err(format!("on {active}, which is down, while another works"));
        }
        if choice.active.is_none() && self.rule().members.iter().any(|m| self.works(m)) {
            return Err("no path is used while one works".into());
        }
        if choice.active.as_ref().is_some_and(|a| choice.tail.contains(a)) {
            return Err("the path in use stands in the tail too".into());
        }
        self.check_lines(choice)?;
        let entered = decision.transitions.iter().filter(|t| t.from != t.to && t.kind != TransitionKind::Manual);
        for t in entered {
            self.check_entry(before, t.to.as_ref(), t.from.as_ref())?;
        }
        if decision.next.is_some_and(|(at, _)| at <= self.now) {
            return Err(format!("asks to be asked again at a moment that is over: {:?}", decision.next));
        }
        Ok(())
    }

    /// New flows take no line that is full while another is free that never was, and pass by none such for a later one.
    fn check_lines(&self, choice: &Choice) -> Result<(), String> {
        let Some(active) = choice.active.as_ref().filter(|_| self.rule().overflow.is_some()) else { return Ok(()) };
        let inputs = Inputs {
            site: &self.site,
            healths: self.monitor.healths(),
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let free: Vec<&Name> = failover::standings(&inputs, self.rule(), choice)
            .filter(|(_, standing)| matches!(standing, Standing::Up | Standing::Degraded))
            .map(|(path, _)| path)
            .collect();
        let calm = |path: &&Name| {
            choice.sharing.contains(path) && free.contains(path) && !self.over.contains_key(path.as_str())
        };
        let (members, pinned) = (&self.rule().members, self.overrides.pin(&name("r"), self.now).is_some());
        let Some(better) = members.iter().find(calm).filter(|better| *better != active && !pinned) else {
            return Ok(());
        };
        if members.iter().find(|m| *m == better || *m == active) == Some(better) {
            return Err(format!("new flows take {active} and pass by {better}, which was never full"));
        }
        let full = self.over.get(active.as_str()).copied().flatten();
        match full.filter(|since| self.now.since(*since) >= Duration::from_secs(1)) {
            Some(_) => Err(format!("new flows take {active}, which is full, and {better} is not")),
            None => Ok(()),
        }
    }

    /// A path that is held or damped is entered only when no other works that is not.
    fn check_entry(&self, before: &Selection, to: Option<&Name>, from: Option<&Name>) -> Result<(), String> {
        let (Some(to), Some(old)) = (to, before.rules.get("r")) else { return Ok(()) };
        // Whoever takes over the share of another is no newcomer.
        if old.in_use().any(|used| used == to) {
            return Ok(());
        }
        let inputs = Inputs {
            site: &self.site,
            healths: self.monitor.healths(),
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let views = failover::views(&inputs, self.rule(), old, self.now);
        let standing = |path: &Name| views.iter().find(|v| v.path == *path).map(|v| v.standing);
        let kept = |s: Option<Standing>| matches!(s, Some(Standing::Held | Standing::Damped));
        let free = |v: &&failover::View| {
            v.path != *to && Some(&v.path) != from && matches!(v.standing, Standing::Up | Standing::Degraded)
        };
        match views.iter().find(free) {
            Some(other) if kept(standing(to)) => {
                Err(format!("{to} is {:?} and was entered while {} is free", standing(to), other.path))
            }
            _ => Ok(()),
        }
    }

    /// All is well from now on: it ends where it should, in the kernel too.
    fn calm_down(&mut self, mut second: u64) -> Result<(), String> {
        self.overrides = Overrides::default();
        self.late.clear();
        for path in PATHS {
            self.monitor.set_link(&name(path), Link::Ready, self.now);
        }
        for round in 0..24 {
            for path in PATHS {
                self.load(path, Some(5));
                self.round(path, second, true);
            }
            second += 1;
            let decision = self.decide()?;
            let waiting = decision.next.filter(|_| round >= 8).map(|(at, _)| at);
            // The longest legitimate wait is that of damping: some fifty seconds.
            let waiting = waiting.filter(|at| at.since(self.now) < Duration::from_secs(600));
            self.now = waiting.unwrap_or(self.now).max(self.now + Duration::from_secs(1));
        }
        let settled = self.selection.rules["r"].clone();
        let home = &self.rule().members[0];
        let by_rank = [Strategy::Ordered, Strategy::BestScore, Strategy::Overflow].contains(&self.rule().strategy);
        if by_rank && settled.active.as_ref() != Some(home) {
            return Err(format!("all is well, and it ends on {:?}", settled.active));
        }
        if self.rule().balance.is_some() && settled.sharing != self.rule().members {
            return Err(format!("all is well, and only {:?} share", settled.sharing));
        }
        if self.kernel != settled.active {
            return Err(format!("the kernel is on {:?}, the rule on {:?}", self.kernel, settled.active));
        }
        if settled.active.is_none() || settled.exhausted {
            return Err("all is well, and the rule thinks that nothing is up".into());
        }
        let _ = write!(self.trace, "ends on {:?}", settled.active);
        Ok(())
    }
}

fn play(seed: u64, sabotage: Sabotage) -> Verdict {
    let verdict = Play::new(seed, sabotage).run();
    // Every fourth story is told twice.
    if seed.is_multiple_of(4) && verdict.is_ok() && Play::new(seed, sabotage).run() != verdict {
        return Err("the same seed gave another story".into());
    }
    verdict
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/simulation.seeds")
}

fn kept() -> Vec<u64> {
    let text = fs::read_to_string(file()).unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// The first seed of a range that fails, and why.
fn first_failure(seeds: impl Iterator<Item = u64>, sabotage: Sabotage) -> Option<(u64, String)> {
    let mut failed = seeds.filter_map(|seed| Some((seed, play(seed, sabotage).err()?)));
    failed.next()
}

#[test]
fn whatever_happens_the_rules_hold_in_every_seed() {
    if let Some((seed, why)) = first_failure(kept().into_iter(), Sabotage::None) {
        panic!("the kept seed {seed}: {why}");
    }
    let seeds = std::env::var("SEEDS").map_or(SEEDS, |n| n.parse().unwrap());
    let half = |n: u64| thread::spawn(move || first_failure((n..seeds).step_by(2), Sabotage::None));
    let halves = [0, 1].map(half);
    for half in halves {
        if let Some((seed, why)) = half.join().unwrap() {
            let mut text = fs::read_to_string(file()).unwrap();
            let _ = writeln!(text, "{seed} {why}");
            fs::write(file(), text).unwrap();
            panic!("seed {seed}, now kept in {}: {why}", file().display());
        }
    }
}

/// The sabotage twins: each fault is found within a few seeds.
#[test]
fn the_checker_sees_each_way_to_decide_wrongly() {
    for sabotage in [
        Sabotage::OldHealth,
        Sabotage::NoHold,
        Sabotage::NoReturn,
        Sabotage::ForgetsRefusals,
        Sabotage::Moody,
        Sabotage::NeverFull,
    ] {
        let found = first_failure(0..2_000, sabotage);
        assert!(found.is_some(), "{sabotage:?} was not noticed");
    }
}
