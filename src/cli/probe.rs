//! `patronus probe`: probes a path now, by its own method, and prints each answer as ping does.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

use serde_json::json;

use super::{
    Exit, Format, Outcome,
    inspect::{self, Daemon, latency},
};
use crate::{
    api::{
        Probing, Round,
        client::{self, ClientError},
    },
    units::{Name, Span},
};

/// Probe a path now, by its own method, over it and nothing else; status 1 when nothing answers
#[derive(Debug, Clone, clap::Args)]
pub struct ProbeArgs {
    /// The path
    path: Name,
    /// How many rounds; each asks every target of the path once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: u32,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Answers of one target.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tally {
    sent: u32,
    /// In seconds.
    times: Vec<f64>,
}

impl Tally {
    fn mean(&self) -> Option<f64> {
        let n = u32::try_from(self.times.len()).ok().filter(|n| *n > 0)?;
        Some(self.times.iter().sum::<f64>() / f64::from(n))
    }

    fn least(&self) -> Option<f64> {
        self.times.iter().copied().min_by(f64::total_cmp)
    }

    fn most(&self) -> Option<f64> {
        self.times.iter().copied().max_by(f64::total_cmp)
    }
}

/// All rounds of one run.
#[derive(Debug, Default)]
struct Seen {
    head: Option<Probing>,
    rounds: Vec<Round>,
}

/// Runs `patronus probe`.
pub async fn run(args: ProbeArgs) -> Outcome {
    let (mut seen, mut broken) = (Seen::default(), None);
    let text = args.daemon.output == Format::Text;
    let each = |line: &[u8]| match seen.take(line) {
        Ok(shown) => !text || inspect::writes(&shown),
        Err(error) => {
            broken = Some(ClientError::from(error));
            false
        }
    };
    let uri = format!("/v1/probe?path={}&count={}", args.path, args.count);
    let ended = client::lines(&args.daemon.socket(), &uri, each).await;
    ended.and(broken.map_or(Ok(()), Err)).map_err(|error| inspect::failure(&error))?;
    if text {
        inspect::print(&seen.summary())
    } else {
        inspect::print_json(&seen.json())
    };
    let answered = seen.tallies().values().any(|tally| !tally.times.is_empty());
    Ok(if answered { Exit::Done } else { Exit::Error })
}

fn ms(seconds: Option<f64>) -> String {
    latency(seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()))
}

fn span(seconds: f64) -> Span {
    Span::from(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A gateway that is asked by ARP or ND has no address of its own here.
fn called(target: &IpAddr) -> String {
    if target.is_unspecified() { "the gateway".into() } else { target.to_string() }
}

impl Seen {
    /// Takes in a line of the daemon's answer, and gives what a person sees of it.
    fn take(&mut self, line: &[u8]) -> Result<String, serde_json::Error> {
        if self.head.is_none() {
            let head: Probing = serde_json::from_slice(line)?;
            let (interval, timeout) = (span(head.interval), span(head.timeout));
            let text = format!(
                "{} by {} over {}: every {interval}, lost after {timeout}\n",
                head.path, head.method, head.interface
            );
            self.head = Some(head);
            return Ok(text);
        }
        let round: Round = serde_json::from_slice(line)?;
        let answer = |a: &crate::api::Answered| {
            let time = a.seconds.map_or_else(|| "lost".into(), |s| ms(Some(s)));
            format!("{} {time:<8}", called(&a.target))
        };
        let answers: Vec<String> = round.answers.iter().map(answer).collect();
        let said = round.said.as_deref().map(|s| format!("  it said: {}", inspect::clean(s))).unwrap_or_default();
        let text = format!("{:>4}  {}{said}", round.number, answers.join("  "));
        self.rounds.push(round);
        Ok(text.trim_end().to_owned() + "\n")
    }

    fn tallies(&self) -> BTreeMap<IpAddr, Tally> {
        let mut all: BTreeMap<IpAddr, Tally> = BTreeMap::new();
        for answer in self.rounds.iter().flat_map(|r| &r.answers) {
            let tally = all.entry(answer.target).or_default();
            tally.sent += 1;
            tally.times.extend(answer.seconds);
        }
        all
    }

    fn path(&self) -> &str {
        self.head.as_ref().map_or("", |head| head.path.as_str())
    }

    fn summary(&self) -> String {
        let tallies = self.tallies();
        let sent: u32 = tallies.values().map(|t| t.sent).sum();
        let answered: usize = tallies.values().map(|t| t.times.len()).sum();
        let mut out = format!("\n{}: {answered} of {sent} probes answered\n", self.path());
        let width = tallies.keys().map(|t| called(t).len()).max().unwrap_or_default();
        for (target, tally) in &tallies {
            let times = match tally.times.len() {
                0 => "nothing".to_owned(),
                n => format!(
                    "{n} of {}: min {}, mean {}, max {}",
                    tally.sent,
                    ms(tally.least()),
                    ms(tally.mean()),
                    ms(tally.most())
                ),
            };
            let _ = writeln!(out, "  {:<width$}  {times}", called(target));
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let target = |(target, tally): (&IpAddr, &Tally)| {
            json!({
                "target": target, "sent": tally.sent, "answered": tally.times.len(),
                "min": tally.least(), "mean": tally.mean(), "max": tally.most(),
            })
        };
        let targets: Vec<_> = self.tallies().iter().map(target).collect();
        let mut all = json!(self.head);
        all["rounds"] = json!(self.rounds);
        all["targets"] = json!(targets);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_a_line_and_the_end_has_a_line_for_each_target() {
        let mut seen = Seen::default();
        let head =
            r#"{"format_version":1,"path":"fiber","method":"icmp","interface":"wan0","interval":1.0,"timeout":0.8}"#;
        let lines = [
            r#"{"round":1,"answers":[{"target":"1.1.1.1","seconds":0.0123},{"target":"9.9.9.9","seconds":null}],"said":null}"#,
            r#"{"round":2,"answers":[{"target":"1.1.1.1","seconds":0.0143},{"target":"9.9.9.9","seconds":null}],"said":"HTTP 302"}"#,
        ];
        let mut text = seen.take(head.as_bytes()).unwrap();
        for line in lines {
            text += &seen.take(line.as_bytes()).unwrap();
        }
        text += &seen.summary();
        let shown = "fiber by icmp over wan0: every 1s, lost after 800ms\n   1  1.1.1.1 12.3ms    9.9.9.9 lost\n   \
            2  1.1.1.1 14.3ms    9.9.9.9 lost      it said: HTTP 302\n\nfiber: 2 of 4 probes answered\n  1.1.1.1  2 of \
            2: min 12.3ms, mean 13.3ms, max 14.3ms\n  9.9.9.9  nothing\n";
        assert_eq!(text, shown);
        let value = seen.json();
        assert_eq!((&value["targets"][1]["answered"], &value["targets"][1]["min"]), (&json!(0), &json!(null)));
        assert_eq!(value["rounds"].as_array().unwrap().len(), 2);
        assert!(seen.take(b"nonsense").is_err());
    }
}
