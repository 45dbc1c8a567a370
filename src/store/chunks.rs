//! Samples in few bytes: those of one path in one slot of five minutes are one row, each told as its difference to
//! the one before. Pure.
//!
//! A thousand paths give 86 million samples a day. As rows of a table they take sixty bytes each, as differences four:
//! one for what has changed, one for the time, and one or two for each figure that moved.
//!
//! Times are kept to the millisecond, round-trip times and jitter to ten microseconds.

use std::collections::BTreeMap;

use super::HealthSample;
use crate::{
    clock::Wall,
    health::PathState,
    units::{Name, Ratio},
};

/// Length of a slot in microseconds.
pub(super) const SLOT: i64 = 300_000_000;

/// The slot of a moment.
pub(super) const fn slot(at: Wall) -> i64 {
    at.as_micros().div_euclid(SLOT)
}

/// The last moment of a slot.
pub(super) const fn end(slot: i64) -> Wall {
    Wall::from_micros((slot + 1) * SLOT - 1)
}

/// What has changed since the sample before; [`WHOLE`]: there is none, and all follows.
const WHOLE: u8 = 1;
const RTT: u8 = 2;
const JITTER: u8 = 4;
const LOSS: u8 = 8;
const SCORE: u8 = 16;
const STATE: u8 = 32;

/// The usual time between two samples, in milliseconds.
const USUAL: i64 = 1_000;

/// A sample as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figures {
    millis: i64,
    /// In tens of microseconds, and one more; 0 is none.
    rtt: i64,
    jitter: i64,
    loss: u32,
    score: u8,
    state: u8,
}

const NOTHING: Figures = Figures { millis: 0, rtt: 0, jitter: 0, loss: 0, score: 0, state: 0 };

impl Figures {
    fn of(sample: &HealthSample) -> Self {
        let tens = |micros: Option<u64>| micros.map_or(0, |us| i64::try_from(us / 10 + 1).unwrap_or(i64::MAX));
        Self {
            millis: sample.at.as_micros().div_euclid(1_000),
            rtt: tens(sample.rtt_micros),
            jitter: tens(sample.jitter_micros),
            loss: sample.loss.ppm(),
            score: sample.score,
            state: code(sample.state),
        }
    }

    fn sample(&self, path: &Name) -> Option<HealthSample> {
        let micros = |tens: i64| Some(u64::try_from(tens.checked_sub(1)?).ok()?.saturating_mul(10));
        Some(HealthSample {
            at: Wall::from_micros(self.millis.saturating_mul(1_000)),
            path: path.clone(),
            rtt_micros: micros(self.rtt),
            jitter_micros: micros(self.jitter),
            loss: Ratio::from_ppm(self.loss).ok()?,
            score: self.score,
            state: state(self.state)?,
        })
    }
}

/// The numbers of states in the database: never change one.
const fn code(state: PathState) -> u8 {
    match state {
        PathState::Unknown => 0,
        PathState::Up => 1,
        PathState::Degraded => 2,
        PathState::Down => 3,
    }
}

const fn state(code: u8) -> Option<PathState> {
    Some(match code {
        0 => PathState::Unknown,
        1 => PathState::Up,
        2 => PathState::Degraded,
        3 => PathState::Down,
        _ => return None,
    })
}

fn encode(last: Option<&Figures>, new: &Figures, into: &mut Vec<u8>) {
    let old = last.unwrap_or(&NOTHING);
    let flag = |changed, flag| if changed { flag } else { 0 };
    let flags = flag(last.is_none(), WHOLE)
        | flag(old.rtt != new.rtt, RTT)
        | flag(old.jitter != new.jitter, JITTER)
        | flag(old.loss != new.loss, LOSS)
        | flag(old.score != new.score, SCORE)
        | flag(old.state != new.state, STATE);
    into.push(flags);
    signed(new.millis - old.millis - USUAL, into);
    for (flag, before, after) in [(RTT, old.rtt, new.rtt), (JITTER, old.jitter, new.jitter)] {
        if flags & flag != 0 {
            signed(after - before, into);
        }
    }
    if flags & LOSS != 0 {
        number(new.loss.into(), into);
    }
    into.extend((flags & SCORE != 0).then_some(new.score));
    into.extend((flags & STATE != 0).then_some(new.state));
}

