//! The source and its three revisions as metrics. A revision is a label of one `_info` series and of nothing else,
//! and the series of an old revision goes with it.

use prometheus_client::encoding::DescriptorEncoder;

use super::{Labels, counter, gauge, seconds};
use crate::{
    engine::status::{SourceStatus, Status},
    revision::Truth,
};

pub(super) fn encode(status: &Status, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let source = &status.source;
    let site = ("site", status.site.as_str());
    let success = source.last_success.map(|at| (vec![site], seconds(at)));
    gauge(
        e,
        "patronus_source_last_success_timestamp_seconds",
        "When the source was last read without an error.",
        success,
    )?;
    let errors = status.totals.source_errors.iter().map(|(reason, n)| (vec![site, ("reason", reason.as_str())], *n));
    counter(
        e,
        "patronus_source_errors_total",
        "Readings of the source that brought nothing to apply since the daemon started, by reason.",
        errors,
    )?;
    let hooks = status.totals.webhook.iter().map(|(result, n)| (vec![site, ("result", result.as_str())], *n));
    counter(
        e,
        "patronus_webhook_requests_total",
        "Requests to the webhook of the forge since the daemon started, by result.",
        hooks,
    )?;
    let reports = status.totals.reports.iter().map(|(result, n)| (vec![site, ("result", result.as_str())], *n));
    counter(
        e,
        "patronus_forge_reports_total",
        "Reports of commits to the forge since the daemon started, by result: taken, refused for good, or failed and tried again.",
        reports,
    )?;
    let trial = status.unconfirmed.iter().map(|trial| (vec![site], seconds(trial.until)));
    gauge(
        e,
        "patronus_trial_deadline_timestamp_seconds",
        "When the change in force is undone unless it is confirmed; absent without one that waits.",
        trial,
    )?;
    let one = |value: usize| [(vec![site], value)];
    gauge(
        e,
        "patronus_source_errors",
        "Findings that keep the newest configuration from being applied.",
        one(source.errors.len()),
    )?;
    let held = source.held.iter().map(|held| (vec![site, ("reason", held.why.as_str())], 1_u32));
    gauge(e, "patronus_source_held", "1 while what the source holds must not be tried, with the reason.", held)?;
    gauge(
        e,
        "patronus_source_quarantined",
        "Revisions that failed and are not tried again by themselves.",
        one(source.quarantine.len()),
    )?;
    suspension(source, site, e)?;
    gauge(
        e,
        "patronus_config_revision_info",
        "Revision of the configuration: wanted by the source, tried last, and in force.",
        revisions(source).map(|(state, revision)| (vec![site, ("state", state), ("revision", revision)], 1_u32)),
    )?;
    let attempt = source.attempted.iter().map(|a| (vec![site, ("outcome", a.outcome.as_str())], seconds(a.at)));
    gauge(
        e,
        "patronus_config_attempt_timestamp_seconds",
        "When the last attempt at a revision came to its outcome.",
        attempt,
    )?;
    gauge(e, "patronus_condition", "1 for the status that the condition has, 0 for the others.", conditions(status))
}

fn suspension(source: &SourceStatus, site: (&'static str, &str), e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let suspended = u32::from(source.suspended.is_some());
    gauge(e, "patronus_source_suspended", "Whether no new revision is taken: 1 or 0.", [(vec![site], suspended)])?;
    let since = source.suspended.iter().map(|s| (vec![site], seconds(s.since)));
    gauge(e, "patronus_source_suspended_timestamp_seconds", "When the suspension began, while there is one.", since)?;
    let until = source.suspended.iter().filter_map(|s| Some((vec![site], seconds(s.until?))));
    gauge(
        e,
        "patronus_source_suspended_until_timestamp_seconds",
        "When the suspension ends by itself; absent without an end.",
        until,
    )
}

fn revisions(source: &SourceStatus) -> impl Iterator<Item = (&'static str, &str)> {
    let attempted = source.attempted.as_ref().map(|a| a.revision.as_str());
    let all =
        [("desired", source.desired.as_deref()), ("attempted", attempted), ("applied", source.applied.as_deref())];
    all.into_iter().filter_map(|(state, revision)| Some((state, revision?)))
}

fn conditions(status: &Status) -> impl Iterator<Item = (Labels<'_>, u32)> {
    status.conditions.iter().flat_map(move |condition| {
        [Truth::True, Truth::False, Truth::Unknown].into_iter().map(move |truth| {
            let labels =
                [("site", status.site.as_str()), ("type", condition.kind.as_str()), ("status", truth.as_str())];
            (labels.to_vec(), u32::from(condition.status == truth))
        })
    })
}
