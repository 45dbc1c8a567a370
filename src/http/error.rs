//! Why a request has no answer. No text here holds a header, a body or the path of a URL: they may be secret.

use std::{io, path::PathBuf, time::Duration};

use hyper::header::HeaderName;

use super::Authority;

/// A request without an answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL cannot be used.
    #[error("the URL cannot be used: {why}")]
    Url {
        /// Why.
        why: &'static str,
    },
    /// A header's value has characters that headers cannot have.
    #[error("the value of the header `{name}` has characters that no header can have")]
    Header {
        /// Which.
        name: HeaderName,
    },
    /// The file of authorities.
    #[error("cannot read certificate authorities from {}", path.display())]
    Authorities {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `https` without anybody to trust.
    #[error(
        "no certificate authorities are known: install the system's (package ca-certificates), or name a file of them"
    )]
    NoAuthorities,
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// No connection: no such name, nobody listens, no route.
    #[error("cannot connect to {to}")]
    Connect {
        /// Whom to.
        to: Authority,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The other side is not whom its certificate has to name, or speaks no TLS.
    #[error("TLS with {to} failed")]
    Tls {
        /// With whom.
        to: Authority,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What was said is not HTTP, or broke off.
    #[error("the conversation with {to} broke off")]
    Broke {
        /// With whom.
        to: Authority,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The answer broke off for another reason.
    #[error("the answer of {to} broke off")]
    Cut {
        /// Whose.
        to: Authority,
    },
    /// An answer over the limit.
    #[error("the answer of {to} has more than {limit} bytes")]
    TooLarge {
        /// Whose.
        to: Authority,
        /// The limit.
        limit: usize,
    },
    /// The exchange took too long.
    #[error("{to} did not answer within {} ms", after.as_millis())]
    Timeout {
        /// Who.
        to: Authority,
        /// The limit.
        after: Duration,
    },
}
