//! The webhook of a forge: `POST /hooks/git`. Its only effect is that the source is read now.
//!
//! Invariant: nothing of a request is believed or parsed. A request whose signature is right makes the engine read
//! the source, at most once a second; whatever else it says comes from Git or not at all. Everything else costs a
//! refusal that is counted. Connections, bytes and time are limited before the signature is known.

mod verify;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, mpsc},
    task::JoinHandle,
};

use super::{ApiError, Command, port_hint};
use crate::{clock, engine::status::Tally};

/// The largest body.
const LARGEST: usize = 1 << 20;
/// How long a request may take, from the connection to the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 16;
/// The source is read at most so often because of hooks.
const PAUSE: Duration = Duration::from_secs(1);
/// So many deliveries are remembered.
const REMEMBERED: usize = 256;

/// The webhook listener at work. Dropping it closes it.
#[derive(Debug)]
pub struct WebhookListener {
    tasks: [JoinHandle<()>; 2],
    /// Where it listens; the port is the real one when 0 was asked for.
    pub address: SocketAddr,
}

impl Drop for WebhookListener {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Shared {
    secret: String,
    hooks: Arc<Tally>,
    fetch: Notify,
    seen: Mutex<VecDeque<String>>,
}

/// Opens the listener for webhooks and answers on it.
pub async fn webhook(
    address: SocketAddr,
    secret: String,
    commands: mpsc::Sender<Command>,
    hooks: Arc<Tally>,
) -> Result<WebhookListener, ApiError> {
    let failed = |source: io::Error| ApiError::Webhook { address, hint: port_hint(&source), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let shared = Arc::new(Shared { secret, hooks, fetch: Notify::new(), seen: Mutex::default() });
    let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
    let asking = tokio::spawn(ask(shared, commands));
    Ok(WebhookListener { tasks: [accepting, asking], address })
}

/// Hands deliveries on, one for all that came in a pause: the newest content is read in any case.
async fn ask(shared: Arc<Shared>, commands: mpsc::Sender<Command>) {
    loop {
        shared.fetch.notified().await;
        if commands.send(Command::Fetch).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, peer)) = listener.accept().await else {
            // No file descriptors: some will be free again.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _permit = permit;
            if tokio::time::timeout(PATIENCE, serve(stream, peer, &shared)).await.is_err() {
                shared.hooks.count("slow");
            }
        });
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(shared);
        async move {
            let (result, code) = answer(request, &shared).await;
            shared.hooks.count(result);
            if code.is_success() {
                tracing::info!(%peer, result, "webhook");
            } else {
                tracing::warn!(%peer, result, "webhook refused");
            }
            let mut response = Response::new(Full::new(Bytes::from(format!("{result}\n"))));
            *response.status_mut() = code;
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    let connection = http.keep_alive(false).max_buf_size(32 * 1024).serve_connection(TokioIo::new(stream), service);
    // A client that goes away is no event.
    let _ = connection.await;
}

/// The result as a word, and the status that the forge shows.
async fn answer(request: Request<hyper::body::Incoming>, shared: &Shared) -> (&'static str, StatusCode) {
    if request.uri().path() != "/hooks/git" {
        return ("no-such-path", StatusCode::NOT_FOUND);
    }
    if request.method() != Method::POST {
        return ("no-post", StatusCode::METHOD_NOT_ALLOWED);
    }
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, LARGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return ("too-large", StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => return ("broken-off", StatusCode::BAD_REQUEST),
    };
    match verify::verify(&head.headers, &body, &shared.secret, clock::wall()) {
        Err(refused) => (refused.word(), StatusCode::UNAUTHORIZED),
        Ok(Some(id)) if shared.knows(&id) => ("repeated", StatusCode::OK),
        Ok(_) => {
            shared.fetch.notify_one();
            ("accepted", StatusCode::ACCEPTED)
        }
    }
}

impl Shared {
    /// Whether this delivery was taken before; it is from now on.
    fn knows(&self, id: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.iter().any(|known| known == id);
        if !known {
            seen.push_back(id.to_owned());
            let surplus = seen.len().saturating_sub(REMEMBERED);
            seen.drain(..surplus);
        }
        known
    }
}

#[cfg(test)]
mod tests;
