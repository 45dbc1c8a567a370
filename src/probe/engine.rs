//! The probing thread: one loop over the schedule, the rounds under way and the sockets.
//!
//! While a path's last round was lost it is probed faster, and so are paths that share a target with it, so that it is
//! soon known whether the target or the path is at fault.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinSet,
    time::{self, sleep},
};
use tracing::{info, warn};

use super::{
    ProbeSpec,
    dialogue::{self, Outcome, Way},
    echo::{self, Reply},
    rounds::{RoundKey, Rounds, Sent},
    schedule::Schedule,
    senders::Senders,
    stamp,
};
use crate::{
    clock::{self, Instant},
    health::Sample,
    http::Client,
    units::{Family, Name, pack},
    validate::intent::Method,
};

/// Paths that are asked about a target when another path does not reach it.
const WITNESSES: usize = 8;

/// A path that is probed.
#[derive(Debug)]
struct Probed {
    spec: Arc<ProbeSpec>,
    round: u64,
    /// The newest round that was sent by other settings; what comes of it says nothing of these.
    outdated: u64,
    /// Of IPv4 and IPv6.
    counts: [Count; 2],
    /// Why its probes cannot be sent, as reported last; told once and not with each probe.
    trouble: Option<String>,
}

/// What became of the rounds of one family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    /// The newest that succeeded.
    good: u64,
    /// Lost in a row.
    lost: u32,
}

impl Probed {
    /// A path that is probed in this way from now on, and how it was before. Another mark or address leaves what was found
    /// out of it; another way of probing or another gateway does not, and what comes of rounds that were sent before says
    /// nothing of it.
    fn by(spec: ProbeSpec, before: Option<Self>) -> Self {
        match before {
            Some(same) if *same.spec == spec => same,
            Some(moved) if moved.spec.leads_as(&spec) => Self { spec: Arc::new(spec), trouble: None, ..moved },
            changed => {
                let round = changed.map_or(0, |c| c.round);
                Self { spec: Arc::new(spec), round, outdated: round, counts: <[Count; 2]>::default(), trouble: None }
            }
        }
    }
}

/// A probe that is more than a packet, when it ended.
#[derive(Debug)]
struct Held {
    nonce: u64,
    path: Name,
    target: IpAddr,
    outcome: Outcome,
}

#[derive(Debug)]
pub(super) struct Engine {
    senders: Senders,
    dialogues: JoinSet<Held>,
    web: Option<Arc<Client>>,
    random: RandomState,
    drawn: u64,
    samples: mpsc::Sender<Sample>,
    /// Results of this turn. They go out together, so that whoever waits for them is woken once.
    ready: Vec<Sample>,
    full: bool,
    paths: BTreeMap<Name, Probed>,
    /// Paths by target. Looked up by key, never iterated.
    sharing: HashMap<IpAddr, Vec<Name>>,
    schedule: Schedule,
    rounds: Rounds,
    packet: Vec<u8>,
}

impl Engine {
    pub fn new(senders: Senders, random: RandomState, samples: mpsc::Sender<Sample>, synchronised: bool) -> Self {
        let mut rounds = Rounds::default();
        rounds.synchronised = synchronised;
        Self {
            senders,
            dialogues: JoinSet::new(),
            web: None,
            random,
            drawn: 0,
            samples,
            ready: Vec::new(),
            full: false,
            paths: BTreeMap::new(),
            sharing: HashMap::new(),
            schedule: Schedule::default(),
            rounds,
            packet: Vec::new(),
        }
    }

