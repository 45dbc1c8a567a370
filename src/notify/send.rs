//! One attempt at one message.

use std::process::Stdio;

use hyper::{
    Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{Address, Channel, Exec, Message, Way, Webhook, mail, render};
use crate::{
    http::{self, Client, Url},
    source::git::{Secret, read_secret},
    units::chain,
};

/// What a program gets of the environment, beside `LANG`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Why, without anything secret.
    pub why: String,
    /// Whether it may go better if it is tried again.
    pub again: bool,
}

impl Failed {
    pub(super) const fn again(why: String) -> Self {
        Self { why, again: true }
    }

    pub(super) const fn for_good(why: String) -> Self {
        Self { why, again: false }
    }
}

/// Sends by one channel. Keeps what is dear to make.
#[derive(Debug)]
pub struct Sender {
    way: Way,
    client: Option<Client>,
}

impl Sender {
    /// For one channel.
    #[must_use]
    pub fn new(channel: &Channel) -> Self {
        Self { way: channel.way.clone(), client: None }
    }

    /// Tries once.
    pub async fn send(&mut self, message: &Message) -> Result<(), Failed> {
        match &self.way {
            Way::Mail(mail) => mail::send(mail, message).await,
            Way::Exec(program) => exec(program, message).await,
            Way::Webhook(hook) => {
                let (hook, client) = (hook.clone(), self.client.take());
                // Reads files: secrets and authorities.
                let made = tokio::task::spawn_blocking(move || prepare(&hook, client)).await;
                let (client, url, token) = made.map_err(|error| Failed::again(error.to_string()))??;
                let client = self.client.insert(client);
                let Way::Webhook(hook) = &self.way else { return Ok(()) };
                post(client, hook, url, token.as_deref(), message).await
            }
        }
    }
}

/// A secret as it is now.
pub(super) fn secret(from: &Secret) -> Result<String, Failed> {
    read_secret(from).map_err(|error| Failed::again(error.to_string()))
}

fn prepare(hook: &Webhook, client: Option<Client>) -> Result<(Client, Url, Option<String>), Failed> {
    let client = match client {
        Some(client) => client,
        None => Client::new(hook.ca.as_deref()).map_err(|error| Failed::for_good(chain(&error)))?,
    };
    let url = match &hook.url {
        Address::Url(url) => url.clone(),
        Address::Secret(from) => {
            secret(from)?.parse().map_err(|error: http::HttpError| Failed::for_good(chain(&error)))?
        }
    };
    Ok((client, url, hook.token.as_ref().map(secret).transpose()?))
}

async fn post(client: &Client, hook: &Webhook, url: Url, token: Option<&str>, message: &Message) -> Result<(), Failed> {
    let body = match &hook.body {
        Some(template) => render(template, message).map_err(Failed::for_good)?,
        None => message.json(),
    };
    let to = url.authority().to_string();
    let wrong = |error: http::HttpError| Failed::for_good(chain(&error));
    let mut request = http::Request::new(Method::POST, url);
    request.timeout = hook.timeout;
    request.body = body.into();
    if !hook.headers.keys().any(|name| name.eq_ignore_ascii_case(CONTENT_TYPE.as_str())) {
        request = request.header(CONTENT_TYPE, "application/json").map_err(wrong)?;
    }
    for (name, value) in &hook.headers {
        let name = name.parse::<HeaderName>().map_err(|error| Failed::for_good(error.to_string()))?;
        request = request.header(name, value).map_err(wrong)?;
    }
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, &format!("Bearer {token}")).map_err(wrong)?;
    }
    let answer = client.send(request).await.map_err(|error| Failed::again(chain(&error)))?;
    let why = || format!("{to} answered {}", answer.status);
    match answer.status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failed::again(why())),
        status if status.is_client_error() || status.is_redirection() => Err(Failed::for_good(why())),
        _ => Err(Failed::again(why())),
    }
}

/// Runs a program with the message on its standard input, in a process group of its own that ends with the timeout.
async fn exec(program: &Exec, message: &Message) -> Result<(), Failed> {
    let (name, arguments) = program.command.split_first().ok_or_else(|| Failed::for_good("no program".into()))?;
    let mut command = Command::new(name);
    command.args(arguments).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| Failed::again(format!("{name} cannot be started: {error}")))?;
    let (input, group) = (child.stdin.take(), Group(child.id().and_then(|id| i32::try_from(id).ok())));
    let write = async {
        // A program that does not read what it is given is no fault.
        if let Some(mut input) = input {
            let _ = input.write_all(message.json().as_bytes()).await;
        }
    };
    let work = async { tokio::join!(write, child.wait()).1 };
    let ended = tokio::time::timeout(program.timeout, work).await;
    let Ok(ended) = ended else {
        drop(group);
        let _ = child.wait().await;
        return Err(Failed::again(format!("{name} was killed: it did not end within {} s", program.timeout.as_secs())));
    };
    group.ended();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failed::again(format!("{name} ended with {status}"))),
        Err(error) => Err(Failed::again(format!("{name}: {error}"))),
    }
}

/// A process group that is killed when nobody waits for its first process any more.
struct Group(Option<i32>);

impl Group {
    /// Its first process has ended by itself: the number may soon be that of others.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}
