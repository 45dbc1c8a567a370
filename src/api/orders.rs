//! What people order by hand: failover, failback, drain, undrain. The engine decides.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, rejection::JsonRejection},
    http::StatusCode,
    routing::post,
};
use tokio::sync::oneshot;

use super::{Answer, ApiState, Command, Failed, Order, peer::Peer, source::Done};

/// The engine answers between two passes; a pass may read back for seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for which a rule may be pinned: whoever wants longer changes the configuration.
const LONGEST: u64 = 30 * 86_400;

pub(super) fn router() -> Router<ApiState> {
    Router::new().route("/v1/orders", post(take))
}

async fn take(
    State(state): State<ApiState>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    given: Result<Json<Order>, JsonRejection>,
) -> Result<Json<Done>, Failed> {
    let Json(order) = given.map_err(|refused| Failed(StatusCode::BAD_REQUEST, refused.body_text()))?;
    if let Order::Failover { seconds, reason, .. } = &order {
        if reason.trim().is_empty() {
            return Err(Failed(StatusCode::BAD_REQUEST, "say why: whoever comes next wants to know".into()));
        }
        if !(1..=LONGEST).contains(seconds) {
            let message = "a rule is pinned for a second to 30 days: for longer, change the configuration";
            return Err(Failed(StatusCode::BAD_REQUEST, message.into()));
        }
    }
    let (reply, answer) = oneshot::channel();
    let busy = |_| Failed(StatusCode::SERVICE_UNAVAILABLE, "the engine is busy: try again in a moment".into());
    state.commands.try_send(Command::Order { order, who: peer.who(), reply }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Answer::Done(message))) => Ok(Json(Done { format_version: 1, message })),
        Ok(Ok(Answer::Refused(why))) => Err(Failed(StatusCode::CONFLICT, why)),
        Ok(Err(_)) => Err(Failed(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".into())),
        Err(_) => Err(Failed(StatusCode::GATEWAY_TIMEOUT, "the engine takes long: look at `patronus status`".into())),
    }
}
