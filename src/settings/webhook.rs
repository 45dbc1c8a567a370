//! The webhook of a forge as it is written: where it is listened for, and the secret that signs it.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::yaml::Document,
    diag::{Code, Diagnostic},
    source::git::Secret,
};

/// The webhook of a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where it is listened for.
    pub address: SocketAddr,
    /// What signs it.
    pub secret: Secret,
}

/// The webhook of a forge.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookFile {
    /// The secret that forge and router share, at least 16 characters.
    secret: SecretFile,
}

/// Where a secret stands: exactly one of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretFile {
    /// A file that holds it.
    pub(super) file: Option<PathBuf>,
    /// An environment variable of the daemon that holds it.
    pub(super) environment: Option<String>,
    /// A credential that systemd gives the service (`LoadCredential=`).
    pub(super) systemd: Option<String>,
}

impl SecretFile {
    /// Where the secret stands, if that is clear.
    pub(super) fn build(self) -> Option<Secret> {
        match (self.file, self.environment, self.systemd) {
            (Some(file), None, None) => Some(Secret::File(file)),
            (None, Some(name), None) => Some(Secret::Environment(name)),
            (None, None, Some(name)) if !name.contains('/') && !name.starts_with('.') => Some(Secret::Systemd(name)),
            _ => None,
        }
    }
}

/// Address and secret belong together.
pub(super) fn build(
    address: Option<SocketAddr>,
    file: Option<WebhookFile>,
    document: &Document,
    found: &mut Vec<Diagnostic>,
) -> Option<Webhook> {
    let mut wrong = |at: &str, message: &str, help: &str| {
        found.push(Diagnostic::error(Code::Combination, message).at(document.value_at(at)).help(help));
        None
    };
    match (address, file) {
        (None, None) => None,
        (Some(_), None) => {
            wrong("/listen/webhook", "`listen.webhook` needs a secret", "add `webhook: {secret: {file: PATH}}`")
        }
        (None, Some(_)) => {
            wrong("/webhook", "nobody listens for the webhook", "add `listen: {webhook: \"0.0.0.0:9470\"}`")
        }
        (Some(address), Some(WebhookFile { secret })) => {
            let Some(secret) = secret.build() else {
                let help = "give exactly one of `file`, `environment` and `systemd` (a name of `LoadCredential=`)";
                return wrong("/webhook/secret", "where the secret stands is not clear", help);
            };
            Some(Webhook { address, secret })
        }
    }
}
