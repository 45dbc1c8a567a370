//! The `git` source as it is written, and what does not go together in it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::yaml::Document,
    diag::{Code, Diagnostic},
    source::git::{Address, Reference, Scheme, Secret, Spec, Verify},
    units::{Ratio, Span},
};

/// A Git repository that is followed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct GitFile {
    /// Where it is: `https://host/path`, `ssh://git@host/path` or `file:///path`.
    url: String,
    /// The branch that is followed. Default `main`.
    branch: Option<String>,
    /// The tag that is followed, in place of a branch.
    tag: Option<String>,
    /// The commit that is used for good, in place of a branch; all of its digits.
    commit: Option<String>,
    /// Directory of the repository that holds the configuration. Default: all of it.
    path: Option<String>,
    /// How often it is looked at. Default 60s.
    interval: Option<Span>,
    /// By how much of the interval each wait may be longer, so that a fleet does not come at once. Default 10%.
    jitter: Option<Ratio>,
    /// How long a fetch over one path may take. Default 60s.
    timeout: Option<Span>,
    /// The password, the token or the private key.
    credentials: Option<CredentialsFile>,
    /// The host keys that are trusted, as `ssh-keyscan` prints them. ssh needs it.
    known_hosts: Option<PathBuf>,
    /// Certificate authorities (PEM) that are trusted beside the system's. Only for https.
    ca: Option<PathBuf>,
    /// Which signature a commit needs.
    verify: Option<VerifyFile>,
}

/// The password, the token or the private key: where it stands.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    /// Who logs in. Default: the user in the address, else `git`.
    username: Option<String>,
    /// A file that holds it.
    file: Option<PathBuf>,
    /// An environment variable of the daemon that holds it.
    environment: Option<String>,
    /// A credential that systemd gives the service (`LoadCredential=`).
    systemd: Option<String>,
}

/// Which signature a commit needs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VerifyFile {
    /// `head`: the commit that is followed; `off`: none.
    mode: Mode,
    /// The keys that may sign, as `ssh-keygen` has them (ALLOWED SIGNERS).
    allowed_signers: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Head,
    Off,
}

/// The place of a finding within the source, and how to say it.
struct Findings<'a> {
    document: &'a Document,
    found: &'a mut Vec<Diagnostic>,
}

impl Findings<'_> {
    fn add(&mut self, code: Code, field: &str, message: impl Into<String>, help: impl Into<String>) {
        let at = self.document.value_at(&format!("/source/git{field}"));
        self.found.push(Diagnostic::error(code, message).at(at).help(help));
    }

    fn combination(&mut self, field: &str, message: impl Into<String>, help: impl Into<String>) {
        self.add(Code::Combination, field, message, help);
    }
}

/// Checks a `git` source; `None` if it is wrong, which is then among the findings.
pub(super) fn build(file: GitFile, document: &Document, found: &mut Vec<Diagnostic>) -> Option<Spec> {
    let before = found.len();
    let mut findings = Findings { document, found };
    let url = match Address::parse(&file.url) {
        Ok(url) => Some(url),
        Err((message, help)) => {
            findings.add(Code::WrongValue, "/url", message, help);
            None
        }
    };
    let reference = reference(&file, &mut findings);
    let path = path(file.path.as_deref(), &mut findings);
    let interval = span(file.interval, 60_000, 1_000, "/interval", &mut findings);
    let timeout = span(file.timeout, 60_000, 1_000, "/timeout", &mut findings);
    if let Some(url) = &url {
        fits(&file, url.scheme, &mut findings);
    }
    let secret = file.credentials.as_ref().and_then(|c| secret(c, &mut findings));
    let verify = verify(file.verify, &mut findings);
    let jitter = match file.jitter {
        Some(jitter) => jitter,
        None => Ratio::from_ppm(100_000).ok()?,
    };
    if found.len() > before {
        return None;
    }
    Some(Spec {
        url: url?,
        reference: reference?,
        path,
        interval,
        jitter,
        timeout,
        username: file.credentials.and_then(|c| c.username),
        secret,
        known_hosts: file.known_hosts,
        ca: file.ca,
        verify: verify?,
    })
}

fn span(
    given: Option<Span>,
    default: u64,
    least: u64,
    field: &str,
    findings: &mut Findings<'_>,
) -> std::time::Duration {
    let span = given.unwrap_or(Span::from_millis(default));
    if span < Span::from_millis(least) {
        let least = Span::from_millis(least);
        findings.add(Code::WrongValue, field, format!("`{span}` is too short"), format!("at least {least}"));
    }
    span.get()
}

