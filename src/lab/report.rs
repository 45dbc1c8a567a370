//! What became of every packet of a flow.
//!
//! An outage is measured on the sender's clock, from the sending of its first lost packet to the sending of the next
//! one that arrived, so a receiver that gets the processor late does not lengthen it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::units::Name;

/// The provider that a packet came through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crossing {
    /// The site whose endpoint it serves.
    pub site: Name,
    /// The endpoint.
    pub endpoint: Name,
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.endpoint)
    }
}

/// One packet at its destination.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) sequence: u64,
    pub(super) at: Instant,
    pub(super) source: IpAddr,
    pub(super) via: Option<Crossing>,
}

/// Packets lost in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// Number of the first lost packet.
    pub first: u64,
    /// How many were lost.
    pub lost: u64,
    /// When the first was sent.
    pub from: Instant,
    /// When the next one that arrived was sent; none if the flow ended before.
    pub until: Option<Instant>,
}

/// One direction of a flow.
#[derive(Debug, Clone)]
pub struct Track {
    sent: Arc<[Instant]>,
    first: Vec<Option<Arrival>>,
    duplicates: u64,
    reordered: u64,
}

/// What a flow went through.
#[derive(Debug, Clone)]
pub struct Report {
    /// From the sender to the sink.
    pub there: Track,
    /// There and back again, if the sink echoed: lost is what did not come back.
    pub back: Option<Track>,
    /// Packets that the sender's own kernel refused; they count as sent and lost.
    pub refused: u64,
}

impl Track {
    pub(super) fn new(sent: Arc<[Instant]>, arrivals: Vec<Arrival>) -> Self {
        let mut first: Vec<Option<Arrival>> = vec![None; sent.len()];
        let (mut duplicates, mut reordered, mut highest) = (0, 0, 0);
        for arrival in arrivals {
            let Some(slot) = usize::try_from(arrival.sequence).ok().and_then(|i| first.get_mut(i)) else { continue };
            reordered += u64::from(arrival.sequence < highest && slot.is_none());
            highest = highest.max(arrival.sequence);
            duplicates += u64::from(slot.is_some());
            slot.get_or_insert(arrival);
        }
        Self { sent, first, duplicates, reordered }
    }

    /// Packets sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// When the first packet was sent.
    #[must_use]
    pub fn started(&self) -> Option<Instant> {
        self.sent.first().copied()
    }

