//! A client of the control socket: one request per connection.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("the daemon is not running (nothing answers on {})", socket.display())]
    Down {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// The socket may not be used by this user.
    #[error("no permission to ask the daemon on {}: use sudo, or join the socket's group", socket.display())]
    Forbidden {
        /// Where.
        socket: PathBuf,
    },
    /// The connection failed.
    #[error("cannot ask the daemon on {}", socket.display())]
    Io {
        /// Where.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon's answer broke off")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("the daemon does not answer within {} s: `systemctl status patronus` and the journal may say why", .0.as_secs())]
    Timeout(Duration),
    /// It answered with an error.
    #[error("the daemon answered: {0}")]
    Refused(String),
    /// An answer of another version.
    #[error("the daemon's answer is not understood: do daemon and client have the same version?")]
    Answer(#[from] serde_json::Error),
}

/// Asks, and waits for the whole answer.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    uri: &str,
    patience: Duration,
) -> Result<T, ClientError> {
    exchange(socket, method, uri, Bytes::new(), patience).await
}

/// Asks for something with details, and waits for the whole answer.
pub async fn tell<T: DeserializeOwned>(
    socket: &Path,
    uri: &str,
    details: &serde_json::Value,
    patience: Duration,
) -> Result<T, ClientError> {
    exchange(socket, Method::POST, uri, Bytes::from(details.to_string()), patience).await
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    uri: &str,
    body: Bytes,
    patience: Duration,
) -> Result<T, ClientError> {
    let whole = async {
        let answer = send(socket, method, uri, body).await?;
        let code = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if code.is_success() { Ok(serde_json::from_slice(&body)?) } else { Err(refused(socket, code, &body)) }
    };
    tokio::time::timeout(patience, whole).await.map_err(|_| ClientError::Timeout(patience))?
}

/// Asks, and hands over each line of the answer until there are no more or `each` says stop.
pub async fn lines(socket: &Path, uri: &str, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
    let mut answer = send(socket, Method::GET, uri, Bytes::new()).await?;
    if !answer.status().is_success() {
        let code = answer.status();
        return Err(refused(socket, code, &answer.into_body().collect().await?.to_bytes()));
    }
    let mut rest = Vec::new();
    while let Some(frame) = answer.body_mut().frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if !each(&line[..end]) {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn send(socket: &Path, method: Method, uri: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| unreachable(socket, source))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer or with the process.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(uri).header("host", "patronus");
    let request = request.header("content-type", "application/json").body(Full::new(body));
    let request = request.map_err(|error| ClientError::Refused(error.to_string()))?;
    Ok(sender.send_request(request).await?)
}

fn unreachable(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Down { socket },
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket },
        _ => ClientError::Io { socket, source },
    }
}

fn refused(socket: &Path, code: StatusCode, body: &[u8]) -> ClientError {
    if code == StatusCode::FORBIDDEN {
        return ClientError::Forbidden { socket: socket.to_owned() };
    }
    let text = serde_json::from_slice::<serde_json::Value>(body).ok();
    let text = text.and_then(|v| v.get("error").and_then(|e| e.as_str()).map(str::to_owned));
    ClientError::Refused(text.unwrap_or_else(|| code.to_string()))
}
