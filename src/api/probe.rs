//! Probes that somebody asks for by hand: by the path's own method and marks, over sockets of their own, so that the
//! schedule and the statistics of the path are not touched.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{ApiState, Command, Failed};
use crate::{
    health::Sample,
    probe::{ProbeSpec, Prober},
    units::Name,
};

/// The engine answers between two passes; a pass may read back for seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most rounds of one request.
const MOST: u32 = 1_000;
/// Whoever waits does not wait longer than this between two rounds, whatever the path's own interval.
const RHYTHM: Duration = Duration::from_secs(1);

/// What is going to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probing {
    /// 1.
    pub format_version: u32,
    /// The path.
    pub path: Name,
    /// How: `icmp`, `udp` and so on.
    pub method: String,
    /// The interface that the probes leave by.
    pub interface: String,
    /// Seconds between two rounds.
    pub interval: f64,
    /// Seconds within which an answer counts.
    pub timeout: f64,
}

/// What came of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Its number, from 1.
    #[serde(rename = "round")]
    pub number: u32,
    /// By target.
    pub answers: Vec<Answered>,
    /// What a target answered that is not the expected answer.
    pub said: Option<String>,
}

/// What came of one probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// Who was asked; unspecified for the gateway.
    pub target: IpAddr,
    /// The round-trip time in seconds; none without an answer.
    pub seconds: Option<f64>,
}

impl Round {
    fn of(number: u32, sample: Sample) -> Self {
        let answer =
            |(target, rtt): (IpAddr, Option<Duration>)| Answered { target, seconds: rtt.map(|d| d.as_secs_f64()) };
        Self {
            number,
            answers: sample.answers.into_iter().map(answer).collect(),
            said: sample.notes.said.map(Into::into),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    path: Name,
    count: u32,
}

pub(super) fn router() -> Router<ApiState> {
    Router::new().route("/v1/probe", get(probe))
}

async fn probe(
    State(state): State<ApiState>,
    asked: Result<Query<Question>, QueryRejection>,
) -> Result<Response, Failed> {
    let Query(Question { path, count }) =
        asked.map_err(|refused| Failed(StatusCode::BAD_REQUEST, refused.body_text()))?;
    if !(1..=MOST).contains(&count) {
        return Err(Failed(StatusCode::BAD_REQUEST, format!("a path is probed once to {MOST} times")));
    }
    let mut spec = spec_of(&state, path).await?;
    let probe = Arc::make_mut(&mut spec.probe);
    probe.interval = probe.interval.min(RHYTHM).max(probe.timeout);
    let head = Probing {
        format_version: 1,
        path: spec.path.clone(),
        method: spec.probe.method.text().into(),
        interface: spec.interface.to_string(),
        interval: spec.probe.interval.as_secs_f64(),
        timeout: spec.probe.timeout.as_secs_f64(),
    };
    let (sender, samples) = mpsc::channel(16);
    let prober = Prober::start(sender).map_err(|e| Failed(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    prober.configure(vec![spec]);
    // The prober ends with the stream, which ends with the client.
    let rounds = stream::unfold((prober, samples, 0), move |(prober, mut samples, done)| async move {
        let sample = if done < count { samples.recv().await } else { None };
        sample.map(|sample| (line(&Round::of(done + 1, sample)), (prober, samples, done + 1)))
    });
    let lines = stream::once(std::future::ready(line(&head))).chain(rounds).map(Ok::<_, Infallible>);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// How the path is probed now.
async fn spec_of(state: &ApiState, path: Name) -> Result<ProbeSpec, Failed> {
    let (reply, answer) = oneshot::channel();
    let busy = |_| Failed(StatusCode::SERVICE_UNAVAILABLE, "the engine is busy: try again in a moment".into());
    state.commands.try_send(Command::Probe { path, reply }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(spec))) => Ok(*spec),
        Ok(Ok(Err(why))) => Err(Failed(StatusCode::CONFLICT, why)),
        Ok(Err(_)) => Err(Failed(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".into())),
        Err(_) => Err(Failed(StatusCode::GATEWAY_TIMEOUT, "the engine takes long: look at `patronus status`".into())),
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}
