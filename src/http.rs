//! A small HTTP client: one request, one connection, one answer.
//!
//! Invariant: a request ends. The whole exchange, from the connection to the last byte of the answer, has one
//! deadline, the answer has a largest size, and a redirect is an answer like any other: it is never followed.
//! Whoever needs the connection to leave by a certain interface, mark or source address brings it along
//! ([`Client::send_over`]).

mod error;
mod tls;

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Uri,
    body::Bytes,
    client::conn::http1,
    header::{HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

pub use self::{error::HttpError, tls::plainly};

/// How long an exchange may take when nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer when nothing else is said.
pub const MAX_ANSWER: usize = 1 << 20;
/// Room for the head of an answer.
const MAX_HEAD: usize = 64 * 1024;

/// A host and a port to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An `http` or `https` URL whose host is known to be there and which holds no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    uri: Uri,
    authority: Authority,
    tls: bool,
}

impl Url {
    /// Where it leads.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether it is `https`.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", |p| p.as_str())
    }

    /// The `Host` header: the port only if it is not the scheme's own.
    fn host(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        let whole = self.authority.to_string();
        let own = format!(":{usual}");
        if self.authority.port == usual { whole.trim_end_matches(&own).to_owned() } else { whole }
    }
}

impl std::str::FromStr for Url {
    type Err = HttpError;

    fn from_str(text: &str) -> Result<Self, HttpError> {
        let wrong = |why: &'static str| HttpError::Url { why };
        let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let (tls, usual) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(wrong("it begins with neither `https://` nor `http://`")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user or a password: give secrets by reference"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let port = authority.port_u16().unwrap_or(usual);
        Ok(Self { authority: Authority { host, port }, tls, uri })
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Headers beside `Host` and `User-Agent`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// How long the whole exchange may take.
    pub timeout: Duration,
    /// The largest body of an answer; with 0 the body is not read at all, however large it is.
    pub max_answer: usize,
}

impl Request {
    /// A request with an empty body and the usual limits.
    #[must_use]
    pub fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new(), timeout: TIMEOUT, max_answer: MAX_ANSWER }
    }

    /// Adds a header; a value that no header can have is an error that does not show it.
    pub fn header(mut self, name: HeaderName, value: &str) -> Result<Self, HttpError> {
        let mut value = HeaderValue::from_str(value).map_err(|_| HttpError::Header { name: name.clone() })?;
        value.set_sensitive(name == hyper::header::AUTHORIZATION);
        self.headers.append(name, value);
        Ok(self)
    }
}

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: hyper::StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// What requests share: whom to trust.
#[derive(Debug, Clone)]
pub struct Client {
    tls: Arc<rustls::ClientConfig>,
    trusts_nobody: bool,
}

impl Client {
    /// A client that trusts the system's authorities, and those of a PEM file if one is given. Reads files.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, HttpError> {
        let (config, trusted) = tls::config(ca_file)?;
        Ok(Self { tls: Arc::new(config), trusts_nobody: trusted == 0 })
    }

    /// Sends a request over a connection of the system's choice.
    pub async fn send(&self, request: Request) -> Result<Answer, HttpError> {
        self.send_over(request, |to| async move { TcpStream::connect((to.host.as_str(), to.port)).await }).await
    }

    /// Sends a request over a connection that `connect` makes; TLS, if the URL says so, happens on top of it.
    pub async fn send_over<C, F>(&self, request: Request, connect: C) -> Result<Answer, HttpError>
    where
        C: FnOnce(Authority) -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let (after, to) = (request.timeout, request.url.authority.clone());
        let exchange = self.exchange(request, connect);
        tokio::time::timeout(after, exchange).await.map_err(|_| HttpError::Timeout { to, after })?
    }

    async fn exchange<C, F>(&self, request: Request, connect: C) -> Result<Answer, HttpError>
    where
        C: FnOnce(Authority) -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let to = request.url.authority.clone();
        let stream = connect(to.clone()).await.map_err(|source| HttpError::Connect { to: to.clone(), source })?;
        // One small request: waiting for more to send only costs time. A socket that refuses is slower, not wrong.
        let _ = stream.set_nodelay(true);
        if !request.url.tls {
            return converse(stream, request).await;
        }
        if self.trusts_nobody {
            return Err(HttpError::NoAuthorities);
        }
        let name = tls::server_name(&to)?;
        let shake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let stream = shake.await.map_err(|error| HttpError::Tls { to, source: tls::explained(error) })?;
        converse(stream, request).await
    }
}

/// A task that ends with its owner.
struct Owned(JoinHandle<Result<(), hyper::Error>>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn converse<S>(stream: S, request: Request) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let to = request.url.authority.clone();
    let broke = |source| HttpError::Broke { to: to.clone(), source };
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let _connection = Owned(tokio::spawn(connection));
    let limit = request.max_answer;
    let answer = sender.send_request(on_the_wire(request)?).await.map_err(broke)?;
    let (head, body) = answer.into_parts();
    if limit == 0 {
        return Ok(Answer { status: head.status, headers: head.headers, body: Bytes::new() });
    }
    let body = Limited::new(body, limit).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(source) => broke(*source),
        Err(other) if other.is::<LengthLimitError>() => HttpError::TooLarge { to: to.clone(), limit },
        Err(_) => HttpError::Cut { to: to.clone() },
    })?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

fn on_the_wire(request: Request) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
    let mut out = hyper::Request::new(Full::new(request.body));
    *out.method_mut() = request.method;
    *out.uri_mut() = request.url.path().parse().map_err(|_| HttpError::Url { why: "its path is not one" })?;
    let host = HeaderValue::from_str(&request.url.host()).map_err(|_| HttpError::Header { name: HOST })?;
    let headers = out.headers_mut();
    *headers = request.headers;
    headers.insert(HOST, host);
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("patronus/", env!("CARGO_PKG_VERSION"))));
    Ok(out)
}

#[cfg(test)]
mod tests;
