//! The probing task: one loop over the schedule, the rounds under way and the sockets.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    pin::pin,
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{self, sleep},
};
use tracing::{info, warn};

use super::{
    ProbeSpec,
    echo::{self, Reply},
    rounds::{RoundKey, Rounds, Sent},
    schedule::Schedule,
    socket::Sockets,
};
use crate::{
    clock::{self, Instant},
    health::Sample,
    units::{Family, Name},
};

/// Packets taken in before anything else is done, so that a flood of forged answers does not stop the probes.
const BATCH: usize = 4096;

/// A path that is probed.
#[derive(Debug)]
struct Probed {
    spec: ProbeSpec,
    round: u64,
    /// Why its probes cannot be sent, as reported last; told once and not with each probe.
    trouble: Option<String>,
}

#[derive(Debug)]
pub(super) struct Engine {
    v4: Sockets,
    v6: Option<Sockets>,
    ident: u16,
    random: RandomState,
    drawn: u64,
    samples: mpsc::Sender<Sample>,
    full: bool,
    paths: BTreeMap<Name, Probed>,
    schedule: Schedule,
    rounds: Rounds,
    packet: Vec<u8>,
}

impl Engine {
    pub fn new(
        v4: Sockets,
        v6: Option<Sockets>,
        ident: u16,
        random: RandomState,
        samples: mpsc::Sender<Sample>,
    ) -> Self {
        let (paths, schedule, rounds) = (BTreeMap::new(), Schedule::default(), Rounds::default());
        Self { v4, v6, ident, random, drawn: 0, samples, full: false, paths, schedule, rounds, packet: Vec::new() }
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
                () = self.v4.readable() => {}
                () = readable(self.v6.as_ref()) => {}
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
        for spec in specs.into_iter().filter(|s| !s.targets.is_empty()) {
            self.schedule.set(&spec.path, spec.interval, now);
            let probed = match old.remove(&spec.path) {
                Some(same) if same.spec == spec => same,
                changed => Probed { round: changed.map_or(0, |c| c.round), trouble: None, spec },
            };
            self.paths.insert(probed.spec.path.clone(), probed);
        }
        for gone in old.keys() {
            self.schedule.remove(gone);
        }
    }

    /// What came in first, so that an answer that waits in the socket is not called late; then what is due.
    fn turn(&mut self) {
        for _ in 0..BATCH {
            let Some(arrival) = self.v4.receive().or_else(|| self.v6.as_ref()?.receive()) else { break };
            if let Some(sample) = self.rounds.arrived(&arrival) {
                self.report(sample);
            }
        }
        let now = clock::now();
        while let Some(sample) = self.rounds.expired(now) {
            self.report(sample);
        }
        while let Some(path) = self.schedule.pop(now) {
            self.probe(&path);
        }
    }

    fn report(&mut self, sample: Sample) {
        if !self.paths.contains_key(&sample.path) {
            return;
        }
        let full = matches!(self.samples.try_send(sample), Err(TrySendError::Full(_)));
        if full && !self.full {
            warn!("probe results are not taken in fast enough: some are dropped");
        }
        self.full = full;
    }

    fn probe(&mut self, path: &Name) {
        let Some(mut probed) = self.paths.remove(path) else { return };
        probed.round += 1;
        let key = self.rounds.open(&probed.spec, probed.round, clock::now());
        let trouble = self.send_round(&probed.spec, probed.round, key);
        tell(&mut probed, trouble);
        self.paths.insert(path.clone(), probed);
        if let Some(sample) = self.rounds.close_if_complete(key, clock::now()) {
            self.report(sample);
        }
    }

    /// Sends to all targets of a round; the first thing that went wrong.
    fn send_round(&mut self, spec: &ProbeSpec, round: u64, key: RoundKey) -> Option<String> {
        let mut trouble = None;
        for family in Family::ALL {
            let targets = || spec.targets.iter().enumerate().filter(|(_, t)| Family::of(t) == family);
            if targets().next().is_none() {
                continue;
            }
            let interface = self.sockets(family).and_then(|s| s.aim(spec));
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
        // The sequence number repeats after 65,536 rounds, the nonce does not.
        #[allow(clippy::cast_possible_truncation)]
        let reply = Reply { sequence: round as u16, nonce: self.nonce() };
        echo::request(family, self.ident, reply, spec.size, &mut self.packet);
        let source = spec.sources.iter().find(|s| Family::of(s) == family).copied();
        let sent = Sent { at: clock::now(), wall: clock::wall().as_micros() };
        self.sockets(family)?.send(&self.packet, target, source, interface)?;
        self.rounds.sent(key, index, reply, interface, sent);
        Ok(())
    }

    fn sockets(&self, family: Family) -> io::Result<&Sockets> {
        match family {
            Family::V4 => Ok(&self.v4),
            Family::V6 => self.v6.as_ref().ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT)),
        }
    }

    /// A number nobody can guess: a keyed hash (`SipHash`, key from the system's random source) of a counter.
    fn nonce(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one(self.drawn)
    }
}

async fn readable(sockets: Option<&Sockets>) {
    match sockets {
        Some(sockets) => sockets.readable().await,
        None => std::future::pending().await,
    }
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
