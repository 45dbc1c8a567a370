//! What people order by hand: a rule pinned to a path, a path drained; kept across restarts, ended by time.
//!
//! Invariant: an order that would leave a rule without a working path is refused, unless it is forced.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::Engine;
use crate::{
    api::{Answer, Order},
    clock::{self, Instant, Wall},
    failover::{self, Choice, Drain, Overrides, Pin},
    guard::Who,
    health::{Healths, PathState},
    store::Ledger,
    units::{Name, Span},
};

/// Under which name the ledger keeps the orders.
const ORDERS: &str = "orders";
/// What is known of the paths is of use for so long after a restart.
const FRESH: Duration = Duration::from_secs(600);

/// Orders as they are kept: in wall-clock time, so that they survive a boot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    pins: BTreeMap<Name, (Name, Wall, String)>,
    drains: BTreeMap<Name, (Wall, bool)>,
    /// How many microseconds were left of each pin. A clock that is behind, as after a boot without one that runs on a
    /// battery, must not make years of two hours.
    #[serde(default)]
    left: BTreeMap<Name, u64>,
}

/// What is known of the paths when the daemon stops; its moments count from the boot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Warm {
    at: Instant,
    healths: Healths,
}

impl Warm {
    fn keep(&self, ledger: &Ledger) {
        ledger.set_warm(self);
    }

    /// What an earlier process of this boot knew, unless that is too long ago.
    fn recall(ledger: &Ledger, now: Instant) -> Option<Healths> {
        ledger.warm::<Self>().filter(|warm| now.since(warm.at) < FRESH).map(|warm| warm.healths)
    }
}

fn later(now: (Instant, Wall), at: Wall) -> Instant {
    let micros = at.as_micros().saturating_sub(now.1.as_micros());
    now.0 + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn wall_of(now: (Instant, Wall), at: Instant) -> Wall {
    let (after, before) = (at.since(now.0).as_micros(), now.0.since(at).as_micros());
    let micros = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
    Wall::from_micros(now.1.as_micros().saturating_add(micros(after)).saturating_sub(micros(before)))
}

impl Kept {
    fn of(orders: &Overrides, now: (Instant, Wall)) -> Self {
        let pin = |p: &Pin| (p.to.clone(), wall_of(now, p.until), p.reason.clone());
        let left = |p: &Pin| u64::try_from(p.until.since(now.0).as_micros()).unwrap_or(u64::MAX);
        Self {
            left: orders.pins.iter().map(|(rule, p)| (rule.clone(), left(p))).collect(),
            pins: orders.pins.iter().map(|(rule, p)| (rule.clone(), pin(p))).collect(),
            drains: orders.drains.iter().map(|(path, d)| (path.clone(), (d.since, d.force))).collect(),
        }
    }

    fn back(self, now: (Instant, Wall)) -> Overrides {
        let most = |rule: &Name| {
            self.left.get(rule).map_or(Instant::from_nanos(u64::MAX), |micros| now.0 + Duration::from_micros(*micros))
        };
        let pin = |rule: &Name, (to, until, reason): (Name, Wall, String)| Pin {
            to,
            until: later(now, until).min(most(rule)),
            reason,
        };
        let drain = |(since, force)| Drain { since, force };
        Overrides {
            pins: self.pins.into_iter().map(|(rule, kept)| (rule.clone(), pin(&rule, kept))).collect(),
            drains: self.drains.into_iter().map(|(path, kept)| (path, drain(kept))).collect(),
        }
    }
}

/// Says no to a name that nothing has; `within` says where it was looked for, if not everywhere.
pub(super) fn named<'n>(
    name: &Name,
    noun: &str,
    within: &str,
    known: impl Iterator<Item = &'n Name>,
) -> Result<(), String> {
    let known: Vec<&str> = known.map(Name::as_str).collect();
    if known.contains(&name.as_str()) {
        return Ok(());
    }
    Err(format!("there is no {noun} {name}{within}; there are: {}", known.join(", ")))
}

