//! From a snapshot to the site that this router is: loaded, checked, picked.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};

use crate::{
    clock,
    config::{self, Snapshot, commit::Commit},
    diag::{Diagnostic, Severity},
    revision::Rhythm,
    source::{Watcher, git::Follower},
    store::LastGood,
    units::Name,
    validate::{self, intent::Site},
};

/// A directory is looked at this often even if nothing tells of a change, and after a failure too: it costs nobody.
const DIRECTORY: Rhythm = {
    let often = Duration::from_secs(5);
    Rhythm { interval: often, retry: often, most: often, jitter: 0 }
};
/// First wait after a fetch that failed; it doubles.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait after fetches that failed, unless the interval is longer.
const MOST: Duration = Duration::from_secs(300);

/// Which site this router is, and where its configuration comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The site.
    pub site: Name,
    /// Where the configuration comes from.
    pub source: Whence,
    /// What the settings say that bears on the configuration.
    pub options: validate::Options,
}

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Whence {
    /// A directory that is watched.
    Dir(PathBuf),
    /// A repository that is fetched.
    Git(Follower),
}

impl Origin {
    /// How often the source is read.
    pub(super) fn rhythm(&self) -> Rhythm {
        match &self.source {
            Whence::Dir(_) => DIRECTORY,
            Whence::Git(follower) => {
                let spec = follower.spec();
                Rhythm {
                    interval: spec.interval,
                    retry: RETRY.min(spec.interval),
                    most: MOST.max(spec.interval),
                    jitter: spec.jitter.ppm() / 10_000,
                }
            }
        }
    }

    /// How the source is called.
    pub(super) fn location(&self) -> String {
        match &self.source {
            Whence::Dir(dir) => dir.display().to_string(),
            Whence::Git(follower) => format!("{}, {}", follower.spec().url, follower.spec().reference),
        }
    }

    /// Something that tells when the source may have changed; nothing tells of a repository.
    pub(super) fn watcher(&self) -> Watcher {
        match &self.source {
            Whence::Dir(dir) => Watcher::new(dir),
            Whence::Git(_) => Watcher::of_nothing(),
        }
    }

    /// Whether a link that comes up may make the source readable.
    pub(super) const fn is_remote(&self) -> bool {
        matches!(self.source, Whence::Git(_))
    }
}

/// A configuration in force or about to be.
#[derive(Debug, Clone)]
pub struct Active {
    /// Its revision.
    pub revision: String,
    /// The commit that it comes from; none for a directory.
    pub commit: Option<Commit>,
    /// The hash of what it means for this site: equal for revisions that differ only elsewhere.
    pub content: String,
    /// Its files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The site that this router is.
    pub site: Arc<Site>,
}

impl Active {
    /// As the journal keeps it for the next start.
    #[must_use]
    pub fn as_last_good(&self) -> LastGood {
        LastGood { revision: self.revision.clone(), at: clock::wall(), files: self.files.clone() }
    }
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
    let found = match site {
        Some(site) => intent.sites().get(site),
        None if intent.sites().len() == 1 => intent.sites().values().next(),
        None => None,
    };
    match found {
        Some(site) => Ok(Active {
            revision: snapshot.revision,
            commit: snapshot.commit,
            content: content(site),
            files: snapshot.files,
            site: Arc::new(site.clone()),
        }),
        None => Err(ConfigError::NoSite(site.cloned(), intent.sites().keys().cloned().collect())),
    }
}

fn content(site: &Site) -> String {
    // Plain values have no way to fail.
    let text = serde_json::to_vec(site).unwrap_or_default();
    let beginning = Sha256::digest(text).iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    format!("{beginning:016x}")
}