    /// Packets that never arrived.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.first.iter().filter(|arrival| arrival.is_none()).count() as u64
    }

    /// Packets that arrived again.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Packets that arrived after one sent later.
    #[must_use]
    pub const fn reordered(&self) -> u64 {
        self.reordered
    }

    /// Packets lost of those sent in `[from, until)`, and how many were sent.
    #[must_use]
    pub fn lost_between(&self, from: Instant, until: Instant) -> (u64, u64) {
        let sent = self.packets().filter(|(at, _)| (from..until).contains(at));
        sent.fold((0, 0), |(lost, all), (_, arrival)| (lost + u64::from(arrival.is_none()), all + 1))
    }

    /// All outages in order.
    #[must_use]
    pub fn outages(&self) -> Vec<Outage> {
        let mut outages: Vec<Outage> = Vec::new();
        let mut open = false;
        for (number, (at, arrival)) in self.packets().enumerate() {
            match (arrival, outages.last_mut().filter(|_| open)) {
                (None, Some(outage)) => outage.lost += 1,
                (None, None) => outages.push(Outage { first: number as u64, lost: 1, from: at, until: None }),
                (Some(_), Some(outage)) => outage.until = Some(at),
                (Some(_), None) => {}
            }
            open = arrival.is_none();
        }
        outages
    }

    /// Length of the longest outage; zero without loss. One that never ended lasts to the last packet.
    #[must_use]
    pub fn longest_outage(&self) -> Duration {
        let end = self.sent.last().copied();
        let length =
            |o: &Outage| o.until.or(end).map_or(Duration::ZERO, |until| until.saturating_duration_since(o.from));
        self.outages().iter().map(length).max().unwrap_or_default()
    }

    /// How long after `moment` the first packet was sent from which on nothing was lost; zero if nothing was lost
    /// since, none if the last packet was lost.
    #[must_use]
    pub fn clean_after(&self, moment: Instant) -> Option<Duration> {
        let last = self.first.iter().rposition(Option::is_none).filter(|i| self.sent[*i] >= moment);
        last.map_or(Some(Duration::ZERO), |i| self.sent.get(i + 1).map(|at| at.saturating_duration_since(moment)))
    }

    /// Packets that arrived by provider, of those sent in `[from, until)`. Only the internet node knows the
    /// provider; elsewhere it is none.
    #[must_use]
    pub fn crossings_between(&self, from: Instant, until: Instant) -> BTreeMap<Option<Crossing>, u64> {
        let arrived = self.packets().filter(|(at, _)| (from..until).contains(at)).filter_map(|(_, arrival)| arrival);
        tally(arrived.map(|arrival| arrival.via.clone()))
    }

    /// The providers that each of several flows came by, which were sent in turn, of packets sent in `[from, until)`.
    #[must_use]
    pub fn ways(&self, flows: usize, from: Instant, until: Instant) -> Vec<BTreeSet<Option<Crossing>>> {
        let mut ways = vec![BTreeSet::new(); flows];
        for (number, (at, arrival)) in self.packets().enumerate() {
            if let Some(arrival) = arrival.filter(|_| (from..until).contains(&at)) {
                ways[number % flows].insert(arrival.via.clone());
            }
        }
        ways
    }

    /// Packets that arrived by provider.
    #[must_use]
    pub fn crossings(&self) -> BTreeMap<Option<Crossing>, u64> {
        tally(self.first.iter().flatten().map(|arrival| arrival.via.clone()))
    }

    /// Packets that arrived, by the source address that they arrived with.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<IpAddr, u64> {
        tally(self.first.iter().flatten().map(|arrival| arrival.source))
    }

    /// The delay that this share (0 to 1) of the packets that arrived did not exceed.
    #[must_use]
    pub fn delay(&self, share: f64) -> Option<Duration> {
        let arrived = self.packets().filter_map(|(at, arrival)| Some(arrival?.at.saturating_duration_since(at)));
        let mut delays: Vec<Duration> = arrived.collect();
        delays.sort_unstable();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = (delays.len().saturating_sub(1) as f64 * share.clamp(0.0, 1.0)) as usize;
        delays.get(index).copied()
    }

    fn packets(&self) -> impl Iterator<Item = (Instant, Option<&Arrival>)> {
        self.sent.iter().copied().zip(self.first.iter().map(Option::as_ref))
    }
}

fn tally<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A track of packets sent every millisecond, from the numbers in the order in which they arrived.
    fn track(sent: u64, arrived: &[u64]) -> (Instant, Track) {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_millis(n);
        let source = IpAddr::from([192, 0, 2, 1]);
        let arrival = |n: &u64| Arrival { sequence: *n, at: at(*n + 5), source, via: None };
        (start, Track::new((0..sent).map(at).collect(), arrived.iter().map(arrival).collect()))
    }

    #[test]
    fn loss_duplicates_and_order_are_told_apart() {
        let (_, track) = track(6, &[0, 2, 1, 2, 5]);
        assert_eq!((track.sent(), track.lost(), track.duplicates(), track.reordered()), (6, 2, 1, 1));
        assert_eq!(track.delay(0.5), Some(Duration::from_millis(5)));
        assert_eq!(track.sources().into_values().collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn an_outage_runs_from_the_first_loss_to_the_next_arrival() {
        let (start, track) = track(10, &[0, 1, 4, 6, 7, 8]);
        let ms = Duration::from_millis;
        let spans: Vec<_> = track.outages().iter().map(|o| (o.first, o.lost, o.until.map(|u| u - start))).collect();
        assert_eq!(spans, [(2, 2, Some(ms(4))), (5, 1, Some(ms(6))), (9, 1, None)]);
        assert_eq!(track.longest_outage(), ms(2));
        assert_eq!(track.lost_between(start + ms(2), start + ms(6)), (3, 4));
    }

    #[test]
    fn clean_again_is_relative_to_the_fault() {
        let ms = Duration::from_millis;
        let (start, healed) = track(10, &[0, 1, 4, 5, 6, 7, 8, 9]);
        assert_eq!(healed.clean_after(start + ms(1)), Some(ms(3)));
        assert_eq!(healed.clean_after(start + ms(5)), Some(ms(0)));
        let (start, dead) = track(10, &[0, 1]);
        assert_eq!(dead.clean_after(start), None);
    }
}
