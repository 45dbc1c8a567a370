//! The metrics in Prometheus' text format (0.0.4), made anew from the published status at each scrape.
//!
//! Invariant: nothing is registered and nothing lingers. A path that left the configuration has no series in
//! the next scrape, and a figure that is not known has no series at all, never 0.

mod source;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, text::encode_registry},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    clock::Wall,
    engine::status::{PathStatus, ReconcileOutcome, Status},
    health::{PathState, quality::BUCKETS},
    units::Family,
};

/// The `Content-Type` of [`render`]'s result.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of this moment.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(status.clone())));
    let mut text = String::with_capacity(64 * 1024);
    // Writing to a String cannot fail.
    let _ = encode_registry(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Scrape(Status);

const STATES: [(PathState, &str); 4] = [
    (PathState::Unknown, "unknown"),
    (PathState::Up, "up"),
    (PathState::Degraded, "degraded"),
    (PathState::Down, "down"),
];

const fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One metric with all its series. The names carry `_total` and `_info` themselves: the text format wants
/// them in `HELP` and `TYPE` too, which the library's own counters (`OpenMetrics`) leave out.
fn family<'a, V: EncodeGaugeValue>(
    e: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<'a>, V)>,
) -> std::fmt::Result {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut metric = e.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn gauge<'a, V: EncodeGaugeValue>(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<'a>, V)>,
) -> std::fmt::Result {
    family(e, MetricType::Gauge, name, help, rows)
}

fn counter<'a, V: EncodeGaugeValue>(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<'a>, V)>,
) -> std::fmt::Result {
    family(e, MetricType::Counter, name, help, rows)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let e = &mut encoder;
        self.paths(e)?;
        self.policies(e)?;
        self.rules(e)?;
        self.reconciles(e)?;
        source::encode(&self.0, e)?;
        self.daemon(e)
    }
}

impl Scrape {
    fn site(&self) -> (&'static str, &str) {
        ("site", self.0.site.as_str())
    }

    fn per_path<V>(&self, value: impl Fn(&PathStatus) -> Option<V>) -> impl Iterator<Item = (Labels<'_>, V)> {
        self.0
            .paths
            .iter()
            .filter_map(move |(name, path)| Some((vec![self.site(), ("path", name.as_str())], value(path)?)))
    }

    fn paths(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let seconds = |d: std::time::Duration| d.as_secs_f64();
        let measured = |p: &PathStatus| p.health.rounds > 0;
        let rtt = self.per_path(|p| p.health.latency.map(seconds));
        gauge(
            e,
            "patronus_path_rtt_seconds",
            "Mean round-trip time over the probe window; absent without answers.",
            rtt,
        )?;
        gauge(
            e,
            "patronus_path_load_ratio",
            "Share of the declared bandwidth in use, by the direction that uses more; absent if none is declared.",
            self.per_path(|p| p.health.used),
        )?;
        let jitter = self.per_path(|p| p.health.jitter.map(seconds));
        gauge(
            e,
            "patronus_path_jitter_seconds",
            "Interarrival jitter (RFC 3550) over the probe window; absent without answers.",
            jitter,
        )?;
        let loss = self.per_path(|p| measured(p).then(|| p.health.loss.as_f64()));
        gauge(e, "patronus_path_loss_ratio", "Share of lost probes in the probe window, 0 to 1.", loss)?;
        let known = |p: &PathStatus| p.health.state != PathState::Unknown;
        let score = self.per_path(|p| known(p).then_some(u32::from(p.health.score)));
        gauge(e, "patronus_path_health_score", "Health score of the path, 0 to 100.", score)?;
        let usable = |p: &PathStatus| matches!(p.health.state, PathState::Up | PathState::Degraded);
        let up = self.per_path(|p| known(p).then(|| u32::from(usable(p))));
        gauge(
            e,
            "patronus_path_up",
            "Whether the path is usable (up or degraded): 1 or 0; absent before the first measurement.",
            up,
        )?;
        let carrier = self.per_path(|p| Some(u32::from(p.health.carrier)));
        gauge(
            e,
            "patronus_path_carrier",
            "Whether the path's interface is there, up and has a carrier: 1 or 0.",
            carrier,
        )?;
        gauge(
            e,
            "patronus_path_state",
            "State of the path: 1 for the state that it is in, 0 for the others.",
            self.path_states(),
        )?;
        gauge(
            e,
            "patronus_path_family_state",
            "State of one family of a path that is probed in both: 1 for the state that it is in, 0 for the others.",
            self.family_states(),
        )?;
        let drained =
            self.0.paths.iter().map(|(name, p)| (vec![self.site(), ("path", name.as_str())], u32::from(p.drained)));
        gauge(e, "patronus_path_drained", "Whether the path is out of use by hand: 1 or 0.", drained)?;
        counter(e, "patronus_probes_total", "Probes by result since the daemon started.", self.probes())?;
        self.quality(e)
    }

