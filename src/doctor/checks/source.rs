//! Settings, source and configuration.

use std::path::Path;

use super::{Facts, Finding};
use crate::{
    doctor::facts::Configuration,
    settings::Source,
    source::git::{Scheme, Secret, Spec, Verify},
};

pub(super) fn settings(facts: &Facts) -> Finding {
    let file = facts.settings_file.display();
    match &facts.settings_error {
        Some(why) => Finding::fail(why.clone(), format!("mend {file}; docs/reference/settings.md has every field")),
        None if facts.settings.site.is_none() => {
            Finding::warn("the settings do not say which site this router is", format!("`site: NAME` in {file}"))
        }
        None if !facts.places.contains_key(&facts.settings_file) => Finding::warn(
            format!("there is no {file}: the command line and the defaults hold"),
            "write it: docs/reference/settings.md",
        ),
        None => Finding::ok(format!("{file} is right")),
    }
}

pub(super) fn settings_mode(facts: &Facts) -> Finding {
    let file = &facts.settings_file;
    let Some(place) = facts.places.get(file) else {
        return Finding::skipped(format!("there is no {}", file.display()));
    };
    if place.mode & 0o022 != 0 {
        let says = format!("{} can be changed by others (mode {:o})", file.display(), place.mode & 0o7777);
        return Finding::fail(says, format!("`chmod go-w {}`: whoever writes there rules this router", file.display()));
    }
    if place.owner != 0 && place.owner != facts.user {
        let says = format!("{} belongs to user {}", file.display(), place.owner);
        return Finding::warn(says, format!("`chown root {}`", file.display()));
    }
    Finding::ok("only its owner can change the settings")
}

pub(super) fn readable(facts: &Facts) -> Finding {
    match &facts.configuration {
        Configuration::Unnamed => {
            Finding::fail("the settings name no source", "`source: {dir: PATH}` or `source: {git: {url: …}}`")
        }
        Configuration::Unfetched => {
            Finding::skipped("the source is a Git repository, and nothing of it has been applied here yet")
        }
        Configuration::Unreadable(why) => Finding::fail(why.clone(), "check the path, and who may read it"),
        Configuration::Invalid(_) | Configuration::Site(_) => Finding::ok("the source can be read"),
    }
}

pub(super) fn valid(facts: &Facts) -> Finding {
    match &facts.configuration {
        Configuration::Site(site) => Finding::ok(format!("the configuration is valid and has the site {}", site.name)),
        Configuration::Invalid(why) => {
            Finding::fail(why.clone(), "`patronus validate` shows every error with its place")
        }
        _ => Finding::skipped("there is no configuration to check, see source"),
    }
}

fn git(facts: &Facts) -> Result<&Spec, Finding> {
    match &facts.settings.source {
        Some(Source::Git(spec)) => Ok(spec),
        _ => Err(Finding::skipped("the source is not a Git repository")),
    }
}

/// The text of a file that has to be there.
fn needed<'a>(facts: &'a Facts, path: &Path, remedy: &str) -> Result<&'a str, Finding> {
    let missing = || Finding::fail(format!("{} is missing or cannot be read", path.display()), remedy);
    facts.texts.get(path).map(String::as_str).ok_or_else(missing)
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

pub(super) fn git_signers(facts: &Facts) -> Finding {
    super::either(git(facts).and_then(|spec| {
        let Verify::Head(file) = &spec.verify else {
            return Ok(Finding::warn(
                "commits are followed without a signature",
                "`verify: {mode: head, allowedSigners: FILE}`: whoever can push then needs a key that this router knows",
            ));
        };
        let text = needed(facts, file, "one line a signer: `name@example.net ssh-ed25519 AAAA…`")?;
        let bad: Vec<usize> = lines(text).filter(|(_, line)| !is_signer(line)).map(|(number, _)| number).collect();
        let shown = file.display();
        Ok(match (bad.first(), lines(text).count()) {
            (Some(line), _) => Finding::fail(format!("{shown}:{line} is not a signer"), "`name@example.net ssh-ed25519 AAAA…`, see ssh-keygen(1)"),
            (None, 0) => Finding::fail(format!("{shown} names nobody: no commit will ever be followed"), "add a signer"),
            (None, count) => Finding::ok(format!("{count} signers")),
        })
    }))
}