/// The orders that were in force when the daemon last wrote them down, for whoever cannot ask it.
#[must_use]
pub fn kept(ledger: &Ledger) -> Overrides {
    let now = (clock::now(), clock::wall());
    let mut orders = ledger.get::<Kept>(ORDERS).map(|kept| kept.back(now)).unwrap_or_default();
    orders.expire(now.0);
    orders
}

impl Engine {
    /// Takes over the orders and the knowledge of an earlier process.
    pub(super) fn recall_orders(&mut self) {
        self.overrides = kept(&self.router.ledger);
        for (rule, pin) in &self.overrides.pins {
            let left = Span::from(Duration::from_secs(pin.until.since(clock::now()).as_secs()));
            self.event("manual", rule.as_str(), format!("{rule} stays pinned to {} for {left}", pin.to), json!(pin));
        }
    }

    /// Takes over what an earlier process of this boot knew of the paths, unless that is too long ago.
    pub(super) fn recall_health(&mut self) {
        let now = clock::now();
        if let Some(healths) = Warm::recall(&self.router.ledger, now) {
            self.monitor.remember(&healths, now);
        }
    }

    /// Remembers what is known of the paths, for a restart.
    pub(super) fn keep_health(&self) {
        let warm = Warm { at: clock::now(), healths: self.monitor.healths().clone() };
        warm.keep(&self.router.ledger);
    }

    /// Ends orders whose time is over.
    pub(super) fn expire_orders(&mut self, now: Instant) {
        let over = self.overrides.expire(now);
        for (rule, pin) in &over {
            let message = format!("{rule} is no longer pinned to {}: the time is over", pin.to);
            self.event("manual", rule.as_str(), message, json!(pin));
        }
        if !over.is_empty() {
            self.keep_orders();
        }
    }

    pub(super) fn keep_orders(&self) {
        self.router.ledger.put(ORDERS, &Kept::of(&self.overrides, (clock::now(), clock::wall())));
    }