fn reference(file: &GitFile, findings: &mut Findings<'_>) -> Option<Reference> {
    let given: Vec<(&str, &String)> = [("branch", &file.branch), ("tag", &file.tag), ("commit", &file.commit)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)))
        .collect();
    if let [(first, _), (second, _), ..] = given[..] {
        let message = format!("`{first}` and `{second}`: only one of them can be followed");
        findings.combination(&format!("/{second}"), message, format!("delete `{first}` or `{second}`"));
        return None;
    }
    let (name, value) = given.first().map_or(("branch", "main"), |(name, value)| (*name, value.as_str()));
    if name == "commit" {
        let whole = value.len() == 40 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !whole {
            let help = "write all 40 digits, as `git rev-parse NAME` prints them";
            findings.add(Code::WrongValue, "/commit", format!("`{value}` is not the name of a commit"), help);
        }
        return whole.then(|| Reference::Commit(value.to_owned()));
    }
    let (prefix, make): (&str, fn(String) -> Reference) =
        if name == "tag" { ("refs/tags/", Reference::Tag) } else { ("refs/heads/", Reference::Branch) };
    if !git2::Reference::is_valid_name(&format!("{prefix}{value}")) || value.starts_with("refs/") {
        let help = format!("write the short name, such as `{}`", if name == "tag" { "v1" } else { "main" });
        findings.add(Code::WrongValue, &format!("/{name}"), format!("`{value}` is not the name of a {name}"), help);
        return None;
    }
    Some(make(value.to_owned()))
}

fn path(given: Option<&str>, findings: &mut Findings<'_>) -> String {
    let given = given.unwrap_or_default();
    let path = given.trim_end_matches('/');
    let odd = |part: &str| matches!(part, "" | "." | "..") || part.eq_ignore_ascii_case(".git");
    if !path.is_empty() && path.split('/').any(odd) {
        let help = "write it as `git ls-tree -r --name-only HEAD` shows it, such as `sites/berlin`";
        findings.add(Code::WrongValue, "/path", format!("`{given}` is not a directory of a repository"), help);
    }
    path.to_owned()
}

/// What one way of reaching a repository needs, and what it has no use for.
fn fits(file: &GitFile, scheme: Scheme, findings: &mut Findings<'_>) {
    if scheme == Scheme::Ssh && file.known_hosts.is_none() {
        let help = "write the keys of the host into a file, `ssh-keyscan HOST > FILE`, compare them with what its \
                    operator publishes, and give `knownHosts: FILE`";
        findings.combination("/url", "ssh needs `knownHosts`: without it anybody could be the host", help);
    }
    if scheme == Scheme::Ssh && file.credentials.is_none() {
        let help = "make one with `ssh-keygen -t ed25519 -N '' -f FILE` and give `credentials: {file: FILE}`";
        findings.combination("/url", "ssh needs `credentials`: the private key that logs in", help);
    }
    if scheme != Scheme::Ssh && file.known_hosts.is_some() {
        findings.combination("/knownHosts", "`knownHosts` is for ssh only", "delete it");
    }
    if scheme != Scheme::Https && file.ca.is_some() {
        findings.combination("/ca", "`ca` is for https only", "delete it");
    }
    if scheme == Scheme::File && file.credentials.is_some() {
        findings.combination("/credentials", "a directory of this machine needs no `credentials`", "delete them");
    }
}

fn secret(file: &CredentialsFile, findings: &mut Findings<'_>) -> Option<Secret> {
    match (&file.file, &file.environment, &file.systemd) {
        (Some(file), None, None) => Some(Secret::File(file.clone())),
        (None, Some(name), None) => Some(Secret::Environment(name.clone())),
        (None, None, Some(name)) => {
            let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
            if !plain {
                let help = "write the name that `LoadCredential=NAME:FILE` has";
                findings.add(Code::WrongValue, "/credentials/systemd", "not the name of a credential", help);
            }
            plain.then(|| Secret::Systemd(name.clone()))
        }
        _ => {
            let help = "give exactly one of `file`, `environment` and `systemd`";
            findings.combination("/credentials", "where the secret stands is not clear", help);
            None
        }
    }
}

fn verify(file: Option<VerifyFile>, findings: &mut Findings<'_>) -> Option<Verify> {
    match file.map(|f| (f.mode, f.allowed_signers)) {
        None | Some((Mode::Off, None)) => Some(Verify::Off),
        Some((Mode::Head, Some(signers))) => Some(Verify::Head(signers)),
        Some((Mode::Head, None)) => {
            let help = "write the keys that may sign into a file and give `allowedSigners: FILE`";
            findings.combination("/verify", "`mode: head` needs `allowedSigners`", help);
            None
        }
        Some((Mode::Off, Some(_))) => {
            let help = "write `mode: head`, or delete `allowedSigners`";
            findings.combination("/verify", "`allowedSigners` has no effect with `mode: off`", help);
            None
        }
    }
}