/// Principals, options if any, a key type, and a key in base64.
fn is_signer(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let key = words.iter().position(|w| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| w.starts_with(kind)));
    key.is_some_and(|at| at > 0 && words.get(at + 1).is_some_and(|key| key.starts_with("AAAA")))
}

pub(super) fn git_known_hosts(facts: &Facts) -> Finding {
    super::either(git(facts).and_then(|spec| {
        if spec.url.scheme != Scheme::Ssh {
            return Err(Finding::skipped("the repository is not reached by ssh"));
        }
        let host = &spec.url.host;
        let remedy = format!(
            "`ssh-keyscan -p {} {host} > FILE`, compared with what the host's operator says; then `knownHosts: FILE`",
            spec.url.port
        );
        let Some(file) = &spec.known_hosts else {
            return Ok(Finding::fail("the settings name no file of known hosts", remedy));
        };
        let text = needed(facts, file, &remedy)?;
        // Hashed names cannot be compared by eye; libssh2 does it.
        let mut names = lines(text).filter_map(|(_, line)| line.split_whitespace().find(|word| !word.starts_with('@')));
        let known = names.any(|names| {
            names.starts_with("|1|") || names.split(',').any(|name| name.contains(host.as_str()) || name.contains('*'))
        });
        Ok(if known {
            Finding::ok(format!("{} knows {host}", file.display()))
        } else {
            Finding::fail(format!("{} does not know {host}", file.display()), remedy)
        })
    }))
}

pub(super) fn git_credentials(facts: &Facts) -> Finding {
    super::either(git(facts).and_then(|spec| match &spec.secret {
        Some(secret) => private(facts, secret),
        None if spec.url.scheme == Scheme::Ssh => {
            Ok(Finding::fail("ssh without a key", "`credentials: {file: KEY}`: a deploy key that may only read"))
        }
        None => Err(Finding::skipped("the repository is read without a secret")),
    }))
}

pub(super) fn report_token(facts: &Facts) -> Finding {
    match &facts.settings.report {
        Some(report) => super::either(private(facts, &report.token)),
        None => Finding::skipped("nothing is reported to a forge"),
    }
}

/// Whether a secret is there for the daemon alone.
fn private(facts: &Facts, secret: &Secret) -> Result<Finding, Finding> {
    let file = match secret {
        Secret::File(file) => file,
        Secret::Environment(name) => {
            return Err(Finding::skipped(format!("the secret is in the environment of the service ({name})")));
        }
        Secret::Systemd(name) => {
            return Err(Finding::skipped(format!("systemd gives the service its secret ({name})")));
        }
    };
    let shown = file.display();
    let Some(place) = facts.places.get(file) else {
        let remedy = "put the token or the private key there, readable by the daemon alone";
        return Ok(Finding::fail(format!("{shown} is missing"), remedy));
    };
    let others = place.mode & 0o077;
    if others == 0 {
        return Ok(Finding::ok(format!("{shown} is private")));
    }
    let says = format!("{shown} can be read by others (mode {:o})", place.mode & 0o7777);
    Ok(Finding::fail(says, format!("`chmod 600 {shown}`")))
}

pub(super) fn git_authorities(facts: &Facts) -> Finding {
    super::either(git(facts).and_then(|spec| {
        let Some(file) = &spec.ca else { return Err(Finding::skipped("no authorities beside the system's are named")) };
        let text = needed(facts, file, "the certificate of the authority as PEM")?;
        Ok(if text.contains("-----BEGIN CERTIFICATE-----") {
            Finding::ok(format!("{} has certificates", file.display()))
        } else {
            Finding::fail(
                format!("{} holds no certificate", file.display()),
                "PEM begins with `-----BEGIN CERTIFICATE-----`",
            )
        })
    }))
}