    /// What a path is like, beside its health.
    fn quality(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        gauge(
            e,
            "patronus_path_mos",
            "What a call over the path would sound like, 1 to 4.5 (ITU-T G.107, simplified); absent without answers.",
            self.per_path(|p| p.mos),
        )?;
        let oddities = self.0.paths.iter().flat_map(|(name, path)| {
            let labels = move |kind| vec![self.site(), ("path", name.as_str()), ("kind", kind)];
            [(labels("duplicate"), path.counts.duplicates), (labels("reordered"), path.counts.reordered)]
        });
        let help = "Answers that came a second time or were overtaken by that of a later probe.";
        counter(e, "patronus_probe_oddities_total", help, oddities)?;
        let ways = self.0.paths.iter().flat_map(|(name, path)| {
            let labels = move |way| vec![self.site(), ("path", name.as_str()), ("direction", way)];
            let told = path.counts.one_way.iter();
            told.flat_map(move |w| [(labels("there"), w.there.as_secs_f64()), (labels("back"), w.back.as_secs_f64())])
        });
        let help = "Delay of each direction by STAMP, where the clocks of both ends are synchronised.";
        gauge(e, "patronus_path_one_way_seconds", help, ways)?;
        self.round_trips(e)
    }

    fn round_trips(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut answered = self.0.paths.iter().filter(|(_, p)| p.counts.answered > 0).peekable();
        if answered.peek().is_none() {
            return Ok(());
        }
        let help = "Round-trip times of answered probes since the daemon started.";
        let mut metric = e.encode_descriptor("patronus_probe_rtt_seconds", help, None, MetricType::Histogram)?;
        for (name, path) in answered {
            let counts = &path.counts;
            let ends = BUCKETS.iter().map(|ms| f64::from(*ms) / 1000.0);
            let within: u64 = counts.buckets.iter().sum();
            let mut buckets: Vec<(f64, u64)> = ends.zip(counts.buckets).collect();
            buckets.push((f64::INFINITY, counts.answered - within));
            let labels: Labels<'_> = vec![self.site(), ("path", name.as_str())];
            let row = &mut metric.encode_family(&labels)?;
            row.encode_histogram::<NoLabelSet>(counts.seconds, counts.answered, &buckets, None)?;
        }
        Ok(())
    }

    fn family_states(&self) -> impl Iterator<Item = (Labels<'_>, u32)> {
        let families = self.0.paths.iter().flat_map(|(name, path)| {
            path.health.families.iter().map(move |(family, health)| (name, word(*family), health.state))
        });
        families.flat_map(move |(name, family, is)| {
            let labels = move |state| vec![self.site(), ("path", name.as_str()), ("family", family), ("state", state)];
            STATES.into_iter().map(move |(state, text)| (labels(text), u32::from(is == state)))
        })
    }

    fn path_states(&self) -> impl Iterator<Item = (Labels<'_>, u32)> {
        self.0.paths.iter().flat_map(move |(name, path)| {
            let labels = move |state| vec![self.site(), ("path", name.as_str()), ("state", state)];
            STATES.into_iter().map(move |(state, text)| (labels(text), u32::from(path.health.state == state)))
        })
    }

    fn probes(&self) -> impl Iterator<Item = (Labels<'_>, u64)> {
        self.0.paths.iter().flat_map(move |(name, path)| {
            let labels = move |result| vec![self.site(), ("path", name.as_str()), ("result", result)];
            [(labels("answered"), path.probes_answered), (labels("lost"), path.probes_lost)]
        })
    }

    fn policies(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let all = || self.0.policies.iter().map(|p| (vec![self.site(), ("policy", p.name.as_str())], p));
        let bytes = all().map(|(labels, p)| (labels, p.counter.bytes));
        counter(
            e,
            "patronus_policy_bytes_total",
            "Bytes of the policy's traffic in both directions, IP headers included.",
            bytes,
        )?;
        let packets = all().map(|(labels, p)| (labels, p.counter.packets));
        counter(e, "patronus_policy_packets_total", "Packets of the policy's traffic in both directions.", packets)?;
        let flows = all().map(|(labels, p)| (labels, p.flows));
        gauge(e, "patronus_policy_active_flows", "Connections tracked by the kernel that belong to the policy.", flows)
    }