    /// Runs until the handle is dropped.
    pub async fn run(mut self, mut specs: mpsc::UnboundedReceiver<Vec<ProbeSpec>>) {
        let mut timer = pin!(sleep(Duration::ZERO));
        loop {
            let wait = self.poll_timeout().map_or(Duration::from_secs(3600), |at| at.since(clock::now()));
            timer.as_mut().reset(time::Instant::now() + wait);
            tokio::select! {
                new = specs.recv() => match new {
                    Some(new) => self.configure(new),
                    None => return,
                },
                () = self.senders.readable() => {}
                Some(done) = self.dialogues.join_next() => {
                    // A dialogue that panicked is lost; its round ends by its time.
                    if let Ok(held) = done {
                        self.settle(held);
                    }
                }
                () = &mut timer => {}
            }
            self.turn();
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let (next, end) = (self.schedule.poll_timeout(), self.rounds.poll_timeout());
        next.into_iter().chain(end).map(|(at, _)| at).min()
    }

    fn configure(&mut self, specs: Vec<ProbeSpec>) {
        let now = clock::now();
        let mut old = std::mem::take(&mut self.paths);
        self.sharing.clear();
        for spec in specs.into_iter().filter(|s| !s.probe.targets.is_empty()) {
            let path = spec.path.clone();
            self.prepare(&spec);
            self.schedule.set(&spec.path, spec.probe.interval, now);
            for target in &spec.probe.targets {
                // Mostly one path asks a target.
                self.sharing.entry(*target).or_insert_with(|| Vec::with_capacity(1)).push(spec.path.clone());
            }
            let probed = Probed::by(spec, old.remove(&path));
            if probed.counts.iter().all(|count| count.lost == 0) {
                self.schedule.pace(&path, None, now);
            }
            self.paths.insert(probed.spec.path.clone(), probed);
        }
        pack(&mut self.paths);
        self.schedule.pack();
        for gone in old.keys() {
            self.schedule.remove(gone);
            self.rounds.remove(gone);
        }
    }

    /// Opens what the method needs. What cannot be opened is told with each path that needs it.
    fn prepare(&mut self, spec: &ProbeSpec) {
        let path = &spec.path;
        if let Err(error) = self.senders.prepare(spec) {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            warn!(%path, "{error}{cause}");
        }
        if matches!(spec.probe.method, Method::Http(_)) && self.web.is_none() {
            match Client::new(None) {
                Ok(client) => self.web = Some(Arc::new(client)),
                Err(error) => warn!(%path, "{error}"),
            }
        }
    }

    /// What came in first, so that an answer that waits in the socket is not called late; then what is due.
    fn turn(&mut self) {
        self.senders.renew();
        while let Some(arrival) = self.senders.receive() {
            if let Some(sample) = self.rounds.arrived(&arrival) {
                self.report(sample);
            }
        }
        while let Some(Ok(held)) = self.dialogues.try_join_next() {
            self.settle(held);
        }
        let now = clock::now();
        while let Some(sample) = self.rounds.expired(now) {
            self.report(sample);
        }
        self.hand_over();
        while let Some(path) = self.schedule.pop(now) {
            self.probe(&path);
        }
        self.hand_over();
    }

    fn settle(&mut self, held: Held) {
        let (rtt, said, trouble) = match held.outcome {
            Outcome::Answered(rtt) => (Some(rtt), None, None),
            Outcome::Wrong(said) => (None, Some(said), None),
            Outcome::Lost => (None, None, None),
            Outcome::Unsent(why) => (None, None, Some(why)),
        };
        if let Some(probed) = self.paths.get_mut(&held.path) {
            let trouble = trouble.map(|why| format!("{} over {}: {why}", held.target, probed.spec.interface));
            tell(probed, trouble);
        }
        if let Some(sample) = self.rounds.settled(held.nonce, rtt, said, clock::now()) {
            self.report(sample);
        }
    }

    fn report(&mut self, sample: Sample) {
        if self.paths.get(&sample.path).is_none_or(|probed| sample.round <= probed.outdated) {
            return;
        }
        self.weigh(&sample);
        self.ready.push(sample);
    }

    fn hand_over(&mut self) {
        for sample in self.ready.drain(..) {
            let full = matches!(self.samples.try_send(sample), Err(TrySendError::Full(_)));
            if full && !self.full {
                warn!("probe results are not taken in fast enough: some are dropped");
            }
            self.full = full;
        }
    }

    /// Probes faster while a loss may be the beginning of an outage, and asks other paths about the same targets.
    fn weigh(&mut self, sample: &Sample) {
        let Some(probed) = self.paths.get_mut(&sample.path) else { return };
        let (probe, now) = (&probed.spec.probe, sample.done);
        let (mut first, doubt) = (false, probe.doubt_interval());
        for (family, count) in Family::ALL.into_iter().zip(&mut probed.counts) {
            if !probe.targets.iter().any(|target| Family::of(target) == family) {
                continue;
            }
            if sample.is_good(family, probe.quorum) {
                *count = Count { good: count.good.max(sample.round), lost: 0 };
            } else if sample.round > count.good {
                count.lost = count.lost.saturating_add(1);
                first |= count.lost == 1;
            }
        }
        let uncertain = probed.counts.iter().any(|count| (1..probe.down_after).contains(&count.lost));
        self.schedule.pace(&sample.path, uncertain.then_some(doubt), now);
        if first {
            self.ask_others(sample, doubt);
        }
    }

    fn ask_others(&mut self, sample: &Sample, gap: Duration) {
        for (target, _) in sample.answers.iter().filter(|(target, rtt)| rtt.is_none() && !target.is_unspecified()) {
            let others = self.sharing.get(target).into_iter().flatten();
            for other in others.filter(|p| **p != sample.path).take(WITNESSES) {
                self.schedule.hurry(other, gap, sample.done);
            }
        }
    }

    fn probe(&mut self, path: &Name) {
        let Some(probed) = self.paths.get_mut(path) else { return };
        probed.round += 1;
        let (spec, round) = (Arc::clone(&probed.spec), probed.round);
        let key = self.rounds.open(&spec, round, clock::now());
        match &spec.probe.method {
            Method::Tcp { .. } | Method::Http(_) | Method::Dns(_) => self.hold_round(&spec, key),
            Method::Gateway => {
                let trouble = self.ask_round(&spec, round, key);
                self.tell(path, trouble);
            }
            Method::Icmp | Method::Udp { .. } | Method::Stamp { .. } => {
                let trouble = self.send_round(&spec, round, key);
                self.tell(path, trouble);
            }
        }
        if let Some(sample) = self.rounds.close_if_complete(key, clock::now()) {
            self.report(sample);
        }
    }

    fn tell(&mut self, path: &Name, trouble: Option<String>) {
        if let Some(probed) = self.paths.get_mut(path) {
            tell(probed, trouble);
        }
    }

    /// Begins a dialogue with each target of a round.
    fn hold_round(&mut self, spec: &ProbeSpec, key: RoundKey) {
        for (index, target) in spec.probe.targets.iter().copied().enumerate() {
            let nonce = self.nonce();
            self.rounds.sent(key, index, Reply { sequence: 0, nonce }, 0, sent_now());
            let (path, limit) = (spec.path.clone(), spec.probe.timeout);
            let held = dialogue::hold(Way::of(spec, target), target, spec.probe.method.clone(), self.web.clone());
            self.dialogues.spawn(async move {
                let outcome = time::timeout(limit, held).await.unwrap_or(Outcome::Lost);
                Held { nonce, path, target, outcome }
            });
        }
    }

    /// Asks the gateways of a round; the first thing that went wrong.
    fn ask_round(&mut self, spec: &ProbeSpec, round: u64, key: RoundKey) -> Option<String> {
        let mut trouble = None;
        for (index, target) in spec.probe.targets.iter().copied().enumerate() {
            let (reply, sent) = (Reply { sequence: number(round), nonce: self.nonce() }, sent_now());
            let closed = || io::Error::from(io::ErrorKind::NotConnected);
            let asked = self.senders.links.as_mut().ok_or_else(closed).and_then(|l| l.ask(spec, reply, target));
            match asked {
                Ok(interface) => self.rounds.sent(key, index, reply, interface, sent),
                Err(e) => drop(trouble.get_or_insert_with(|| format!("the gateway over {}: {e}", spec.interface))),
            }
        }
        trouble
    }

    /// Sends to all targets of a round; the first thing that went wrong.
    fn send_round(&mut self, spec: &ProbeSpec, round: u64, key: RoundKey) -> Option<String> {
        let mut trouble = None;
        for family in Family::ALL {
            let targets = || spec.probe.targets.iter().enumerate().filter(|(_, t)| Family::of(t) == family);
            if targets().next().is_none() {
                continue;
            }
            let interface = self.senders.of(spec, family).and_then(|s| s.aim(spec));
            for (index, target) in targets() {
                let sent = match &interface {
                    Ok(interface) => self.send_one(spec, round, key, (index, *target), *interface),
                    Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
                };
                if let Err(e) = sent {
                    trouble.get_or_insert_with(|| format!("{target} over {}: {e}", spec.interface));
                }
            }
        }
        trouble
    }

    fn send_one(
        &mut self,
        spec: &ProbeSpec,
        round: u64,
        key: RoundKey,
        (index, target): (usize, IpAddr),
        interface: u32,
    ) -> io::Result<()> {
        let family = Family::of(&target);
        let mut reply = Reply { sequence: number(round), nonce: self.nonce() };
        let sent = sent_now();
        let port = match spec.probe.method {
            Method::Udp { port } => {
                echo::datagram(reply, spec.probe.size, &mut self.packet);
                port
            }
            Method::Stamp { port } => {
                reply.nonce = (stamp::timestamp(sent.wall) & !0xffff) | (reply.nonce & 0xffff);
                stamp::request(reply, self.rounds.synchronised, &mut self.packet);
                port
            }
            _ => {
                echo::request(family, self.senders.ident(), reply, spec.probe.size, &mut self.packet);
                0
            }
        };
        let source = spec.sources.iter().find(|s| Family::of(s) == family).copied();
        self.senders.of(spec, family)?.send(&self.packet, SocketAddr::new(target, port), source, interface)?;
        self.rounds.sent(key, index, reply, interface, sent);
        Ok(())
    }

    /// A number nobody can guess: a keyed hash (`SipHash`, key from the system's random source) of a counter.
    fn nonce(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one(self.drawn)
    }
}

/// The sequence number of a round. It repeats after 65,536 rounds, the nonce does not.
#[allow(clippy::cast_possible_truncation)]
const fn number(round: u64) -> u16 {
    round as u16
}

fn sent_now() -> Sent {
    Sent { at: clock::now(), wall: clock::wall().as_micros() }
}

/// Says once that a path's probes cannot be sent, and once that they can again.
fn tell(probed: &mut Probed, trouble: Option<String>) {
    let path = &probed.spec.path;
    match &trouble {
        Some(new) if probed.trouble.as_ref() != Some(new) => warn!(%path, "cannot send a probe to {new}"),
        None if probed.trouble.is_some() => info!(%path, "probes can be sent again"),
        _ => {}
    }
    probed.trouble = trouble;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::intent::Probe;

    fn spec(target: &str, mark: u32) -> ProbeSpec {
        ProbeSpec {
            path: "fiber".parse().unwrap(),
            interface: "wan0".parse().unwrap(),
            mark,
            sources: vec![],
            gateways: vec![],
            probe: Probe { targets: vec![target.parse().unwrap()], ..Probe::default() }.into(),
        }
    }

    #[test]
    fn rounds_that_left_by_another_gateway_say_nothing_of_this_one() {
        let by = |gateway: &str| ProbeSpec { gateways: vec![gateway.parse().unwrap()], ..spec("192.0.2.1", 1) };
        let counts = [Count { good: 5, lost: 2 }, Count::default()];
        let bad = Probed { round: 7, counts, ..Probed::by(by("198.51.100.66"), None) };
        let undone = Probed::by(by("198.51.100.1"), Some(bad));
        assert_eq!((undone.round, undone.counts, undone.outdated), (7, [Count::default(); 2], 7));
    }

    #[test]
    fn rounds_of_another_way_of_probing_say_nothing_and_another_mark_leaves_what_is_known() {
        let counts = [Count { good: 5, lost: 2 }, Count::default()];
        let first = Probed { round: 7, counts, ..Probed::by(spec("192.0.2.1", 1), None) };
        let moved = Probed::by(spec("192.0.2.1", 2), Some(first));
        assert_eq!((moved.spec.mark, moved.round, moved.counts, moved.outdated), (2, 7, counts, 0));
        let changed = Probed::by(spec("192.0.2.9", 2), Some(moved));
        assert_eq!((changed.round, changed.counts, changed.outdated), (7, [Count::default(); 2], 7));
        let same = Probed::by(spec("192.0.2.9", 2), Some(Probed { round: 9, counts, ..changed }));
        assert_eq!((same.round, same.counts, same.outdated), (9, counts, 7));
    }
}
