//! What people ask about the source: accept, retry, suspend, resume. The engine decides.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, rejection::JsonRejection},
    http::StatusCode,
    routing::post,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Answer, ApiState, Command, Failed, SourceCommand, peer::Peer};
use crate::clock::Wall;

/// The engine answers between two passes; a pass may read back for seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// 1.
    pub format_version: u32,
    /// What.
    pub message: String,
}

pub(super) fn router() -> Router<ApiState> {
    Router::new()
        .route("/v1/source/accept", post(accept))
        .route("/v1/source/retry", post(retry))
        .route("/v1/source/suspend", post(suspend))
        .route("/v1/source/resume", post(resume))
}

type Given<T> = Result<Json<T>, JsonRejection>;
type Outcome = Result<Json<Done>, Failed>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accept {
    revision: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suspend {
    reason: String,
    /// Microseconds since 1970 UTC.
    until: Option<i64>,
}

async fn accept(State(state): State<ApiState>, ConnectInfo(peer): ConnectInfo<Peer>, given: Given<Accept>) -> Outcome {
    let Json(given) = given.map_err(|refused| Failed(StatusCode::BAD_REQUEST, refused.body_text()))?;
    ask(&state, peer, SourceCommand::Accept(given.revision)).await
}

async fn retry(State(state): State<ApiState>, ConnectInfo(peer): ConnectInfo<Peer>) -> Outcome {
    ask(&state, peer, SourceCommand::Retry).await
}

async fn suspend(
    State(state): State<ApiState>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    given: Given<Suspend>,
) -> Outcome {
    let Json(given) = given.map_err(|refused| Failed(StatusCode::BAD_REQUEST, refused.body_text()))?;
    let reason = given.reason.trim().to_owned();
    if reason.is_empty() {
        return Err(Failed(StatusCode::BAD_REQUEST, "say why: whoever comes next wants to know".into()));
    }
    ask(&state, peer, SourceCommand::Suspend { reason, until: given.until.map(Wall::from_micros) }).await
}

async fn resume(State(state): State<ApiState>, ConnectInfo(peer): ConnectInfo<Peer>) -> Outcome {
    ask(&state, peer, SourceCommand::Resume).await
}

async fn ask(state: &ApiState, peer: Peer, command: SourceCommand) -> Outcome {
    let (reply, answer) = oneshot::channel();
    let busy = |_| Failed(StatusCode::SERVICE_UNAVAILABLE, "the engine is busy: try again in a moment".into());
    state.commands.try_send(Command::Source { command, who: peer.who(), reply }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Answer::Done(message))) => Ok(Json(Done { format_version: 1, message })),
        Ok(Ok(Answer::Refused(why))) => Err(Failed(StatusCode::CONFLICT, why)),
        Ok(Err(_)) => Err(Failed(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".into())),
        Err(_) => Err(Failed(StatusCode::GATEWAY_TIMEOUT, "the engine takes long: look at `patronus status`".into())),
    }
}
