//! Channels of notifications as they are written, and what does not go together in them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use hyper::header::{HeaderName, HeaderValue};
use lettre::message::Mailbox;
use schemars::JsonSchema;
use serde::Deserialize;

use super::webhook::SecretFile;
use crate::{
    clock::Wall,
    config::yaml::Document,
    diag::{Code, Diagnostic},
    notify::{Address, Channel, Exec, Kind, Limit, Login, Mail, Message, Tls, Way, Webhook, render},
    units::{Name, Span},
};

const TIMEOUT: Duration = Duration::from_secs(10);
const GROUP: Duration = Duration::from_secs(5);
const BURST: u32 = 5;
const EVERY: Duration = Duration::from_secs(60);

/// One way to tell people: exactly one of `webhook`, `smtp` and `exec`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelFile {
    /// Its name, for metrics and alarms.
    name: Name,
    /// A POST to an address.
    webhook: Option<WebhookFile>,
    /// A mail.
    smtp: Option<SmtpFile>,
    /// A program that reads the message as JSON.
    exec: Option<ExecFile>,
    /// What is told of. Default: failover, failback, exhausted, drift, source, confirm, alarm.
    events: Option<Vec<Kind>>,
    /// Events that come so close together become one message. Default 5s.
    group: Option<Span>,
    /// How many messages there may be; what comes beyond it joins the next one.
    limit: Option<LimitFile>,
}

/// How many messages there may be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LimitFile {
    /// At once. Default 5.
    #[schemars(range(min = 1, max = 1000))]
    burst: Option<u32>,
    /// After which there may be one more. Default 60s.
    every: Option<Span>,
}

/// A POST to an address.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WebhookFile {
    /// Where to.
    url: Option<String>,
    /// Where the address stands, if it is a secret itself.
    url_from: Option<SecretFile>,
    /// Sent as `Authorization: Bearer`.
    token: Option<SecretFile>,
    /// Headers beside it.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Template of the body. Default: the message as JSON.
    body: Option<String>,
    /// Certificate authorities (PEM) that are trusted beside the system's.
    ca: Option<PathBuf>,
    /// How long an attempt may take. Default 10s.
    timeout: Option<Span>,
}

/// A mail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SmtpFile {
    /// The server.
    host: String,
    /// Its port. Default: 587; 465 with `tls: implicit`, 25 with `tls: none`.
    port: Option<u16>,
    /// How the conversation is protected. Default `starttls`.
    #[serde(default)]
    tls: Tls,
    /// Who logs in.
    credentials: Option<LoginFile>,
    /// Who writes, such as `Patronus <patronus@example.net>`.
    from: String,
    /// To whom.
    to: Vec<String>,
    /// Certificate authorities (PEM) that are trusted beside the system's.
    ca: Option<PathBuf>,
    /// How long an attempt may take. Default 10s.
    timeout: Option<Span>,
}

/// Who logs in, and where the password stands: exactly one of `file`, `environment`, `systemd`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LoginFile {
    /// The name.
    username: String,
    /// A file that holds it.
    file: Option<PathBuf>,
    /// An environment variable of the daemon that holds it.
    environment: Option<String>,
    /// A credential that systemd gives the service (`LoadCredential=`).
    systemd: Option<String>,
}

/// A program.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExecFile {
    /// The program, by its whole path, and its arguments; no shell.
    command: Vec<String>,
    /// After which it is killed, with what it started. Default 10s.
    timeout: Option<Span>,
}

/// A finding: where, what, what to do.
type Wrong = (String, String, String);

fn wrong(at: &str, what: impl Into<String>, help: impl Into<String>) -> Wrong {
    (at.to_owned(), what.into(), help.into())
}

/// All channels; those with a fault are left out, and the fault is found.
pub(super) fn channels(files: Vec<ChannelFile>, document: &Document, found: &mut Vec<Diagnostic>) -> Vec<Channel> {
    let mut channels: Vec<Channel> = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        let twice = channels.iter().any(|channel| channel.name == file.name);
        let built = if twice {
            Err(wrong("/name", format!("the name {} is used twice", file.name), "give each channel a name of its own"))
        } else {
            channel(file)
        };
        match built {
            Ok(channel) => channels.push(channel),
            Err((at, what, help)) => {
                let place = document.value_at(&format!("/notify/{number}{at}"));
                found.push(Diagnostic::error(Code::Combination, what).at(place).help(help));
            }
        }
    }
    channels
}

fn channel(file: ChannelFile) -> Result<Channel, Wrong> {
    let way = match (file.webhook, file.smtp, file.exec) {
        (Some(hook), None, None) => Way::Webhook(webhook(hook)?),
        (None, Some(smtp), None) => Way::Mail(mail(smtp)?),
        (None, None, Some(program)) => Way::Exec(exec(program)?),
        _ => {
            let what = format!("how the channel {} tells people is not clear", file.name);
            return Err(wrong("", what, "give exactly one of `webhook`, `smtp` and `exec`"));
        }
    };
    let limit = file.limit.unwrap_or(LimitFile { burst: None, every: None });
    Ok(Channel {
        name: file.name,
        way,
        kinds: file.events.unwrap_or_else(|| Kind::USUAL.to_vec()),
        group: file.group.map_or(GROUP, Span::get),
        limit: Limit { burst: limit.burst.unwrap_or(BURST), every: limit.every.map_or(EVERY, Span::get) },
    })
}

