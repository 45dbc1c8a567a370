//! From the source to the site in force: reading, checking, keeping the last good state.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle};

use super::{DEBOUNCE, Engine, SOURCE_AUDIT, gate::Proposal, status::ReconcileStatus};
use crate::{
    clock,
    config::{self, Snapshot, commit::Commit},
    diag::{Diagnostic, Severity},
    source::{self, SourceError, Watcher},
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
    /// The commit that it comes from; none for a directory.
    pub commit: Option<Commit>,
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
        Some(site) => Ok(Active {
            revision: snapshot.revision,
            files: snapshot.files,
            site: site.clone(),
            warnings,
            commit: snapshot.commit,
        }),
        None => Err(ConfigError::NoSite(site.cloned(), intent.sites().keys().cloned().collect())),
    }
}

/// A tree that somebody writes to is looked at again after this time.
const UNFINISHED: Duration = Duration::from_millis(250);

/// What reading the source has come to.
#[derive(Debug)]
pub(super) enum Reading {
    /// It could not be read.
    Failed(SourceError),
    /// It is the revision that is known already.
    Known(String),
    /// Another revision, checked.
    Checked(String, Result<Box<Active>, ConfigError>),
}

/// Reads and checks the source aside: a large fleet takes seconds, and no probe waits for it.
#[derive(Debug, Default)]
pub(super) struct Reader {
    task: Option<JoinHandle<Option<Reading>>>,
    /// The revision that was refused last, if the errors in the status are about it.
    refused: Option<String>,
    /// Who waits for the pass after the next reading.
    pub(super) waiting: Vec<oneshot::Sender<ReconcileStatus>>,
}

impl Reader {
    fn begin(&mut self, origin: Origin, known: Vec<String>) {
        self.task = Some(tokio::spawn(read(origin, known)));
    }

    /// The reading that is under way; never without one. Safe to drop: it goes on.
    pub(super) async fn done(&mut self) -> Reading {
        loop {
            let Some(task) = &mut self.task else { return std::future::pending().await };
            let result = task.await;
            self.task = None;
            if let Ok(Some(reading)) = result {
                return reading;
            }
            tracing::error!("reading the source ended without a result; the next audit tries again");
        }
    }
}

async fn read(origin: Origin, known: Vec<String>) -> Option<Reading> {
    let snapshot = match source::read_settled(&origin.dir).await {
        Ok(snapshot) => snapshot,
        Err(error) => return Some(Reading::Failed(error)),
    };
    let revision = snapshot.revision.clone();
    if known.contains(&revision) {
        return Some(Reading::Known(revision));
    }
    let check = move || activate(snapshot, Some(&origin.site), &origin.options);
    let checked = tokio::task::spawn_blocking(check).await.ok()?;
    Some(Reading::Checked(revision, checked.map(Box::new)))
}

impl Engine {
    /// Before the source is read for the first time: what was in force before still is, whatever the source
    /// says now.
    pub(super) fn start_from_last_good(&mut self) {
        let good = self.last_good();
        match (self.router.ledger.unconfirmed(), good) {
            (Some(change), good) => self.resume_trial(change, good),
            (None, Some(good)) => self.adopt(good),
            (None, None) => {}
        }
    }

    fn last_good(&self) -> Option<Active> {
        let good = self.router.ledger.last_good()?;
        let snapshot = Snapshot { revision: good.revision, files: good.files, commit: None };
        let active = activate(snapshot, Some(&self.origin.site), &self.origin.options);
        if let Err(error) = &active {
            tracing::warn!(errors = ?error.lines(), "the last good configuration is not valid any more");
        }
        active.ok()
    }

    /// Begins to read the source, unless that is under way or somebody is writing it.
    pub(super) fn read_source(&mut self, watcher: &Watcher, now: clock::Instant) {
        if self.reader.task.is_some() || watcher.is_being_written(now) {
            self.timers.source = now + UNFINISHED;
            return;
        }
        self.timers.source = now + SOURCE_AUDIT;
        let active = self.active.as_ref().map(|a| a.revision.clone());
        let held = self.gate.held().map(|(revision, _)| revision.to_owned());
        let known = active.into_iter().chain(self.reader.refused.clone()).chain(held).collect();
        self.reader.begin(self.origin.clone(), known);
    }

    /// Takes what was read, unless somebody has begun to write meanwhile.
    pub(super) async fn on_reading(&mut self, reading: Reading, watcher: &Watcher) {
        let now = clock::now();
        if watcher.is_being_written(now) {
            self.timers.source = now + UNFINISHED;
            return;
        }
        self.take_reading(reading);
        if !self.reader.waiting.is_empty() {
            self.pass().await;
            for reply in std::mem::take(&mut self.reader.waiting) {
                // Whoever asked may have gone away.
                let _ = self.last.clone().map(|status| reply.send(status));
            }
        }
    }

    /// Puts a reading in force if it is another one and valid, else keeps what is in force and says why.
    fn take_reading(&mut self, reading: Reading) {
        match reading {
            Reading::Failed(error) => return self.refuse(None, vec![chain(&error)]),
            Reading::Known(revision) => self.take_known(revision),
            Reading::Checked(revision, Ok(_)) if self.is_in_force(&revision) => self.take_known(revision),
            Reading::Checked(revision, Ok(active)) => {
                self.event("source", "", format!("revision {revision} is valid"), serde_json::Value::Null);
                self.source.desired = Some(revision);
                self.source.errors.clear();
                self.propose(Proposal::of_source(*active, self.gate.timeout()));
            }
            Reading::Checked(revision, Err(error)) => self.refuse(Some(revision), error.lines()),
        }
        self.source.last_success = Some(clock::wall());
    }

    fn is_in_force(&self, revision: &str) -> bool {
        self.active.as_ref().is_some_and(|a| a.revision == revision)
    }

    /// Back at what is in force, or still at what was refused.
    fn take_known(&mut self, revision: String) {
        if self.is_in_force(&revision) {
            if !self.source.errors.is_empty() {
                let text = format!("revision {revision} is what the source holds again; it is in force");
                self.event("source", "", text, serde_json::Value::Null);
            }
            self.source.errors.clear();
            self.reader.refused = None;
            self.drop_held();
            self.timers.publish = clock::now();
        }
        self.source.desired = Some(revision);
    }

    pub(super) fn adopt(&mut self, active: Active) {
        let now = clock::now();
        self.reader.refused = None;
        self.monitor.reconfigure(&active.site, now);
        self.active = Some(active);
        self.links_from_facts(now);
        self.timers.pass_at(now);
        self.timers.publish = now + DEBOUNCE;
    }

    pub(super) fn refuse(&mut self, revision: Option<String>, errors: Vec<String>) {
        if self.source.errors != errors {
            let kept = self.active.as_ref().map_or_else(
                || "nothing is in force yet".to_owned(),
                |a| format!("revision {} stays in force", a.revision),
            );
            let which = revision.as_ref().map(|r| format!("revision {r}: ")).unwrap_or_default();
            let first = errors.first().cloned().unwrap_or_default();
            let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
            self.warning("source", "", format!("{which}{first}{more}; {kept}"), serde_json::json!(errors));
            self.timers.publish = clock::now();
        }
        self.reader.refused.clone_from(&revision);
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
        if self.gate.is_open() {
            return;
        }
        self.router.ledger.set_last_good(&LastGood {
            revision: active.revision.clone(),
            at: clock::wall(),
            files: active.files.clone(),
        });
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