/// The next sample; none at the end, and where the bytes make no sense.
fn next(last: Option<&Figures>, bytes: &mut &[u8]) -> Option<Figures> {
    let flags = byte(bytes)?;
    let mut new = if flags & WHOLE != 0 { NOTHING } else { *last? };
    new.millis = new.millis.checked_add(read_signed(bytes)?)?.checked_add(USUAL)?;
    for (flag, figure) in [(RTT, &mut new.rtt), (JITTER, &mut new.jitter)] {
        if flags & flag != 0 {
            *figure = figure.checked_add(read_signed(bytes)?)?;
        }
    }
    if flags & LOSS != 0 {
        new.loss = u32::try_from(read_number(bytes)?).ok()?;
    }
    if flags & SCORE != 0 {
        new.score = byte(bytes)?;
    }
    if flags & STATE != 0 {
        new.state = byte(bytes)?;
    }
    Some(new)
}

/// The samples of a path in the bytes of one row.
pub(super) fn decode(path: &Name, mut bytes: &[u8]) -> Vec<HealthSample> {
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(new) = next(last.as_ref(), &mut bytes) {
        found.extend(new.sample(path));
        last = Some(new);
    }
    found
}

/// A number in groups of seven bits, the lowest first (LEB128).
pub(super) fn number(mut n: u64, into: &mut Vec<u8>) {
    loop {
        // Seven bits fit.
        #[allow(clippy::cast_possible_truncation)]
        let low = (n & 0x7f) as u8;
        n >>= 7;
        into.push(if n == 0 { low } else { low | 0x80 });
        if n == 0 {
            return;
        }
    }
}

pub(super) fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let b = byte(bytes)?;
        n |= u64::from(b & 0x7f) << shift;
        if b & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Small numbers of either sign become small numbers.
fn signed(n: i64, into: &mut Vec<u8>) {
    number(((n << 1) ^ (n >> 63)).cast_unsigned(), into);
}

fn read_signed(bytes: &mut &[u8]) -> Option<i64> {
    let n = read_number(bytes)?;
    Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

/// Bytes of one path and slot that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub data: Vec<u8>,
    samples: usize,
}

/// Samples on their way to the disk.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// The last sample of each path, with its slot.
    last: BTreeMap<Name, (i64, Figures)>,
    waiting: BTreeMap<(i64, Name), Waiting>,
    samples: usize,
}

impl Chunks {
    /// Takes in a sample. What goes into another row than the one before begins whole.
    pub fn add(&mut self, sample: &HealthSample) {
        let (slot, new) = (slot(sample.at), Figures::of(sample));
        let before = self.last.get(&sample.path).filter(|(known, _)| *known == slot);
        let waiting = self.waiting.entry((slot, sample.path.clone())).or_default();
        encode(before.map(|(_, figures)| figures), &new, &mut waiting.data);
        waiting.samples += 1;
        self.samples += 1;
        self.last.insert(sample.path.clone(), (slot, new));
    }

    /// What is to be written: bytes that follow those that the row of this slot and path has already.
    pub fn waiting(&self) -> impl Iterator<Item = (i64, &Name, &[u8])> {
        self.waiting.iter().map(|((slot, path), waiting)| (*slot, path, waiting.data.as_slice()))
    }

    /// All of it is written. Paths that have left must not pile up.
    pub fn written(&mut self) {
        let newest = self.last.values().map(|(slot, _)| *slot).max().unwrap_or_default();
        self.last.retain(|_, (slot, _)| *slot + 1 >= newest);
        self.waiting.clear();
        self.samples = 0;
    }

    /// Begins anew, since the rows that would go on are gone; how many samples that cost.
    pub fn restart(&mut self) -> usize {
        std::mem::take(self).samples
    }

