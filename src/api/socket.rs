//! The control socket: status, events, history, and requests to the engine.

use std::{
    collections::BTreeMap, convert::Infallible, io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Query, State, rejection::QueryRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, oneshot},
};

use super::{ApiError, ApiState, Command, Failed, aside, peer};
use crate::{
    clock::Wall,
    engine::status::{Event, ReconcileStatus, Status},
    store::{AuditRow, Generation, Recorder, Run, StoreError, read, read::Wanted},
    units::Span,
};

/// How long a reconcile may take before the client is told to look later.
const PATIENCE: Duration = Duration::from_secs(120);

/// Binds a socket that was never open to more than its group: the name appears when the mode is right.
pub(super) async fn bind(path: &Path, group: Option<&str>) -> Result<(UnixListener, Gid), ApiError> {
    let failed = |source: io::Error| ApiError::Socket { path: path.to_owned(), hint: hint(&source), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ApiError::InUse { path: path.to_owned() });
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    let gid = group.map(gid).transpose()?.unwrap_or_else(Gid::effective);
    nix::unistd::chown(&fresh, None, Some(gid)).map_err(|errno| failed(errno.into()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    Ok((listener, gid))
}

fn gid(name: &str) -> Result<Gid, ApiError> {
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid).ok_or_else(|| ApiError::Group { name: name.to_owned() })
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run as root, or give a path that you may write to with --socket)",
        io::ErrorKind::InvalidInput => " (a socket's path is at most 107 bytes long)",
        _ => "",
    }
}

pub(super) fn router(state: ApiState, group: Gid) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/history", get(history))
        .route("/v1/generations", get(generations))
        .route("/v1/audit", get(audit))
        .route("/v1/reconcile", post(reconcile))
        .route("/v1/confirm", post(confirm))
        .route("/v1/rollback", post(rollback))
        .merge(super::source::router())
        .merge(super::orders::router())
        .merge(super::probe::router())
        .fallback(|| async {
            Failed(StatusCode::NOT_FOUND, "no such question: is this client of another version?".into())
        })
        .layer(middleware::from_fn_with_state(group, peer::admit))
        .with_state(state)
}

async fn status(State(state): State<ApiState>) -> Result<Response, Failed> {
    let status = state.status.borrow().clone();
    let text = aside(move || serde_json::to_vec::<Status>(&status)).await?.map_err(|e| internal(&e))?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// The questions that `/v1/events` and `/v1/history` understand.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// Microseconds since 1970 UTC.
    since: Option<i64>,
    limit: Option<usize>,
    kind: Option<String>,
    #[serde(default)]
    follow: bool,
}

impl Question {
    fn wanted(&self) -> Wanted {
        let limit = self.limit.unwrap_or(100).min(100_000);
        Wanted { since: self.since.map(Wall::from_micros), until: None, only: self.kind.clone(), limit }
    }

    fn matches(&self, event: &Event) -> bool {
        self.since.is_none_or(|since| event.at.as_micros() >= since)
            && self.kind.as_ref().is_none_or(|k| *k == event.kind)
    }
}

type Asked = Result<Query<Question>, QueryRejection>;

fn understood(asked: Asked) -> Result<Question, Failed> {
    asked.map(|Query(question)| question).map_err(|refused| Failed(StatusCode::BAD_REQUEST, refused.body_text()))
}

/// Events with the version of their format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Events {
    /// 1.
    pub format_version: u32,
    /// Oldest first.
    pub events: Vec<Event>,
}

/// Runs with the version of their format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct History {
    /// 1.
    pub format_version: u32,
    /// Oldest first.
    pub runs: Vec<Run>,
}

async fn events(State(state): State<ApiState>, asked: Asked) -> Result<Response, Failed> {
    let question = understood(asked)?;
    if question.follow {
        return follow(&state.records, question).await;
    }
    let recent = state.records.follow().0;
    let events = past(&state.records, recent, &question).await?;
    Ok(Json(Events { format_version: 1, events }).into_response())
}

/// The stored events and those still in memory, each once; a database that cannot be read hides only the old.
async fn past(records: &Recorder, recent: Vec<Event>, question: &Question) -> Result<Vec<Event>, Failed> {
    let (dir, wanted) = (records.dir(), question.wanted());
    let limit = wanted.limit;
    let stored = aside(move || read::events(&dir, &wanted)).await?.unwrap_or_else(|error| {
        tracing::warn!("events: {}", error.chain());
        Vec::new()
    });
    let mut all: BTreeMap<i64, Event> = stored.into_iter().map(|e| (e.id, e)).collect();
    all.extend(recent.into_iter().filter(|e| question.matches(e)).map(|e| (e.id, e)));
    let surplus = all.len().saturating_sub(limit);
    Ok(all.into_values().skip(surplus).collect())
}

