//! `patronus drift`: what others changed of ours, and what of theirs overrides it.
//!
//! The daemon is asked if it runs; without it, the kernel is compared with the state that the journal says was
//! applied last. Nothing is changed either way.

use std::{fmt::Write as _, io::Write as _};

use hyper::Method;
use serde::Serialize;

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, RouterArgs},
    inspect,
};
use crate::{
    api::client::{self, ClientError},
    drift::{How, Mode, drifted},
    engine::{
        drifted_object,
        router::Router,
        status::{DriftedObject, FightStatus, Status, Treatment},
    },
    foreign::{self, Override},
    settings::Settings,
};

/// Show what others changed of our kernel objects, and what of theirs overrides ours; status 2 if there is any
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    router: RouterArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Everything that there is to say.
#[derive(Debug, Serialize)]
struct Report {
    format_version: u32,
    /// `daemon`, or `kernel` when no daemon runs.
    source: &'static str,
    drifted: Vec<DriftedObject>,
    fights: Vec<FightStatus>,
    overrides: Vec<Override>,
    summary: Summary,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Summary {
    missing: usize,
    extra: usize,
    changed: usize,
    /// Objects of others that override ours for certain, and those that may.
    overrides: usize,
    possible_overrides: usize,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    let asked = client::ask::<Status>(&settings.socket, Method::GET, "/v1/status", inspect::PATIENCE).await;
    let report = match asked {
        Ok(status) => Report::new("daemon", status.drifted, status.fights, status.overrides),
        Err(ClientError::Down { .. }) => from_kernel(&settings).await?,
        Err(error) => return Err(inspect::failure(&error)),
    };
    let text = match args.output {
        Format::Text => report.text(),
        Format::Json => {
            let json =
                serde_json::to_string_pretty(&report).map_err(|e| Failure::error("cannot print the drift", &e))?;
            format!("{json}\n")
        }
    };
    anstream::stdout().write_all(text.as_bytes()).map_err(|e| Failure::error("cannot print the drift", &e))?;
    Ok(if report.is_clean() { Exit::Done } else { Exit::Changes })
}

/// Compares the kernel with what was applied last.
async fn from_kernel(settings: &Settings) -> Result<Report, Failure> {
    let router = Router::new(context::kernel()?, context::ledger_to_read(settings), settings.ranges);
    let failed = |error| context::from_kernel("cannot look at the kernel", &error);
    let observed = router.observe(None).await.map_err(failed)?;
    let Some(applied) = router.applied() else {
        let text = format!(
            "nothing has been applied on this router since it was started (the journal in {} knows of nothing)\n  \
             `patronus plan` compares the kernel with the configuration",
            settings.state_dir.display()
        );
        return Err(Failure::new(Exit::Error, text));
    };
    let treatment = |mode| match mode {
        Mode::Report => Some(Treatment::Reported),
        Mode::Repair => Some(Treatment::Repaired),
        Mode::Ignore => None,
    };
    let found = drifted(applied, applied, &observed.state);
    let objects = found
        .iter()
        .filter_map(|d| Some(drifted_object(d, treatment(settings.drift.of(&d.key))?, applied, &observed.state)));
    let around = router.kernel.surroundings(&settings.ranges).map_err(failed)?;
    let overrides = foreign::overrides(&around, &observed.intruders, &settings.ranges);
    Ok(Report::new("kernel", objects.collect(), Vec::new(), overrides))
}

impl Report {
    fn new(
        source: &'static str,
        drifted: Vec<DriftedObject>,
        fights: Vec<FightStatus>,
        overrides: Vec<Override>,
    ) -> Self {
        let how = |how| drifted.iter().filter(|d| d.how == how).count();
        let certain = overrides.iter().filter(|o| o.certain).count();
        let summary = Summary {
            missing: how(How::Missing),
            extra: how(How::Extra),
            changed: how(How::Changed),
            overrides: certain,
            possible_overrides: overrides.len() - certain,
        };
        Self { format_version: 1, source, drifted, fights, overrides, summary }
    }

