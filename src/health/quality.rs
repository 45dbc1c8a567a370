//! What a path is like: round-trip times, their spread, and what a call over it would sound like. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Notes, OneWay, Sample};

/// Upper ends of the buckets of round-trip times, in milliseconds.
pub const BUCKETS: [u32; 9] = [5, 10, 20, 50, 100, 150, 250, 500, 1000];

/// Round-trip times of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The shortest.
    pub min: Duration,
    /// The one in the middle.
    pub median: Duration,
    /// Their mean.
    pub mean: Duration,
    /// 95 of 100 are not longer.
    pub p95: Duration,
    /// 99 of 100 are not longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
    /// Standard deviation, of all of them.
    pub deviation: Duration,
}

impl Spread {
    /// Of these round-trip times; none without any.
    #[must_use]
    pub fn of(mut rtts: Vec<Duration>) -> Option<Self> {
        rtts.sort_unstable();
        let (min, max) = (*rtts.first()?, *rtts.last()?);
        // The smallest one that so many of a hundred do not exceed (nearest rank).
        let rank = |percent: usize| rtts[(rtts.len() * percent).div_ceil(100).max(1) - 1];
        let seconds = || rtts.iter().map(Duration::as_secs_f64);
        // A window has far fewer probes than an f64 has integers.
        #[allow(clippy::cast_precision_loss)]
        let n = rtts.len() as f64;
        let mean = seconds().sum::<f64>() / n;
        let variance = seconds().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let (mean, deviation) = (Duration::from_secs_f64(mean), Duration::from_secs_f64(variance.sqrt()));
        Some(Self { min, median: rank(50), mean, p95: rank(95), p99: rank(99), max, deviation })
    }
}

/// What was counted since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Probes that were answered.
    pub answered: u64,
    /// Probes that were not.
    pub lost: u64,
    /// Answers that came a second time.
    pub duplicates: u64,
    /// Answers that were overtaken by that of a later probe.
    pub reordered: u64,
    /// Answers by round-trip time, up to each of [`BUCKETS`] and above the one before.
    pub buckets: [u64; BUCKETS.len()],
    /// All round-trip times together, in seconds.
    pub seconds: f64,
    /// Delays of both directions in the newest round that told them.
    pub one_way: Option<OneWay>,
    /// What was answered in place of the expected answer in the newest round, if it was lost for that.
    pub said: Option<Box<str>>,
}

impl Counts {
    /// Takes in a round.
    pub fn add(&mut self, sample: &Sample) {
        for rtt in sample.answers.iter().filter_map(|(_, rtt)| *rtt) {
            self.answered += 1;
            self.seconds += rtt.as_secs_f64();
            if let Some(at) = BUCKETS.iter().position(|end| rtt <= Duration::from_millis(u64::from(*end))) {
                self.buckets[at] += 1;
            }
        }
        self.lost += sample.answers.iter().filter(|(_, rtt)| rtt.is_none()).count() as u64;
        let Notes { duplicates, reordered, one_way, said } = &sample.notes;
        self.duplicates += u64::from(*duplicates);
        self.reordered += u64::from(*reordered);
        self.one_way = one_way.or(self.one_way);
        self.said.clone_from(said);
    }
}

/// What a call would sound like, from 1 (bad) to 4.4 (as good as G.711 gets): the E-model of ITU-T G.107 with its
/// defaults, simplified as by Cole and Rosenbluth (2001). The delay of one way is half the round trip, a jitter buffer of
/// twice the jitter, and 20 ms of packetisation; G.711 with concealment (G.113: Ie 0, Bpl 25.1), random loss.
#[must_use]
pub fn mos(latency: Duration, jitter: Duration, loss: f64) -> f64 {
    let delay = latency.as_secs_f64() * 500.0 + jitter.as_secs_f64() * 2000.0 + 20.0;
    let late = if delay > 177.3 { 0.11 * (delay - 177.3) } else { 0.0 };
    let percent = loss * 100.0;
    let r = 93.2 - 0.024 * delay - late - 95.0 * percent / (percent + 25.1);
    match r {
        ..0.0 => 1.0,
        100.0.. => 4.5,
        _ => 1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_spread_is_that_of_the_nearest_ranks() {
        let spread = Spread::of((1..=100).rev().map(ms).collect()).unwrap();
        let Spread { min, median, p95, p99, max, .. } = spread;
        assert_eq!([min, median, p95, p99, max], [1, 50, 95, 99, 100].map(ms));
        assert_eq!((spread.mean.as_micros(), spread.deviation.as_micros()), (50_500, 28_866));
        let one = Spread::of(vec![ms(7)]).unwrap();
        assert_eq!([one.min, one.median, one.mean, one.p99, one.max], [ms(7); 5]);
        assert_eq!((one.deviation, Spread::of(vec![])), (Duration::ZERO, None));
    }

    #[test]
    fn a_call_sounds_as_the_e_model_says() {
        for (latency, jitter, loss, expected) in [
            (0, 0, 0.0, 4.40),
            (50, 5, 0.0, 4.38),
            (150, 10, 0.01, 4.25),
            (400, 30, 0.0, 3.83),
            (50, 5, 0.05, 3.87),
            (50, 5, 0.20, 2.56),
            (1000, 100, 0.30, 1.0),
        ] {
            let found = mos(ms(latency), ms(jitter), loss);
            assert!((found - expected).abs() < 0.01, "{latency} {jitter} {loss}: {found}");
        }
    }

    #[test]
    fn counts_add_up() {
        let mut counts = Counts::default();
        let answers = [Some(4), Some(5), Some(6), Some(2000), None];
        let notes = Notes { duplicates: 2, reordered: 1, one_way: None, said: Some("no".into()) };
        let sample = Sample {
            path: "p".parse().unwrap(),
            round: 1,
            sent: crate::clock::Instant::from_nanos(0),
            done: crate::clock::Instant::from_nanos(0),
            answers: answers.map(|a| ([192, 0, 2, 1].into(), a.map(ms))).to_vec(),
            notes,
        };
        counts.add(&sample);
        assert_eq!((counts.answered, counts.lost, counts.duplicates, counts.reordered), (4, 1, 2, 1));
        assert_eq!(counts.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0], "2 s are beyond the last bucket");
        assert!((counts.seconds - 2.015).abs() < 1e-9 && counts.said.is_some());
    }
}