fn webhook(file: WebhookFile) -> Result<Webhook, Wrong> {
    let url = match (file.url, file.url_from) {
        (Some(url), None) => Address::Url(url.parse().map_err(|error: crate::http::HttpError| {
            wrong("/webhook/url", error.to_string(), "write `https://host/path`")
        })?),
        (None, Some(from)) => Address::Secret(from.build().ok_or_else(|| unclear("/webhook/urlFrom"))?),
        _ => {
            let help = "give exactly one of `url` and `urlFrom`";
            return Err(wrong("/webhook", "where the webhook is is not clear", help));
        }
    };
    for (name, value) in &file.headers {
        let good = name.parse::<HeaderName>().is_ok() && HeaderValue::from_str(value).is_ok();
        let secret = name.eq_ignore_ascii_case("authorization");
        if !good || secret {
            let help = if secret { "a secret has no place here: `token` names it" } else { "letters, digits and `-`" };
            return Err(wrong("/webhook/headers", format!("`{name}` cannot be used as a header here"), help));
        }
    }
    let json = file.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let json = json.is_none_or(|(_, kind)| kind.starts_with("application/json"));
    if let Some(template) = &file.body {
        tried(template, json)?;
    }
    Ok(Webhook {
        url,
        token: file.token.map(|token| token.build().ok_or_else(|| unclear("/webhook/token"))).transpose()?,
        headers: file.headers,
        body: file.body,
        ca: file.ca,
        timeout: file.timeout.map_or(TIMEOUT, Span::get),
    })
}

fn unclear(at: &str) -> Wrong {
    let help = "give exactly one of `file`, `environment` and `systemd` (a name of `LoadCredential=`)";
    wrong(at, "where the secret stands is not clear", help)
}

/// A template is tried at once: a fault in it must not wait for the first outage.
fn tried(template: &str, json: bool) -> Result<(), Wrong> {
    let site = "berlin".parse().unwrap_or_else(|_| unreachable!("a constant name is valid"));
    let help = "it has `site`, `subject`, `text`, `events` and `more`; `|json` writes a value as JSON";
    let body = render(template, &Message::test(&site, Wall::from_micros(0)))
        .map_err(|error| wrong("/webhook/body", format!("the template does not work: {error}"), help))?;
    let fault = json.then(|| serde_json::from_str::<serde_json::Value>(&body).err()).flatten();
    fault.map_or(Ok(()), |error| {
        let help = "write values as `{{ subject|json }}`, without quotes of your own; for a body that is no JSON give a `content-type`";
        Err(wrong("/webhook/body", format!("the template makes no JSON: {error}"), help))
    })
}

fn mail(file: SmtpFile) -> Result<Mail, Wrong> {
    let address = |at: &str, text: &str| {
        let help = "write `name@example.net` or `Name <name@example.net>`";
        text.parse::<Mailbox>().map_err(|_| wrong(at, format!("`{text}` is not an address of mail"), help))
    };
    let login = match file.credentials {
        Some(_) if file.tls == Tls::None => {
            let help = "take `tls: starttls` or `tls: implicit`, or a server that asks for no login";
            return Err(wrong("/smtp/credentials", "a password would be sent in the clear", help));
        }
        Some(LoginFile { username, file, environment, systemd }) => {
            let secret = SecretFile { file, environment, systemd }.build();
            Some(Login { username, secret: secret.ok_or_else(|| unclear("/smtp/credentials"))? })
        }
        None => None,
    };
    if file.to.is_empty() {
        return Err(wrong("/smtp/to", "the mail goes to nobody", "name at least one address"));
    }
    let port = match file.tls {
        Tls::Starttls => 587,
        Tls::Implicit => 465,
        Tls::None => 25,
    };
    Ok(Mail {
        from: address("/smtp/from", &file.from)?,
        to: file.to.iter().map(|to| address("/smtp/to", to)).collect::<Result<_, _>>()?,
        host: file.host,
        port: file.port.unwrap_or(port),
        tls: file.tls,
        login,
        ca: file.ca,
        timeout: file.timeout.map_or(TIMEOUT, Span::get),
    })
}

fn exec(file: ExecFile) -> Result<Exec, Wrong> {
    if !file.command.first().is_some_and(|program| program.starts_with('/')) {
        let help = "the first word is the whole path of a program; there is no shell";
        return Err(wrong("/exec/command", "which program is not clear", help));
    }
    Ok(Exec { command: file.command, timeout: file.timeout.map_or(TIMEOUT, Span::get) })
}
