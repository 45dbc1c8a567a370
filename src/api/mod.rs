//! What the daemon answers: its control socket (Unix) and its metrics listener (TCP).
//!
//! Both read the published status and the records; the only arrow upwards is one bounded channel of
//! [`Command`]s. Invariant: no listener, request or client can stop or slow the engine. Rendering and disk
//! reads happen on blocking threads, a full command channel is an answer (503), a panic ends one connection.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{engine::status::Status, store::Recorder};

pub mod client;
mod command;
mod health;
mod metrics;
mod orders;
mod peer;
mod probe;
mod socket;
mod source;
mod webhook;

pub use command::{Answer, Command, Order, SourceCommand};
pub use health::{Verdict, alive, ready};
pub(crate) use probe::{Answered, Probing, Round};
pub(crate) use socket::{Audit, Done, Events, Generations, History};
pub use webhook::{WebhookListener, webhook};

/// What the listeners need of the daemon.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// The published status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The way to the engine.
    pub commands: mpsc::Sender<Command>,
    /// The records: new events, and the directory in which older ones are read.
    pub records: Recorder,
    /// A status older than this means that the loop hangs; the engine publishes several times as often.
    pub max_age: Duration,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The control socket.
    pub socket: PathBuf,
    /// The group that may use it besides root; the daemon's own if absent.
    pub group: Option<String>,
    /// The metrics listener, if any.
    pub metrics: Option<SocketAddr>,
}

/// A listener that could not be opened. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The control socket.
    #[error("cannot open the control socket {}{hint}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What to do, if known.
        hint: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something answers on the control socket.
    #[error("{} is in use: another Patronus runs; stop it, or give this one another --socket", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// No such group.
    #[error(
        "the group `{name}` for the control socket does not exist: create it with `groupadd --system {name}`, or configure another"
    )]
    Group {
        /// Its name.
        name: String,
    },
    /// The webhook listener.
    #[error("cannot listen for webhooks on {address}{hint}")]
    Webhook {
        /// Where.
        address: SocketAddr,
        /// What to do, if known.
        hint: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The metrics listener.
    #[error("cannot listen for metrics on {address}{hint}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// What to do, if known.
        hint: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The control socket at work. Dropping it closes it and removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    task: JoinHandle<()>,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The metrics listener at work. Dropping it closes it.
#[derive(Debug)]
pub struct MetricsListener {
    task: JoinHandle<()>,
    /// Where it listens; the port is the real one when 0 was asked for.
    pub address: SocketAddr,
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the control socket (mode 0660) and answers on it.
pub async fn control(listen: &Listen, state: ApiState) -> Result<ControlSocket, ApiError> {
    let (listener, gid) = socket::bind(&listen.socket, listen.group.as_deref()).await?;
    let service = socket::router(state, gid).into_make_service_with_connect_info::<peer::Peer>();
    let task = tokio::spawn(async move {
        // It retries a failed accept(2) by itself and never ends.
        let _ = axum::serve(listener, service).await;
    });
    Ok(ControlSocket { task, path: listen.socket.clone() })
}

/// Opens the metrics listener and answers on it: `/metrics`, `/healthz`, `/readyz`.
pub async fn metrics(address: SocketAddr, state: ApiState) -> Result<MetricsListener, ApiError> {
    let failed = |source: io::Error| ApiError::Metrics { address, hint: port_hint(&source), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, metrics::router(state)).await;
    });
    Ok(MetricsListener { task, address })
}

fn port_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program has this port: `ss -ltnp` shows which)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this router has this address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

/// Runs work that takes more than a moment away from the engine's thread.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failed(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// An answer other than success: a status code and one line for a person.
#[derive(Debug)]
struct Failed(axum::http::StatusCode, String);

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        (self.0, axum::Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}
