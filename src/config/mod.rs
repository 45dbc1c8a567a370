//! From files to typed objects: YAML, schema, variables. References are `validate`'s business.
//!
//! Invariant: loading never fails. What is broken becomes a diagnostic and is left out, and its name is
//! remembered, so that a reference to it is not reported as a second fault.

use std::collections::{BTreeMap, BTreeSet};

pub mod commit;
pub mod gone;
mod load;
pub mod probe;
pub mod scalars;
pub mod schema;
pub mod trial;
pub mod types;
mod unread;
pub mod vars;

pub mod yaml;

pub use self::load::load;
use self::{
    commit::Commit,
    schema::Kind,
    types::{FailoverSpec, PathSpec, PolicySpec, SiteSpec, SlaSpec},
    unread::Unread,
    yaml::Document,
};
use crate::{
    diag::{Sources, Span},
    units::Name,
};

/// Largest file, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Most files of a tree.
pub const MAX_FILES: usize = 10_000;
/// Largest tree, in bytes: a thousand sites with ten thousand objects take about 3 MB.
pub const MAX_TREE: usize = 16 << 20;

/// All files of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the source calls it: a commit, or a digest of the files.
    pub revision: String,
    /// Contents by path relative to the root, with `/`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The commit that they come from; none for a directory.
    pub commit: Option<Commit>,
}

/// An object as it was written, with its place.
#[derive(Debug, Clone)]
pub struct Object<T> {
    /// Its name.
    pub name: Name,
    /// What it belongs to or applies to.
    pub scope: Scope,
    /// What it says.
    pub spec: T,
    at: Place,
}

impl<T> Object<T> {
    /// Whether it was written for one site, rather than for all that a selector matches.
    #[must_use]
    pub const fn is_own(&self) -> bool {
        matches!(self.scope, Scope::Site(_))
    }
}

/// What an object belongs to or applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole configuration.
    Fleet,
    /// One site.
    Site(Name),
    /// Every site whose labels match.
    Selector(BTreeMap<String, String>),
    /// One of the sites that a selector with variables matches.
    Selected(Name),
}

impl Scope {
    /// Whether it applies to a site.
    #[must_use]
    pub fn covers(&self, site: &Name, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Fleet => true,
            Self::Site(own) | Self::Selected(own) => own == site,
            Self::Selector(wanted) => matches_labels(wanted, labels),
        }
    }
}

fn matches_labels(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[derive(Debug, Clone)]
struct Place {
    document: usize,
    /// JSON pointer of the spec.
    spec: String,
    /// JSON pointer of the name; of an inline object, that of the object, whose key is its name.
    name: String,
}

/// A loaded configuration.
#[derive(Debug, Default)]
pub struct Config {
    /// Sites.
    pub sites: Vec<Object<SiteSpec>>,
    /// Labels of each site.
    pub labels: BTreeMap<Name, BTreeMap<String, String>>,
    /// Paths, inline ones included.
    pub paths: Vec<Object<PathSpec>>,
    /// Failover rules, inline ones included.
    pub rules: Vec<Object<FailoverSpec>>,
    /// SLA classes.
    pub sla_classes: Vec<Object<SlaSpec>>,
    /// Policies, inline ones included.
    pub policies: Vec<Object<PolicySpec>>,
    documents: Vec<Document>,
    /// Documents that are tests of failover rules, which nothing here reads.
    trials: Vec<usize>,
    sources: Sources,
    broken: BTreeSet<(Kind, String)>,
    unread: Unread,
    failed: bool,
}

impl Config {
    /// The texts that diagnostics point into.
    #[must_use]
    pub const fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The documents that are tests of failover rules.
    pub fn trials(&self) -> impl Iterator<Item = &Document> {
        self.trials.iter().map(|number| &self.documents[*number])
    }

    /// The names of all sites, those included that could not be read whole.
    #[must_use]
    pub fn site_names(&self) -> Vec<&Name> {
        self.labels.keys().collect()
    }

    /// How many objects there are, inline ones included.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.sites.len() + self.paths.len() + self.rules.len() + self.sla_classes.len() + self.policies.len()
    }

    /// Whether loading found an error, so that no intent may come of it.
    #[must_use]
    pub const fn failed(&self) -> bool {
        self.failed
    }

    /// The place of a field of an object's spec, such as `/probe/targets/0`; of the spec itself for "".
    #[must_use]
    pub fn field<T>(&self, object: &Object<T>, field: &str) -> Span {
        self.documents[object.at.document].value_at(&format!("{}{field}", object.at.spec))
    }

    /// The place of the name of a field of an object's spec.
    #[must_use]
    pub fn field_name<T>(&self, object: &Object<T>, field: &str) -> Span {
        self.documents[object.at.document].key_at(&format!("{}{field}", object.at.spec))
    }

    /// The place of an object's name.
    #[must_use]
    pub fn name<T>(&self, object: &Object<T>) -> Span {
        let document = &self.documents[object.at.document];
        if object.at.name == NAME { document.value_at(NAME) } else { document.key_at(&object.at.name) }
    }

    /// Whether an object was written within a site's document.
    #[must_use]
    pub fn is_inline<T>(&self, object: &Object<T>) -> bool {
        object.at.name != NAME
    }

    /// Whether something of this kind and name may be there and could not be read, so that nobody is told twice.
    #[must_use]
    pub fn is_broken(&self, kind: Kind, name: &str) -> bool {
        self.unread.mentions(name) || self.broken.contains(&(kind, name.to_owned()))
    }

    /// Whether some document may be a site and could not be read.
    #[must_use]
    pub fn lacks_sites(&self) -> bool {
        !self.unread.is_empty() || self.broken.iter().any(|(broken, _)| *broken == Kind::Site)
    }

    /// Whether anything of this kind, perhaps of this site, could not be read.
    #[must_use]
    pub fn any_broken(&self, kind: Kind, site: &Name) -> bool {
        self.unread.mentions(site.as_str()) || self.broken.iter().any(|(broken, _)| *broken == kind)
    }
}

const NAME: &str = "/metadata/name";
const INLINE: [(&str, Kind); 3] = [("paths", Kind::Path), ("failover", Kind::FailoverRule), ("policies", Kind::Policy)];