    /// Nothing is drifted, fought over, or overridden for certain.
    const fn is_clean(&self) -> bool {
        self.drifted.is_empty() && self.fights.is_empty() && self.summary.overrides == 0
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let clean = inspect::clean;
        section(&mut out, "Changed by someone else", self.drifted.iter().map(|d| vec![symbol(d, &clean(&d.line()))]));
        let fights = self.fights.iter().map(|fight| {
            let who = fight.culprit.program.as_deref().unwrap_or("nobody known");
            let mut lines = vec![
                format!(
                    "! {}: taken away {} times, tried again in {} s",
                    fight.object, fight.losses, fight.next_try_in
                ),
                format!("    likely: {}", clean(who)),
            ];
            lines.extend(fight.culprit.evidence.iter().map(|e| format!("    since:  {}", clean(e))));
            lines.push(format!("    do:     {}", fight.culprit.remedy));
            lines
        });
        section(&mut out, "Fights (left alone for a while)", fights);
        let overrides = |certain| {
            let chosen = self.overrides.iter().filter(move |o| o.certain == certain);
            chosen.map(|o| vec![format!("! {}", clean(&o.what)), format!("    do:     {}", o.remedy)])
        };
        section(&mut out, "Overrides ours", overrides(true));
        section(&mut out, "May override ours", overrides(false));
        let Summary { missing, extra, changed, overrides, possible_overrides } = &self.summary;
        let verdict = if self.is_clean() { "No drift" } else { "Drift" };
        let space = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(
            out,
            "{space}{verdict}: {missing} missing, {extra} extra, {changed} changed; overridden by {overrides}, \
             perhaps by {possible_overrides} more."
        );
        if self.source == "kernel" && !self.drifted.is_empty() {
            out += "No daemon runs: `patronus apply` puts it back.\n";
        }
        out
    }
}

fn symbol(object: &DriftedObject, line: &str) -> String {
    let sign = match object.how {
        How::Missing => '-',
        How::Extra => '+',
        How::Changed => '~',
    };
    format!("{sign} {line}")
}

fn section(out: &mut String, title: &str, entries: impl Iterator<Item = Vec<String>>) {
    for (number, lines) in entries.enumerate() {
        if number == 0 {
            let space = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{space}{title}");
        }
        for line in lines {
            let _ = writeln!(out, "  {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::{Kind, programs};

    fn object(how: How, treatment: Treatment) -> DriftedObject {
        let (kind, object) = ("rule".to_owned(), "rule   IPv4 priority 20001".to_owned());
        DriftedObject { kind, object, how, detail: None, treatment }
    }

    fn overriding(certain: bool) -> Override {
        Override { kind: Kind::Drop, certain, what: "chain ip filter FORWARD drops".into(), remedy: "accept".into() }
    }

    #[test]
    fn what_may_override_us_alone_is_no_drift() {
        let report = Report::new("kernel", vec![], vec![], vec![overriding(false)]);
        assert!(report.is_clean() && report.text().contains("No drift: 0 missing"), "{}", report.text());
        assert!(!Report::new("kernel", vec![], vec![], vec![overriding(true)]).is_clean());
        assert!(!Report::new("kernel", vec![object(How::Extra, Treatment::Reported)], vec![], vec![]).is_clean());
    }

    #[test]
    fn a_report_reads_from_what_is_wrong_to_what_to_do() {
        let fight = FightStatus {
            kind: "rule".into(),
            object: "rule   IPv4 priority 20001".into(),
            losses: 4,
            seconds: 3,
            next_try_in: 597,
            culprit: programs::culprit("rule", &[], &[programs::Process { pid: 9, name: "systemd-network".into() }]),
        };
        let objects = vec![object(How::Missing, Treatment::LeftAlone), object(How::Changed, Treatment::Repaired)];
        let text = Report::new("kernel", objects, vec![fight], vec![overriding(true), overriding(false)]).text();
        for part in [
            "  - rule   IPv4 priority 20001 is missing; left alone",
            "  ~ rule",
            "    likely: systemd-networkd",
            "    since:  systemd-networkd runs (pid 9)",
            "ManageForeignRoutingPolicyRules=no",
            "\nOverrides ours\n  ! chain ip filter FORWARD drops\n      do:     accept\n",
            "Drift: 1 missing, 0 extra, 1 changed; overridden by 1, perhaps by 1 more.\nNo daemon runs",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
