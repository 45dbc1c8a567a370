//! Figures as a person reads them.

use std::time::Duration;

use crate::clock::Wall;

/// A duration with its two largest units: `42s`, `12m`, `5h 12m`, `11d 4h`.
pub(in crate::cli) fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h {:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3_600 % 24),
    }
}

/// A latency: `0.34ms`, `12.3ms`, `340ms`; `-` if there is none.
pub(in crate::cli) fn latency(d: Option<Duration>) -> String {
    let Some(d) = d else { return "-".into() };
    let ms = d.as_secs_f64() * 1e3;
    let digits = if ms < 10.0 { 2 } else { usize::from(ms < 100.0) };
    format!("{ms:.digits$}ms")
}

/// A count: exact below 100,000, then with three figures and `k`, `M`, `G`, `T`.
pub(super) fn count(n: u64) -> String {
    if n < 100_000 { n.to_string() } else { scaled(n, &["", "k", "M", "G", "T", "P"]) }
}

/// Bytes with decimal units: `24.5 MB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, &[" B", " kB", " MB", " GB", " TB", " PB"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three figures are shown")]
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 99.95);
    format!("{value:.digits$}{}", units[unit])
}

/// A time to the second, in UTC and saying so.
pub(in crate::cli) fn time(at: Wall) -> String {
    match jiff::Timestamp::from_microsecond(at.as_micros()) {
        Ok(t) => format!("{t:.0}").replace('T', " "),
        Err(_) => at.to_string(),
    }
}

/// Time from one wall time to another; zero if the clock was set back.
pub(super) fn between(earlier: Wall, later: Wall) -> Duration {
    Duration::from_micros(u64::try_from(later.as_micros().saturating_sub(earlier.as_micros())).unwrap_or(0))
}

/// Foreign text on one line, without characters that could steer a terminal.
pub(in crate::cli) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_what_matters() {
        let d = |s| duration(Duration::from_secs(s));
        assert_eq!(
            [d(0), d(119), d(120), d(7_199), d(7_260), d(900_000)],
            ["0s", "119s", "2m", "119m", "2h 01m", "10d 10h"]
        );
        let l = |us| latency(Some(Duration::from_micros(us)));
        assert_eq!([l(340), l(12_340), l(340_400), latency(None)], ["0.34ms", "12.3ms", "340ms", "-"]);
        assert_eq!([count(99_999), count(123_456), count(1_500_000)], ["99999", "123k", "1.5M"]);
        assert_eq!([bytes(0), bytes(999), bytes(999_999), bytes(24_500_000)], ["0 B", "999 B", "1.0 MB", "24.5 MB"]);
        assert_eq!(time(Wall::from_micros(1_700_000_000_123_456)), "2023-11-14 22:13:20Z");
        assert_eq!(clean("a\u{1b}[31mb\nc"), "a [31mb c");
    }
}
