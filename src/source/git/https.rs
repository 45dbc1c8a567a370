//! HTTPS to the server, HTTP to libgit2: two requests of the smart protocol are passed on, nothing else.
//!
//! Invariant: no answer but 200 reaches libgit2, a redirect is never followed, and the password goes to the host of the
//! settings only. The path on 127.0.0.1 is secret, so that nobody else on this machine can use the relay to read.

use std::{fmt, io, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::SendRequest,
    header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, LOCATION, USER_AGENT},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tokio_rustls::TlsConnector;

use super::{
    error::{GitError, Reason, plain},
    relay::{Route, Seen, connect},
    spec::Address,
};

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What one fetch over HTTPS needs.
pub(super) struct Https {
    tls: TlsConnector,
    authority: HeaderValue,
    /// The path of the repository at the server.
    path: String,
    /// The path of the repository at the relay.
    secret: String,
    authorization: Option<HeaderValue>,
}

impl Https {
    /// Reads the certificates that are trusted.
    pub(super) fn new(url: &Address, ca: Option<&Path>, login: Option<(&str, &str)>) -> Result<Self, GitError> {
        let authority = HeaderValue::from_str(&url.authority()).map_err(|_| {
            GitError::new(Reason::Settings, format!("`{}` is not a host", url.host), "correct the address")
        })?;
        let authorization = login.map(|(user, password)| {
            let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| unreachable!("base64 is plain text"));
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config(ca)?)),
            authority,
            path: url.path.trim_end_matches('/').to_owned(),
            secret: format!("/{}", uuid::Uuid::now_v7().simple()),
            authorization,
        })
    }

    /// The path of the repository at the relay.
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// Makes a connection secure, and ready for requests.
    pub(super) async fn hello(
        &self,
        route: &Route,
        stream: TcpStream,
        seen: &Seen,
    ) -> Result<SendRequest<Incoming>, GitError> {
        seen.begin("agreeing on TLS");
        let name = ServerName::try_from(route.host.clone()).map_err(|_| {
            GitError::new(Reason::Settings, format!("`{}` is not a host", route.host), "correct the address")
        })?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| insecure(&route.host, &error))?;
        let broken = |error| disconnected(&route.host, &error);
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors come out where the answers are read.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Answers libgit2 for as long as it asks.
    pub(super) async fn serve(
        &self,
        listener: TcpListener,
        first: SendRequest<Incoming>,
        route: &Route,
        seen: &Arc<Seen>,
    ) -> Result<(), GitError> {
        let sender = Mutex::new(Some(first));
        loop {
            let Ok((stream, _)) = listener.accept().await else { return Ok(()) };
            let answer = service_fn(|request| async {
                Ok::<_, hyper::Error>(match self.pass(request, &sender, route, seen).await {
                    Ok(response) => response,
                    Err(Some(error)) => {
                        seen.fail(error);
                        nothing(StatusCode::BAD_GATEWAY)
                    }
                    Err(None) => nothing(StatusCode::NOT_FOUND),
                })
            });
            // libgit2 says itself when a connection to it breaks.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        }
    }

    /// Passes one request on. An error of `None` is a request that is not ours.
    async fn pass(
        &self,
        request: Request<Incoming>,
        sender: &Mutex<Option<SendRequest<Incoming>>>,
        route: &Route,
        seen: &Arc<Seen>,
    ) -> Result<Response<Body>, Option<GitError>> {
        let request = self.translated(request).ok_or(None)?;
        let mut sender = sender.lock().await;
        let mut open = sender.take();
        if let Some(still) = &mut open
            && still.ready().await.is_err()
        {
            // Some servers close after each answer.
            open = None;
        }
        let mut ready = match open {
            Some(ready) => ready,
            None => self.hello(route, connect(route, seen).await?, seen).await?,
        };
        seen.begin("waiting for the answer");
        let response = ready.send_request(request).await.map_err(|error| disconnected(&route.host, &error))?;
        self.judge(&response, route)?;
        *sender = Some(ready);
        seen.begin("receiving");
        Ok(response.map(|body| counted(body, seen, &route.host)))
    }

    /// The same request as the server understands it; `None` if it is none of the smart protocol's two.
    fn translated(&self, request: Request<Incoming>) -> Option<Request<Incoming>> {
        let (mut parts, body) = request.into_parts();
        let what = parts.uri.path_and_query()?.as_str().strip_prefix(&self.secret)?;
        let known = match parts.method {
            Method::GET => what == "/info/refs?service=git-upload-pack",
            Method::POST => what == "/git-upload-pack",
            _ => false,
        };
        parts.uri = known.then(|| format!("{}{what}", self.path).parse().ok()).flatten()?;
        parts.headers.remove(CONNECTION);
        parts.headers.remove(AUTHORIZATION);
        parts.headers.insert(HOST, self.authority.clone());
        // The forges answer in the smart protocol only to those who look like git.
        let agent = concat!("git/2.0 (patronus ", env!("CARGO_PKG_VERSION"), ")");
        parts.headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(value) = &self.authorization {
            parts.headers.insert(AUTHORIZATION, value.clone());
        }
        Some(Request::from_parts(parts, body))
    }

    /// Any answer but 200 ends the fetch.
    fn judge(&self, response: &Response<Incoming>, route: &Route) -> Result<(), GitError> {
        let (status, host) = (response.status(), &route.host);
        let said = |reason, text: &str, remedy: &str| {
            Err(GitError::new(reason, format!("{host} answers {}: {text}", status.as_u16()), remedy))
        };
        match status.as_u16() {
            200 => Ok(()),
            401 if self.authorization.is_none() => {
                said(Reason::Authentication, "it wants to know who we are", "give the source `credentials`")
            }
            401 => said(
                Reason::Authentication,
                "it does not accept the user or the password",
                "renew the token that `credentials` names; it may have expired",
            ),
            403 => said(
                Reason::Forbidden,
                "it knows who we are and does not let us read",
                "give the user or the token the right to read the repository",
            ),
            404 | 410 => said(
                Reason::NotFound,
                "there is no such repository",
                "check the address; some servers say so too when the credentials may not read it",
            ),
            300..=399 => {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("elsewhere");
                let to = to.split(['?', '#']).next().unwrap_or_default();
                let to = to.split_once('@').map_or(to, |(_, rest)| rest);
                let text = format!("it sends us to {}, and we do not go", plain(to));
                said(Reason::Redirect, &text, "if that is right, write the new address into the settings")
            }
            _ => said(Reason::Server, "it cannot at the moment", "it is tried again; ask the server's operator"),
        }
    }
}