    fn rules(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let active = self.0.rules.iter().flat_map(|(name, rule)| {
            let labels = |path| vec![self.site(), ("rule", name.as_str()), ("path", path)];
            let is_active = |path| u32::from(rule.choice.in_use().any(|used| used == path));
            rule.members.iter().map(move |path| (labels(path.as_str()), is_active(path)))
        });
        gauge(e, "patronus_failover_active_path", "Whether new flows of the rule take this path now: 1 or 0.", active)?;
        let parted = self.0.rules.iter().flat_map(|(name, rule)| {
            rule.parted.iter().map(move |p| {
                let labels =
                    vec![self.site(), ("rule", name.as_str()), ("family", word(p.family)), ("path", p.to.as_str())];
                (labels, 1_u32)
            })
        });
        gauge(
            e,
            "patronus_failover_family_path",
            "1 for the path that one family of the rule takes while the rule uses another; absent otherwise.",
            parted,
        )?;
        let remaining = self.0.rules.iter().filter_map(|(name, rule)| {
            let labels = vec![self.site(), ("rule", name.as_str())];
            Some((labels, rule.failback_in?))
        });
        gauge(
            e,
            "patronus_failover_failback_remaining_seconds",
            "Time until the rule returns to its primary, while that is under way.",
            remaining,
        )?;
        let pinned = self.0.rules.iter().filter_map(|(name, rule)| {
            let labels = vec![self.site(), ("rule", name.as_str())];
            Some((labels, rule.pinned.as_ref()?.seconds))
        });
        gauge(
            e,
            "patronus_failover_pinned_remaining_seconds",
            "Time for which the rule is pinned to a path by hand, while it is.",
            pinned,
        )?;
        let events = self.0.totals.transitions.iter().flat_map(|(name, kinds)| {
            let labels = |kind: crate::failover::TransitionKind| {
                vec![self.site(), ("rule", name.as_str()), ("type", kind.word())]
            };
            kinds.iter().map(move |(kind, n)| (labels(*kind), *n))
        });
        // Totals outlive their rule; their series must not.
        let events = events.filter(|(labels, _)| self.0.rules.contains_key(labels[1].1));
        counter(
            e,
            "patronus_failover_events_total",
            "Changes of the rule's active path by type since the daemon started.",
            events,
        )
    }

    fn reconciles(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let totals = &self.0.totals;
        let results = totals.reconciles.iter().map(|(o, n)| (vec![self.site(), ("result", outcome(*o))], *n));
        counter(e, "patronus_reconcile_total", "Reconciles by result since the daemon started.", results)?;
        let count: u64 = totals.reconciles.values().sum();
        let labels = vec![self.site()];
        e.encode_descriptor(
            "patronus_reconcile_duration_seconds",
            "Time spent in reconciles.",
            None,
            MetricType::Histogram,
        )?
        .encode_family(&labels)?
        .encode_histogram::<NoLabelSet>(totals.reconcile_seconds, count, &[(f64::INFINITY, count)], None)?;
        let drift = totals.drift.iter().map(|(kind, n)| (vec![self.site(), ("kind", kind.as_str())], *n));
        counter(
            e,
            "patronus_drift_total",
            "Objects that someone else changed since the daemon started, by kind.",
            drift,
        )?;
        let one = |value| [(vec![self.site()], value)];
        gauge(e, "patronus_drift_objects", "Objects that are not as wanted right now.", one(self.0.drift.len()))?;
        let fights = one(self.0.fights.len());
        gauge(
            e,
            "patronus_drift_fights",
            "Objects that somebody changes again and again; they are left alone.",
            fights,
        )?;
        gauge(
            e,
            "patronus_generation",
            "Generation in force; rises with every apply.",
            one(usize::try_from(self.0.generation).unwrap_or(usize::MAX)),
        )?;
        let last = self.0.reconcile.iter().map(|r| (vec![self.site()], seconds(r.at)));
        gauge(e, "patronus_reconcile_last_timestamp_seconds", "When the last reconcile ended.", last)
    }

    fn daemon(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let one = |value: usize| [(vec![self.site()], value)];
        counter(
            e,
            "patronus_store_lost_rows_total",
            "Rows that the store could not take since the daemon started.",
            [(vec![self.site()], self.0.totals.store_lost_rows)],
        )?;
        let notifications = self.0.totals.notifications.iter().flat_map(|(channel, results)| {
            let labels = |result| vec![self.site(), ("channel", channel.as_str()), ("result", result)];
            results.iter().map(move |(result, n)| (labels(result.as_str()), *n))
        });
        counter(
            e,
            "patronus_notifications_total",
            "Notifications since the daemon started, by channel and result; `dropped` counts events.",
            notifications,
        )?;
        gauge(
            e,
            "patronus_alarms",
            "Things that a person should look at, as `patronus status` lists them.",
            one(self.0.alarms.len()),
        )?;
        gauge(
            e,
            "patronus_start_timestamp_seconds",
            "When the daemon started.",
            [(vec![self.site()], seconds(self.0.started))],
        )?;
        let build = [(vec![self.site(), ("version", self.0.version.as_str())], 1_u32)];
        gauge(e, "patronus_build_info", "Version of the daemon.", build)
    }
}

fn seconds(at: Wall) -> f64 {
    // Microseconds since 1970 stay below 2^53 for two centuries.
    #[expect(clippy::cast_precision_loss)]
    let micros = at.as_micros() as f64;
    micros / 1e6
}

const fn outcome(outcome: ReconcileOutcome) -> &'static str {
    match outcome {
        ReconcileOutcome::Unchanged => "unchanged",
        ReconcileOutcome::Applied => "applied",
        ReconcileOutcome::RolledBack => "rolled-back",
        ReconcileOutcome::RollbackFailed => "rollback-failed",
        ReconcileOutcome::Refused => "refused",
    }
}