/// One event per line: the past, then what happens, until the client goes.
async fn follow(records: &Recorder, question: Question) -> Result<Response, Failed> {
    let (recent, live) = records.follow();
    let newest = |events: &[Event]| events.last().map_or(i64::MIN, |e| e.id);
    let in_memory = newest(&recent);
    let past = past(records, recent, &question).await?;
    // What came while the database was read may be in both; the writer keeps the order.
    let seen = in_memory.max(newest(&past));
    let to_come = stream::unfold(live, |mut live| async move {
        loop {
            match live.recv().await {
                Ok(kept) => {
                    if let Some(event) = kept.event() {
                        return Some((event, live));
                    }
                }
                // A client that does not read loses events, not the daemon its memory.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let to_come = to_come.filter(move |e| std::future::ready(e.id > seen && question.matches(e)));
    let lines = stream::iter(past).chain(to_come).map(|event| {
        let mut text = serde_json::to_vec(&event).unwrap_or_default();
        text.push(b'\n');
        Ok::<_, Infallible>(text)
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn history(State(state): State<ApiState>, asked: Asked) -> Result<Json<History>, Failed> {
    let (dir, limit) = (state.records.dir(), understood(asked)?.wanted().limit);
    let runs = match aside(move || read::history(&dir, limit)).await? {
        Err(StoreError::Missing { .. }) => Vec::new(),
        runs => runs.map_err(|error| Failed(StatusCode::INTERNAL_SERVER_ERROR, error.chain()))?,
    };
    Ok(Json(History { format_version: 1, runs }))
}

/// Generations with the version of their format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Generations {
    /// 1.
    pub format_version: u32,
    /// Oldest first.
    pub generations: Vec<Generation>,
}

/// The audit with the version of its format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Audit {
    /// 1.
    pub format_version: u32,
    /// Oldest first.
    pub rows: Vec<AuditRow>,
}

async fn generations(State(state): State<ApiState>, asked: Asked) -> Result<Json<Generations>, Failed> {
    let (dir, limit) = (state.records.dir(), understood(asked)?.wanted().limit);
    let generations = aside(move || read::generations(&dir, limit)).await?.map_err(|error| internal(&error))?;
    Ok(Json(Generations { format_version: 1, generations }))
}

async fn audit(State(state): State<ApiState>, asked: Asked) -> Result<Json<Audit>, Failed> {
    let (dir, limit) = (state.records.dir(), understood(asked)?.wanted().limit);
    let rows = aside(move || read::audit(&dir, limit)).await?.map_err(|error| internal(&error))?;
    Ok(Json(Audit { format_version: 1, rows }))
}

async fn reconcile(State(state): State<ApiState>) -> Result<Json<ReconcileStatus>, Failed> {
    let (reply, answer) = oneshot::channel();
    let busy = |_| Failed(StatusCode::SERVICE_UNAVAILABLE, "the engine is busy: try again in a moment".into());
    state.commands.try_send(Command::Reconcile { reply }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(done)) => Ok(Json(done)),
        Ok(Err(_)) => Err(Failed(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".into())),
        Err(_) => {
            Err(Failed(StatusCode::GATEWAY_TIMEOUT, "the reconcile takes long: look at `patronus status`".into()))
        }
    }
}

/// What was done, in one line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// 1.
    pub format_version: u32,
    /// The line.
    pub done: String,
}

/// The question that `/v1/rollback` understands.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    to: Option<u64>,
    /// How long it may wait for its confirmation.
    within: Option<Span>,
}

async fn confirm(
    State(state): State<ApiState>,
    ConnectInfo(peer): ConnectInfo<peer::Peer>,
) -> Result<Json<Done>, Failed> {
    let (reply, answer) = oneshot::channel();
    told(&state, Command::Confirm { who: peer.who(), reply }, answer).await
}

async fn rollback(
    State(state): State<ApiState>,
    ConnectInfo(peer): ConnectInfo<peer::Peer>,
    Query(back): Query<Back>,
) -> Result<Json<Done>, Failed> {
    let (reply, answer) = oneshot::channel();
    let within = back.within.map(Span::get);
    told(&state, Command::Rollback { who: peer.who(), to: back.to, within, reply }, answer).await
}

async fn told(
    state: &ApiState,
    command: Command,
    answer: oneshot::Receiver<Result<String, String>>,
) -> Result<Json<Done>, Failed> {
    let busy = |_| Failed(StatusCode::SERVICE_UNAVAILABLE, "the engine is busy: try again in a moment".into());
    state.commands.try_send(command).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(done))) => Ok(Json(Done { format_version: 1, done })),
        Ok(Ok(Err(why))) => Err(Failed(StatusCode::CONFLICT, why)),
        _ => Err(Failed(StatusCode::GATEWAY_TIMEOUT, "no answer in time: look at `patronus status`".into())),
    }
}

fn internal(error: &dyn std::error::Error) -> Failed {
    Failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