    /// Drops the oldest rows until no more samples than this wait; how many samples that cost.
    pub fn shed(&mut self, most: usize) -> usize {
        let before = self.samples;
        while self.samples > most
            && let Some(((slot, path), waiting)) = self.waiting.pop_first()
        {
            self.samples -= waiting.samples;
            if self.last.get(&path).is_some_and(|(last, _)| *last == slot) {
                self.last.remove(&path);
            }
        }
        before - self.samples
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn any_sample() -> impl Strategy<Value = HealthSample> {
        let time = (0_i64..10_000_000).prop_map(|ms| Wall::from_micros(ms * 1_000));
        let micros = || proptest::option::of((0_u64..5_000_000).prop_map(|tens| tens * 10));
        let state = prop_oneof![
            Just(PathState::Unknown),
            Just(PathState::Up),
            Just(PathState::Degraded),
            Just(PathState::Down)
        ];
        (time, micros(), micros(), 0_u32..=1_000_000, 0_u8..=100, state).prop_map(
            |(at, rtt, jitter, loss, score, state)| {
                let loss = Ratio::from_ppm(loss).expect("a ratio");
                HealthSample { at, path: name("fiber"), rtt_micros: rtt, jitter_micros: jitter, loss, score, state }
            },
        )
    }

    /// What a reader would find: the bytes of each row, in order of slots.
    fn rows(chunks: &Chunks) -> Vec<HealthSample> {
        chunks.waiting().flat_map(|(_, path, data)| decode(path, data)).collect()
    }

    proptest! {
        #[test]
        fn samples_in_any_order_are_read_back(samples in prop::collection::vec(any_sample(), 0..60)) {
            let mut chunks = Chunks::default();
            for sample in &samples {
                chunks.add(sample);
            }
            let mut expected = samples;
            expected.sort_by_key(|sample| slot(sample.at));
            prop_assert_eq!(rows(&chunks), expected);
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&name("fiber"), &bytes).len() <= bytes.len());
        }
    }

    fn steady(second: i64) -> HealthSample {
        let wave = u64::try_from((second * 7_919) % 400).unwrap_or(0);
        HealthSample {
            at: Wall::from_micros(second * 1_000_000 + (second * 37) % 9_000),
            path: name("fiber"),
            rtt_micros: Some(20_000 + wave * 3),
            jitter_micros: Some(800 + wave),
            loss: Ratio::ZERO,
            score: 100,
            state: PathState::Up,
        }
    }

    fn add(chunks: &mut Chunks, seconds: std::ops::Range<i64>) {
        for second in seconds {
            chunks.add(&steady(second));
        }
    }

    #[test]
    fn a_sample_of_a_steady_path_takes_four_bytes() {
        let mut chunks = Chunks::default();
        add(&mut chunks, 0..300);
        let bytes: usize = chunks.waiting().map(|(.., data)| data.len()).sum();
        assert!(bytes <= 300 * 5, "{bytes}");
    }

    #[test]
    fn after_a_write_and_after_a_loss_the_rest_can_be_read() {
        let mut chunks = Chunks::default();
        add(&mut chunks, 0..10);
        let (mut row, first) = (Vec::new(), rows(&chunks));
        row.extend(chunks.waiting().flat_map(|(.., data)| data.to_vec()));
        chunks.written();
        add(&mut chunks, 10..20);
        row.extend(chunks.waiting().flat_map(|(.., data)| data.to_vec()));
        let all = decode(&name("fiber"), &row);
        assert_eq!((all.len(), &all[..10]), (20, &first[..]), "the second part goes on from the first");
        assert_eq!(chunks.shed(5), 10);
        chunks.add(&steady(20));
        assert_eq!(rows(&chunks).len(), 1, "what follows a loss begins whole");
        assert_eq!(chunks.restart(), 1);
        chunks.add(&steady(21));
        assert_eq!(rows(&chunks).len(), 1, "and so does what follows another file");
    }
}
