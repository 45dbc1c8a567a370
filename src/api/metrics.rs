//! The metrics listener: read only, no secrets, safe to leave open to a monitoring network.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{ApiState, Failed, Verdict, alive, aside, ready};
use crate::{clock, metrics};

pub(super) fn router(state: ApiState) -> Router {
    Router::new()
        .route("/", get(|| async { "Patronus: /metrics, /healthz, /readyz\n" }))
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(state)
}

async fn scrape(State(state): State<ApiState>) -> Result<Response, Failed> {
    let status = state.status.borrow().clone();
    let text = aside(move || metrics::render(&status)).await?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn healthz(State(state): State<ApiState>) -> Response {
    let mut verdict = alive(&state.status.borrow(), clock::now(), state.max_age);
    // The engine owns the sender: without it nothing will ever move again.
    if state.status.has_changed().is_err() {
        verdict = vec!["the engine has stopped".to_owned()].into();
    }
    answer(verdict)
}

async fn readyz(State(state): State<ApiState>) -> Response {
    answer(ready(&state.status.borrow(), clock::now(), state.max_age))
}

fn answer(verdict: Verdict) -> Response {
    let code = if verdict.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(verdict)).into_response()
}
