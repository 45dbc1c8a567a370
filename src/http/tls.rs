//! Whom a client trusts, and what it expects a certificate to name.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use super::{Authority, HttpError};

/// A configuration for HTTP/1.1, and how many authorities it trusts.
pub(super) fn config(ca_file: Option<&Path>) -> Result<(ClientConfig, usize), HttpError> {
    let mut roots = RootCertStore::empty();
    // A system without a store is no error before somebody wants `https`.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        add(&mut roots, path)?;
    }
    let trusted = roots.len();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(HttpError::Setup)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, trusted))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), HttpError> {
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| HttpError::Authorities { path: path.into(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.into()))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.into()))?;
    if found.is_empty() {
        return Err(wrong("it holds no certificate in PEM form".into()));
    }
    for certificate in found {
        roots.add(certificate).map_err(|e| wrong(e.into()))?;
    }
    Ok(())
}

/// Who signs a certificate for one server with plain `openssl req -x509` makes an authority of it, and TLS says of that
/// the name of a code only.
const AUTHORITY_SHOWN: &str = "the server shows the certificate of an authority (`CA:TRUE`, as plain `openssl req -x509` makes \
    it), which is not believed of a server, also if it is the one given as `ca`: make it anew with `-addext \
    basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:NAME`, and give that as `ca`";

/// An error of TLS, in words for people where they are missing.
#[must_use]
pub fn plainly(text: String) -> String {
    if is_authority_shown(&text) { AUTHORITY_SHOWN.to_owned() } else { text }
}

fn is_authority_shown(text: &str) -> bool {
    text.contains("CaUsedAsEndEntity")
}

/// The same, for what a connection failed with.
pub(super) fn explained(error: io::Error) -> io::Error {
    if is_authority_shown(&error.to_string()) { io::Error::new(error.kind(), AUTHORITY_SHOWN) } else { error }
}

pub(super) fn server_name(to: &Authority) -> Result<ServerName<'static>, HttpError> {
    ServerName::try_from(to.host.clone())
        .map_err(|_| HttpError::Url { why: "its host is neither a name nor an address" })
}
