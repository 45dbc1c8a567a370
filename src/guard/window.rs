//! Change windows: when a new revision may be put in force.
//!
//! A window that denies always wins. If there is any that allows, a change has to fall into one of those. Drift
//! repair and failover are never asked about. Windows are civil times of their own time zone: one that begins at
//! 22:00 does so on the day of a daylight-saving change too.

use std::fmt;

use jiff::{
    Timestamp,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

use crate::clock::Wall;

/// How far ahead the next opening is looked for.
const DAYS: i32 = 15;

/// What happens to a change inside a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It may be made; outside of all such windows it may not.
    Allow,
    /// It may not be made.
    Deny,
}

/// A weekly time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What happens inside.
    pub effect: Effect,
    /// Days on which it begins; none means every day.
    pub days: Vec<Weekday>,
    /// When it begins.
    pub from: Time,
    /// When it ends, on the next day if that is not after `from`.
    pub to: Time,
    /// Where the clock hangs.
    pub zone: TimeZone,
}

/// Why a change has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The next moment at which it may be made, if there is one within two weeks.
    pub opens: Option<Wall>,
    /// The same for people, in the time zone of the window that ends or begins then.
    pub when: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opens {
            Some(_) => write!(f, "window opens {}", self.when),
            None => f.write_str("no change window opens within two weeks: look at `windows` in the router's settings"),
        }
    }
}

impl Window {
    /// Where it begins and ends when it begins on this day.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.is_empty() && !self.days.contains(&day.weekday()) {
            return None;
        }
        let last = if self.to > self.from { day } else { day.tomorrow().ok()? };
        let at = |date: Date, time| date.to_datetime(time).to_zoned(self.zone.clone()).ok().map(|z| z.timestamp());
        Some((at(day, self.from)?, at(last, self.to)?))
    }

    /// All its times around this moment: one that began yesterday may last still.
    fn around(&self, now: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let today = now.to_zoned(self.zone.clone()).date();
        let day = |offset: i32| today.checked_add(jiff::Span::new().days(offset)).ok();
        (-1..DAYS).filter_map(|offset| self.on(day(offset)?)).collect()
    }
}

/// Whether a change may be made now.
pub fn decide(windows: &[Window], now: Wall) -> Result<(), Closed> {
    let Ok(now) = Timestamp::from_microsecond(now.as_micros()) else { return Ok(()) };
    let times: Vec<(&Window, Vec<(Timestamp, Timestamp)>)> = windows.iter().map(|w| (w, w.around(now))).collect();
    let open = |at: Timestamp| {
        let inside = |effect| {
            let of = times.iter().filter(move |(window, _)| window.effect == effect);
            of.flat_map(|(_, spans)| spans).any(|(from, to)| *from <= at && at < *to)
        };
        let needs_one = windows.iter().any(|window| window.effect == Effect::Allow);
        !inside(Effect::Deny) && (!needs_one || inside(Effect::Allow))
    };
    if open(now) {
        return Ok(());
    }
    let edges =
        times.iter().flat_map(|(window, spans)| spans.iter().flat_map(move |(a, b)| [(*a, *window), (*b, *window)]));
    // Beyond what was looked at everything would seem to be open.
    let end = now + jiff::SignedDuration::from_hours(24 * i64::from(DAYS - 1));
    let first = edges.filter(|(at, _)| *at > now && *at < end && open(*at)).min_by_key(|(at, _)| *at);
    Err(Closed {
        opens: first.map(|(at, _)| Wall::from_micros(at.as_microsecond())),
        when: first.map(|(at, window)| shown(at, &window.zone)).unwrap_or_default(),
    })
}

/// A moment as people say it: `Mon 2026-05-04 08:00 Europe/Berlin`.
fn shown(at: Timestamp, zone: &TimeZone) -> String {
    let local = at.to_zoned(zone.clone());
    let name = zone.iana_name().map_or_else(|| local.offset().to_string(), str::to_owned);
    format!("{} {name}", local.strftime("%a %Y-%m-%d %H:%M"))
}

#[cfg(test)]
mod tests {
    use jiff::civil::time;

    use super::*;

    fn window(effect: Effect, days: &[Weekday], from: (i8, i8), to: (i8, i8)) -> Window {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        Window { effect, days: days.to_vec(), from: time(from.0, from.1, 0, 0), to: time(to.0, to.1, 0, 0), zone }
    }

    fn at(utc: &str) -> Wall {
        Wall::from_micros(utc.parse::<Timestamp>().unwrap().as_microsecond())
    }

    fn closed(windows: &[Window], utc: &str) -> String {
        decide(windows, at(utc)).unwrap_err().to_string()
    }

    #[test]
    fn without_windows_it_is_always_time() {
        assert_eq!(decide(&[], at("2026-05-01T12:00:00Z")), Ok(()));
    }

    #[test]
    fn an_allowing_window_is_the_only_time_for_a_change() {
        use Weekday::{Friday, Monday, Thursday, Tuesday, Wednesday};
        let office = [window(Effect::Allow, &[Monday, Tuesday, Wednesday, Thursday, Friday], (8, 0), (16, 0))];
        assert!(decide(&office, at("2026-05-01T06:00:00Z")).is_ok(), "Friday, 8:00 in Berlin");
        assert_eq!(closed(&office, "2026-05-01T14:00:00Z"), "window opens Mon 2026-05-04 08:00 Europe/Berlin");
        assert_eq!(closed(&office, "2026-05-03T05:59:59Z"), "window opens Mon 2026-05-04 08:00 Europe/Berlin");
    }

    #[test]
    fn a_denying_window_wins_and_may_reach_into_the_next_day() {
        let windows =
            [window(Effect::Allow, &[], (0, 0), (0, 0)), window(Effect::Deny, &[Weekday::Friday], (12, 0), (6, 0))];
        assert!(decide(&windows, at("2026-05-01T09:59:00Z")).is_ok());
        assert_eq!(closed(&windows, "2026-05-01T10:00:00Z"), "window opens Sat 2026-05-02 06:00 Europe/Berlin");
        assert_eq!(closed(&windows, "2026-05-02T03:59:00Z"), "window opens Sat 2026-05-02 06:00 Europe/Berlin");
        assert!(decide(&windows, at("2026-05-02T04:00:00Z")).is_ok());
    }

    #[test]
    fn daylight_saving_moves_the_moment_and_not_the_hour() {
        let night = [window(Effect::Allow, &[], (3, 0), (5, 0))];
        // On 29 March 2026 the clocks in Berlin went from 2:00 to 3:00: 3:00 is 1:00 UTC, the day before it was 2:00 UTC.
        assert!(
            decide(&night, at("2026-03-28T01:30:00Z")).is_err() && decide(&night, at("2026-03-28T02:00:00Z")).is_ok()
        );
        assert!(
            decide(&night, at("2026-03-29T00:59:00Z")).is_err() && decide(&night, at("2026-03-29T01:00:00Z")).is_ok()
        );
        // A window that begins in the hour that does not exist begins when that hour would have ended.
        let skipped = [window(Effect::Allow, &[], (2, 30), (4, 0))];
        assert!(
            decide(&skipped, at("2026-03-29T01:29:00Z")).is_err()
                && decide(&skipped, at("2026-03-29T01:30:00Z")).is_ok()
        );
    }

    #[test]
    fn windows_that_never_leave_room_say_so() {
        let never = [window(Effect::Deny, &[], (0, 0), (0, 0))];
        assert!(closed(&never, "2026-05-01T12:00:00Z").contains("within two weeks"));
    }
}
