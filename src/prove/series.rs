//! A series of values over time: `20ms x60 400ms x30`.

use std::str::FromStr;

/// Values, each for a number of steps; the last one lasts for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series<T> {
    /// Value and the step at which it ends.
    parts: Vec<(T, u64)>,
}

/// A series that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SeriesError(pub(super) String);

/// Most steps of a series: more than a year of seconds.
const MOST: u64 = 100_000_000;

impl<T: Clone> Series<T> {
    /// One value for ever.
    #[must_use]
    pub fn constant(value: T) -> Self {
        Self { parts: vec![(value, 1)] }
    }

    /// The value in a step, counted from 0.
    #[must_use]
    pub fn at(&self, step: u64) -> T {
        let part = self.parts.partition_point(|(_, end)| *end <= step).min(self.parts.len() - 1);
        self.parts[part].0.clone()
    }

    /// The steps at which another value begins.
    pub fn changes(&self) -> impl Iterator<Item = (u64, T)> + '_ {
        self.parts.windows(2).map(|w| (w[0].1, w[1].0.clone()))
    }
}

impl<T: FromStr<Err: std::fmt::Display>> Series<T> {
    /// Reads a series of values of a type.
    pub fn parse(text: &str) -> Result<Self, SeriesError> {
        Self::parse_with(text, |word| word.parse().map_err(|e: T::Err| SeriesError(e.to_string())))
    }
}

impl<T> Series<T> {
    /// Reads a series whose values are read by `value`.
    pub fn parse_with(text: &str, value: impl Fn(&str) -> Result<T, SeriesError>) -> Result<Self, SeriesError> {
        let mut parts: Vec<(T, u64)> = Vec::new();
        let mut end = 0_u64;
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let steps = match words.peek().and_then(|next| next.strip_prefix('x')) {
                Some(count) => {
                    let steps = count.parse::<u64>().ok().filter(|n| (1..=MOST).contains(n));
                    let bad = || SeriesError(format!("`x{count}` is not a number of steps: write `{word} x60`"));
                    let steps = steps.ok_or_else(bad)?;
                    words.next();
                    steps
                }
                None => 1,
            };
            end = end.saturating_add(steps).min(MOST);
            parts.push((value(word)?, end));
        }
        if parts.is_empty() {
            return Err(SeriesError("a series needs a value, such as `20ms` or `20ms x60 400ms x30`".into()));
        }
        Ok(Self { parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    #[test]
    fn values_last_for_their_steps_and_the_last_one_for_the_rest() {
        let series = Series::<Span>::parse("20ms x3 400ms 30ms x2").unwrap();
        let ms: Vec<u128> = (0..8).map(|n| series.at(n).get().as_millis()).collect();
        assert_eq!(ms, [20, 20, 20, 400, 30, 30, 30, 30]);
        assert_eq!(series.changes().map(|(n, _)| n).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn what_is_no_series_is_refused_with_the_right_form() {
        for bad in ["", "x5", "20ms x0", "20ms xx", "20", "20ms x99999999999"] {
            assert!(Series::<Span>::parse(bad).is_err(), "{bad}");
        }
    }
}