impl fmt::Debug for Https {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Https").field("path", &self.path).finish_non_exhaustive()
    }
}

fn nothing(status: StatusCode) -> Response<Body> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// The body with its bytes counted; what breaks in it is remembered.
fn counted(body: Incoming, seen: &Arc<Seen>, host: &str) -> Body {
    let (counter, watcher, host) = (Arc::clone(seen), Arc::clone(seen), host.to_owned());
    let body = body.map_frame(move |frame| {
        let length = frame.data_ref().map_or(0, Bytes::len);
        // What is missing makes libgit2 give up.
        if counter.count(length).is_ok() { frame } else { hyper::body::Frame::data(Bytes::new()) }
    });
    body.map_err(move |error| {
        watcher.fail(disconnected(&host, &error));
        error
    })
    .boxed_unsync()
}

fn config(ca: Option<&Path>) -> Result<ClientConfig, GitError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca {
        let wrong = |why: String| {
            let message = format!("the certificates in {} cannot be used: {why}", file.display());
            GitError::new(Reason::Settings, message, "`ca` is a PEM file with the authority's certificate")
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(wrong("there is none in it".into()));
        }
    }
    if roots.is_empty() {
        let message = "this system trusts no certificate authority";
        return Err(GitError::new(Reason::Tls, message, "install the package ca-certificates, or give `ca: FILE`"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| GitError::new(Reason::Tls, error.to_string(), "report this"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Why a certificate was not accepted, in words.
fn insecure(host: &str, error: &io::Error) -> GitError {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return disconnected(host, error);
    };
    let (why, remedy) = match cause {
        rustls::Error::InvalidCertificate(fault) => unacceptable(fault),
        other => (format!("no agreement on TLS ({other})"), "the port may belong to another service"),
    };
    GitError::new(Reason::Tls, format!("the certificate of {host}: {why}"), remedy)
}

fn unacceptable(fault: &CertificateError) -> (String, &'static str) {
    let clock = "this router's clock is probably wrong: timedatectl";
    match fault {
        CertificateError::Expired => ("it has expired".into(), "its operator has to renew it; or the clock is wrong"),
        CertificateError::ExpiredContext { not_after, .. } => {
            let at = i64::try_from(not_after.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok());
            let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
            let remedy = "its operator has to renew it; or this router's clock is wrong: timedatectl";
            (format!("it has expired{at}"), remedy)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("it is not valid yet".into(), clock)
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (format!("it is for another name ({fault})"), "check the host in the address, and who answers there")
        }
        CertificateError::UnknownIssuer => {
            let why = "no authority that is trusted here has signed it";
            (why.into(), "give the authority's certificate as `ca: FILE`")
        }
        other => (format!("it is not acceptable ({other})"), "ask the server's operator"),
    }
}

fn disconnected(host: &str, error: &dyn std::error::Error) -> GitError {
    let early = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    let cause = error.source();
    let message = match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) if early(cause) => format!("{host} ended the connection too early, in the middle of an answer"),
        _ => {
            let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
            format!("{host} ended the connection too early: {error}{cause}")
        }
    };
    GitError::new(Reason::Disconnected, message, "it is tried again")
}