    pub(super) async fn on_order(&mut self, order: Order, who: &Who, reply: oneshot::Sender<Answer>) {
        let verb = order.verb();
        let answer = match self.obey(order, &who.to_string()) {
            Ok(done) => {
                self.keep_orders();
                self.decide(clock::now()).await;
                self.timers.publish = clock::now();
                Answer::Done(done)
            }
            Err(refused) => Answer::Refused(refused),
        };
        self.audit(who, verb, &answer.line());
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn obey(&mut self, order: Order, by: &str) -> Result<String, String> {
        let active = self.active.as_ref().ok_or("nothing is in force yet")?;
        let (site, now) = (&active.site, clock::now());
        let (subject, done) = match order {
            Order::Failover { rule, to, seconds, reason } => {
                named(&rule, "failover rule", "", site.rules.keys())?;
                let members = site.rules.get(&rule).map(|r| r.members.as_slice()).unwrap_or_default();
                named(&to, "path", &format!(" in the rule {rule}"), members.iter())?;
                let time = Duration::from_secs(seconds);
                let down = self.monitor.healths().get(&to).is_some_and(|h| h.state == PathState::Down);
                let but =
                    if down { format!("; it is used when it is up again, since {to} is down") } else { String::new() };
                let done = format!("{rule} is pinned to {to} for {} by {by}: {reason}{but}", Span::from(time));
                self.overrides.pins.insert(rule.clone(), Pin { to, until: now + time, reason });
                (rule, done)
            }
            Order::Failback { rule } => {
                named(&rule, "failover rule", "", site.rules.keys())?;
                let pinned = self.overrides.pins.remove(&rule).is_some();
                let choice = self.selection.rules.get_mut(&rule);
                let waiting = choice.is_some_and(Choice::hasten);
                let done = match (pinned, waiting) {
                    (_, true) => format!("{rule} returns now, by {by}"),
                    (true, false) => {
                        format!("{rule} is no longer pinned, by {by}; it returns when its path is fit for it")
                    }
                    (false, false) => {
                        return Err(format!("{rule} is where it wants to be, or its path is not fit to return to"));
                    }
                };
                (rule, done)
            }
            Order::Drain { path, force } => {
                named(&path, "path", "", site.paths.keys())?;
                let last = failover::overrides::last_for(site, &path, &self.overrides, self.monitor.healths());
                if !force && !last.is_empty() {
                    let rules: Vec<&str> = last.iter().map(|r| r.as_str()).collect();
                    let rules = rules.join(", ");
                    return Err(format!(
                        "{path} is the last path that works for {rules}: `--force` drains it all the same"
                    ));
                }
                let since = self.overrides.drains.get(&path).map_or_else(clock::wall, |drain| drain.since);
                self.overrides.drains.insert(path.clone(), Drain { since, force });
                let how = if force { ", even as the last path" } else { "" };
                (path.clone(), format!("{path} is drained{how} by {by}, until `patronus undrain {path}`"))
            }
            Order::Undrain { path } => {
                let was = self.overrides.drains.remove(&path);
                was.ok_or_else(|| format!("{path} is not drained"))?;
                (path.clone(), format!("{path} is no longer drained, by {by}"))
            }
        };
        self.event("manual", subject.as_str(), done.clone(), json!({"by": by}));
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_paths_is_used_again_within_ten_minutes_of_the_same_boot_and_not_later() {
        let dir = tempfile::tempdir().unwrap();
        let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
        let known = serde_json::json!({"fiber": {"state": "down", "score": 0, "loss": "100%", "latency": null,
            "jitter": null, "rounds": 20, "carrier": true, "since": 1, "reason": "3 rounds lost in a row"}});
        let healths: Healths = serde_json::from_value(known).unwrap();
        let (ledger, _) = Ledger::open(dir.path());
        assert_eq!(Warm::recall(&ledger, at(100)), None, "nothing is known at first");
        Warm { at: at(100), healths: healths.clone() }.keep(&ledger);
        drop(ledger);
        let (ledger, _) = Ledger::open(dir.path());
        assert_eq!(Warm::recall(&ledger, at(699)), Some(healths));
        assert_eq!(Warm::recall(&ledger, at(700)), None, "too long ago");
        drop(ledger);
        let journal = rusqlite::Connection::open(dir.path().join("journal.db")).unwrap();
        journal.execute("UPDATE this_boot SET boot = 'another'", []).unwrap();
        drop(journal);
        let (ledger, _) = Ledger::open(dir.path());
        assert_eq!(Warm::recall(&ledger, at(101)), None, "another boot");
    }

    #[test]
    fn orders_keep_their_end_across_a_restart_and_a_boot() {
        let name = |s: &str| s.parse::<Name>().unwrap();
        let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
        let mut orders = Overrides::default();
        orders.pins.insert(name("r"), Pin { to: name("lte"), until: at(500), reason: "mast".into() });
        orders.drains.insert(name("dsl"), Drain { since: Wall::from_micros(990_000_000), force: true });
        let kept = Kept::of(&orders, (at(100), Wall::from_micros(1_000_000_000)));
        let text = serde_json::to_string(&kept).unwrap();
        // Sixty seconds later by the wall clock, after a boot.
        let back = serde_json::from_str::<Kept>(&text).unwrap().back((at(7), Wall::from_micros(1_060_000_000)));
        assert_eq!(back.pins["r"].until, at(7 + 340));
        let drained = Drain { since: Wall::from_micros(990_000_000), force: true };
        assert_eq!(back.drains["dsl"], drained, "since when it was given, also before this boot");
        // The clock is behind: not a second more than was left.
        let back = serde_json::from_str::<Kept>(&text).unwrap().back((at(7), Wall::from_micros(0)));
        assert_eq!(back.pins["r"].until, at(7 + 400));
        let mut late = serde_json::from_str::<Kept>(&text).unwrap().back((at(7), Wall::from_micros(9_000_000_000)));
        assert_eq!(late.expire(at(7)).len(), 1, "its time went by meanwhile");
    }
}
