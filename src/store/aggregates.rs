//! What five minutes of a path come to: kept for a year, when the samples themselves have long gone. Pure.
//!
//! The aggregates of one path and day are one row; each takes about fifteen bytes.

use serde::{Deserialize, Serialize};

use super::{
    HealthSample,
    chunks::{SLOT, number, read_number},
};
use crate::{
    clock::Wall,
    health::PathState,
    units::{Name, Ratio},
};

/// Slots of a day.
const DAY: i64 = 86_400_000_000 / SLOT;

/// Five minutes of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// When they began.
    pub at: Wall,
    /// The path.
    pub path: Name,
    /// How many samples there were.
    pub samples: u64,
    /// How many of them were not `up`: degraded, down, unknown.
    pub not_up: [u64; 3],
    /// Smallest, mean and largest round-trip time in microseconds; absent without answers.
    pub rtt_micros: Option<[u64; 3]>,
    /// Mean jitter in microseconds; absent without answers.
    pub jitter_micros: Option<u64>,
    /// Mean loss.
    pub loss: Ratio,
    /// The lowest score.
    pub score: u8,
}

/// The day of a slot, and which of the day's slots it is.
pub(super) const fn place(slot: i64) -> (i64, u64) {
    (slot.div_euclid(DAY), slot.rem_euclid(DAY).cast_unsigned())
}

/// The day of a moment.
pub(super) const fn day(at: Wall) -> i64 {
    at.as_micros().div_euclid(SLOT * DAY)
}

/// What the samples of one path in one slot come to; nothing of nothing.
pub(super) fn of(slot: i64, samples: &[HealthSample]) -> Option<Aggregate> {
    let path = samples.first()?.path.clone();
    let count = samples.len() as u64;
    let in_state = |state| samples.iter().filter(|s| s.state == state).count() as u64;
    let rtts = || samples.iter().filter_map(|s| s.rtt_micros);
    let mean = |sum: u64, n: usize| sum.checked_div(n as u64);
    let (least, most) = (rtts().min(), rtts().max());
    let jitters = || samples.iter().filter_map(|s| s.jitter_micros);
    let loss = mean(samples.iter().map(|s| u64::from(s.loss.ppm())).sum(), samples.len()).unwrap_or(0);
    Some(Aggregate {
        at: Wall::from_micros(slot * SLOT),
        path,
        samples: count,
        not_up: [PathState::Degraded, PathState::Down, PathState::Unknown].map(in_state),
        rtt_micros: mean(rtts().sum(), rtts().count()).and_then(|middle| Some([least?, middle, most?])),
        jitter_micros: mean(jitters().sum(), jitters().count()),
        loss: u32::try_from(loss).ok().and_then(|ppm| Ratio::from_ppm(ppm).ok()).unwrap_or(Ratio::ONE),
        score: samples.iter().map(|s| s.score).min().unwrap_or(0),
    })
}

/// The bytes that are appended to the row of its day.
pub(super) fn encode(aggregate: &Aggregate) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    let (_, at) = place(aggregate.at.as_micros().div_euclid(SLOT));
    number(at, &mut bytes);
    number(aggregate.samples, &mut bytes);
    aggregate.not_up.iter().for_each(|n| number(*n, &mut bytes));
    // Tens of microseconds, the first and one more: 0 is none.
    let tens = |us: u64| us / 10;
    match aggregate.rtt_micros {
        None => number(0, &mut bytes),
        Some([least, mean, most]) => {
            number(tens(least) + 1, &mut bytes);
            number(tens(mean).saturating_sub(tens(least)), &mut bytes);
            number(tens(most).saturating_sub(tens(mean)), &mut bytes);
        }
    }
    number(aggregate.jitter_micros.map_or(0, |us| tens(us) + 1), &mut bytes);
    number(aggregate.loss.ppm().into(), &mut bytes);
    bytes.push(aggregate.score);
    bytes
}

fn next(day: i64, path: &Name, bytes: &mut &[u8]) -> Option<Aggregate> {
    let at = i64::try_from(read_number(bytes)?).ok().filter(|at| *at < DAY)?;
    let samples = read_number(bytes)?;
    let not_up = [read_number(bytes)?, read_number(bytes)?, read_number(bytes)?];
    let micros = |tens: u64| tens.saturating_mul(10);
    let rtt_micros = match read_number(bytes)?.checked_sub(1) {
        None => None,
        Some(least) => {
            let mean = least.checked_add(read_number(bytes)?)?;
            Some([least, mean, mean.checked_add(read_number(bytes)?)?].map(micros))
        }
    };
    let jitter_micros = read_number(bytes)?.checked_sub(1).map(micros);
    let loss = Ratio::from_ppm(u32::try_from(read_number(bytes)?).ok()?).ok()?;
    let (score, rest) = bytes.split_first()?;
    *bytes = rest;
    let at = Wall::from_micros((day * DAY + at) * SLOT);
    Some(Aggregate { at, path: path.clone(), samples, not_up, rtt_micros, jitter_micros, loss, score: *score })
}

/// The aggregates of a path in the bytes of one row; what makes no sense ends them.
pub(super) fn decode(day: i64, path: &Name, mut bytes: &[u8]) -> Vec<Aggregate> {
    std::iter::from_fn(|| next(day, path, &mut bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(state: PathState, rtt: Option<u64>, loss: u32, score: u8) -> HealthSample {
        HealthSample {
            at: Wall::from_micros(1_700_000_000_000_000),
            path: "fiber".parse().expect("a name"),
            rtt_micros: rtt,
            jitter_micros: rtt.map(|_| 500),
            loss: Ratio::from_ppm(loss).expect("a ratio"),
            score,
            state,
        }
    }

    #[test]
    fn an_aggregate_tells_the_extremes_and_is_read_back() {
        let slot = 1_700_000_000_000_000 / SLOT;
        let samples = [
            sample(PathState::Up, Some(20_000), 0, 100),
            sample(PathState::Degraded, Some(50_000), 100_000, 60),
            sample(PathState::Down, None, 1_000_000, 0),
        ];
        let found = of(slot, &samples).expect("samples");
        assert_eq!((found.samples, found.not_up, found.score), (3, [1, 1, 0], 0));
        assert_eq!((found.rtt_micros, found.jitter_micros), (Some([20_000, 35_000, 50_000]), Some(500)));
        assert_eq!(found.loss.ppm(), 366_666);
        let silent = of(slot + 1, &samples[2..]).expect("a sample");
        assert_eq!((silent.rtt_micros, silent.jitter_micros), (None, None), "never 0");
        let bytes = [encode(&found), encode(&silent)].concat();
        let (day, _) = place(slot);
        assert_eq!(decode(day, &found.path, &bytes), [found.clone(), silent]);
        for cut in 0..bytes.len() {
            assert!(decode(day, &found.path, &bytes[..cut]).len() <= 1, "cut at {cut}");
        }
        assert_eq!(of(slot, &[]), None);
    }
}
