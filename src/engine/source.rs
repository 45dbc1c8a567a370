//! From the source to the site in force: reading, checking, keeping the last good state.

use std::{collections::BTreeMap, path::PathBuf};

use super::{DEBOUNCE, Engine};
use crate::{
    clock,
    config::{self, Snapshot},
    diag::{Diagnostic, Severity},
    source,
    store::LastGood,
    units::Name,
    validate::{self, intent::Site},
};

/// Which site this router is, and where its configuration comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The site.
    pub site: Name,
    /// The directory.
    pub dir: PathBuf,
    /// What the settings say that bears on the configuration.
    pub options: validate::Options,
}

/// A configuration in force or about to be.
#[derive(Debug, Clone)]
pub struct Active {
    /// Its revision.
    pub revision: String,
    /// Its files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The site that this router is.
    pub site: Site,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
}

/// A configuration that cannot be put in force.
#[derive(Debug)]
pub enum ConfigError {
    /// It has errors; with what is needed to show them.
    Invalid(Box<config::Config>, Vec<Diagnostic>),
    /// It is valid, but has no such site; with those that it has.
    NoSite(Option<Name>, Vec<Name>),
}

impl ConfigError {
    /// One line per finding.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Invalid(config, found) => {
                found.iter().filter(|d| d.severity == Severity::Error).map(|d| line(d, config)).collect()
            }
            Self::NoSite(site, known) => {
                let known: Vec<&str> = known.iter().map(Name::as_str).collect();
                let known = known.join(", ");
                vec![site.as_ref().map_or_else(
                    || format!("the configuration has several sites, and this router is one of them: {known}"),
                    |site| format!("the configuration has no site `{site}`; it has: {known}"),
                )]
            }
        }
    }
}

/// A finding on one line: place, code, message.
fn line(d: &Diagnostic, config: &config::Config) -> String {
    let place = d.span.as_ref().map(|span| {
        let (line, column) = config.sources().position(&span.file, span.start);
        format!("{}:{line}:{column}: ", span.file)
    });
    format!("{}{} [{}]", place.unwrap_or_default(), d.message, d.code.info().code)
}

/// Loads and checks a snapshot, and picks the site that this router is; the only one, if none is named.
pub fn activate(snapshot: Snapshot, site: Option<&Name>, options: &validate::Options) -> Result<Active, ConfigError> {
    let (config, mut found) = config::load(&snapshot);
    let (intent, more) = validate::check_with(&config, options);
    found.extend(more);
    let Some(intent) = intent.filter(|_| found.iter().all(|d| d.severity != Severity::Error)) else {
        return Err(ConfigError::Invalid(Box::new(config), found));
    };
    let warnings = found.iter().map(|d| line(d, &config)).collect();
    let found = match site {
        Some(site) => intent.sites().get(site),
        None if intent.sites().len() == 1 => intent.sites().values().next(),
        None => None,
    };
    match found {
        Some(site) => Ok(Active { revision: snapshot.revision, files: snapshot.files, site: site.clone(), warnings }),
        None => Err(ConfigError::NoSite(site.cloned(), intent.sites().keys().cloned().collect())),
    }
}

impl Engine {
    /// Before the source is read for the first time: what was in force before still is, whatever the source
    /// says now.
    pub(super) fn start_from_last_good(&mut self) {
        let Some(good) = self.router.ledger.last_good() else { return };
        match activate(
            Snapshot { revision: good.revision, files: good.files },
            Some(&self.origin.site),
            &self.origin.options,
        ) {
            Ok(active) => self.adopt(active),
            Err(error) => tracing::warn!(errors = ?error.lines(), "the last good configuration is not valid any more"),
        }
    }

    /// Reads the source; puts it in force if it is another one and valid, else keeps what is in force and says why.
    pub(super) async fn read_source(&mut self) {
        let snapshot = match source::read_settled(&self.origin.dir).await {
            Ok(snapshot) => snapshot,
            Err(error) => return self.refuse(None, vec![chain(&error)]),
        };
        self.source.last_success = Some(clock::wall());
        let revision = snapshot.revision.clone();
        let same_as_refused = self.source.desired.as_ref() == Some(&revision) && !self.source.errors.is_empty();
        if same_as_refused && self.active.as_ref().is_none_or(|a| a.revision != revision) {
            return;
        }
        if self.active.as_ref().is_some_and(|a| a.revision == revision) {
            self.source.desired = Some(revision);
            return self.source.errors.clear();
        }
        match activate(snapshot, Some(&self.origin.site), &self.origin.options) {
            Ok(active) => {
                self.event("source", "", format!("revision {revision} is valid"), serde_json::Value::Null);
                self.source.desired = Some(revision);
                self.source.errors.clear();
                self.adopt(active);
            }
            Err(error) => self.refuse(Some(revision), error.lines()),
        }
    }

    fn adopt(&mut self, active: Active) {
        let now = clock::now();
        self.monitor.reconfigure(&active.site, now);
        self.active = Some(active);
        self.links_from_facts(now);
        self.timers.pass_at(now);
        self.timers.publish = now + DEBOUNCE;
    }

    fn refuse(&mut self, revision: Option<String>, errors: Vec<String>) {
        if self.source.errors != errors {
            let kept = self.active.as_ref().map_or_else(
                || "nothing is in force yet".to_owned(),
                |a| format!("revision {} stays in force", a.revision),
            );
            let which = revision.as_ref().map(|r| format!("revision {r}: ")).unwrap_or_default();
            let first = errors.first().cloned().unwrap_or_default();
            let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
            self.event("source", "", format!("{which}{first}{more}; {kept}"), serde_json::json!(errors));
            self.timers.publish = clock::now();
        }
        self.source.desired = revision.or_else(|| self.source.desired.take());
        self.source.errors = errors;
    }

    /// Remembers the configuration that was applied.
    pub(super) fn in_force(&mut self) {
        let Some(active) = &self.active else { return };
        if self.source.applied.as_ref() == Some(&active.revision) {
            return;
        }
        self.source.applied = Some(active.revision.clone());
        self.router.ledger.set_last_good(&LastGood {
            revision: active.revision.clone(),
            at: clock::wall(),
            files: active.files.clone(),
        });
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
