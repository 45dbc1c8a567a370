//! From files to typed objects: YAML, schema, variables. References are `validate`'s business.
//!
//! Invariant: loading never fails. What is broken becomes a diagnostic and is left out, and its name is
//! remembered, so that a reference to it is not reported as a second fault.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub mod scalars;
pub mod schema;
pub mod types;
pub mod vars;
pub mod yaml;

use self::{
    schema::{Kind, Problem, escape},
    types::{FailoverSpec, Metadata, PathSpec, PolicySpec, SiteSpec, SlaSpec},
    vars::Vars,
    yaml::Document,
};
use crate::{
    diag::{Code, Diagnostic, Sources, Span, suggest},
    units::Name,
};

/// Largest file, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Most files of a tree.
pub const MAX_FILES: usize = 10_000;
/// Largest tree, in bytes: a thousand sites with ten thousand objects take about 3 MB.
pub const MAX_TREE: usize = 16 << 20;

/// Most findings of one load that are shown; a file of rubbish would give as many as it has documents.
const MAX_FOUND: usize = 1_000;

/// All files of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the source calls it: a commit, or a digest of the files.
    pub revision: String,
    /// Contents by path relative to the root, with `/`.
    pub files: BTreeMap<String, Vec<u8>>,
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
    sources: Sources,
    broken: BTreeSet<(Kind, String)>,
    incomplete: bool,
    failed: bool,
}

impl Config {
    /// The texts that diagnostics point into.
    #[must_use]
    pub const fn sources(&self) -> &Sources {
        &self.sources
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

    /// Whether something of this kind and name was there and could not be read, so that nobody is told twice.
    #[must_use]
    pub fn is_broken(&self, kind: Kind, name: &str) -> bool {
        self.incomplete || self.broken.contains(&(kind, name.to_owned()))
    }

    /// Whether anything of this kind could not be read.
    #[must_use]
    pub fn any_broken(&self, kind: Kind) -> bool {
        self.incomplete || self.broken.iter().any(|(broken, _)| *broken == kind)
    }
}

const NAME: &str = "/metadata/name";
const INLINE: [(&str, Kind); 3] = [("paths", Kind::Path), ("failover", Kind::FailoverRule), ("policies", Kind::Policy)];

/// Reads all `*.yaml` and `*.yml` files of a snapshot.
#[must_use]
pub fn load(snapshot: &Snapshot) -> (Config, Vec<Diagnostic>) {
    let mut loader = Loader::default();
    loader.read(snapshot);
    loader.survey();
    for number in 0..loader.config.documents.len() {
        loader.document(number);
    }
    let Loader { mut config, mut found, .. } = loader;
    crate::diag::sort(&mut found);
    config.failed = crate::diag::has_errors(&found);
    found.truncate(MAX_FOUND);
    (config, found)
}

#[derive(Default)]
struct Loader {
    config: Config,
    found: Vec<Diagnostic>,
    kinds: Vec<Option<Kind>>,
    vars: BTreeMap<Name, Vars>,
}

impl Loader {
    /// Parses every file that is within the limits.
    fn read(&mut self, snapshot: &Snapshot) {
        let wanted = |name: &str| [".yaml", ".yml"].iter().any(|end| name.ends_with(end));
        let files: Vec<_> = snapshot.files.iter().filter(|(name, _)| wanted(name)).collect();
        let total: usize = files.iter().map(|(_, text)| text.len()).sum();
        if files.len() > MAX_FILES || total > MAX_TREE {
            let message =
                format!("{} files with {total} bytes: at most {MAX_FILES} files with {MAX_TREE} bytes", files.len());
            self.found.push(Diagnostic::error(Code::Limit, message));
            self.config.incomplete = true;
            return;
        }
        for (name, bytes) in files {
            self.file(name, bytes);
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) {
        if bytes.len() > MAX_FILE {
            let file = self.config.sources.add(name, "");
            let message = format!("{} bytes: a file may have at most {MAX_FILE}", bytes.len());
            self.found.push(
                Diagnostic::error(Code::Limit, message)
                    .at(Span::new(&file, 0..0))
                    .help("split it, by site for example"),
            );
            self.config.incomplete = true;
            return;
        }
        let text = String::from_utf8_lossy(bytes);
        let file = self.config.sources.add(name, &text);
        if let Err(error) = std::str::from_utf8(bytes) {
            let at = error.valid_up_to();
            let found = Diagnostic::error(Code::Encoding, "the file is not UTF-8").at(Span::new(&file, at..at + 1));
            self.found.push(found.help("save it as UTF-8"));
            self.config.incomplete = true;
            return;
        }
        let parsed = yaml::parse(&file, &text);
        self.found.extend(parsed.found);
        self.config.incomplete |= parsed.incomplete;
        self.config.documents.extend(parsed.documents);
    }

    /// Learns the kinds of all documents and the labels and variables of all sites.
    fn survey(&mut self) {
        for number in 0..self.config.documents.len() {
            let kind = self.kind(number);
            self.kinds.push(kind);
            let value = &self.config.documents[number].value;
            if kind != Some(Kind::Site) {
                continue;
            }
            let Some(Ok(name)) = value.pointer(NAME).and_then(Value::as_str).map(str::parse::<Name>) else { continue };
            let vars = value.pointer("/spec/vars").and_then(Value::as_object);
            let vars = vars.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
            self.vars.entry(name.clone()).or_insert_with(|| vars.collect());
            let labels = value.pointer("/metadata/labels").map(labels_of).unwrap_or_default();
            self.config.labels.entry(name).or_insert(labels);
        }
    }

    /// The kind of a document; a document without one is reported.
    fn kind(&mut self, number: usize) -> Option<Kind> {
        let document = &self.config.documents[number];
        let text = document.value.get("kind").and_then(Value::as_str);
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| Some(kind.text()) == text) {
            return Some(kind);
        }
        let words = Kind::ALL.map(Kind::text);
        let found = match (text, document.value.is_object()) {
            (Some(text), _) => {
                let near = suggest(text, words).map(|near| format!("did you mean `{near}`?"));
                let help = near.unwrap_or_else(|| format!("the kinds are {}", crate::diag::listed(&words, 9)));
                Diagnostic::error(
                    Code::UnknownKind,
                    format!("unknown kind `{}`", text.chars().take(60).collect::<String>()),
                )
                .at(document.value_at("/kind"))
                .help(help)
            }
            (None, true) => Diagnostic::error(Code::UnknownKind, "the document does not say its `kind`")
                .at(document.value_at("/kind"))
                .help(format!("begin it with `apiVersion: {}` and `kind: Site`, for example", schema::API_VERSION)),
            (None, false) => Diagnostic::error(Code::UnknownKind, "the document is not an object")
                .at(document.value_at(""))
                .help(format!("begin it with `apiVersion: {}` and `kind: Site`, for example", schema::API_VERSION)),
        };
        self.found.push(found);
        self.config.incomplete = true;
        None
    }

    /// Types one document, once for each set of variables that applies to it.
    fn document(&mut self, number: usize) {
        let Some(kind) = self.kinds[number] else { return };
        let value = self.config.documents[number].value.clone();
        if !value.get("spec").is_some_and(vars::uses) {
            self.object(number, kind, &value, None);
            return;
        }
        let own = match kind {
            Kind::Site => value.pointer(NAME),
            _ => value.pointer("/spec/site"),
        };
        let selector = value.pointer("/spec/selector").map(labels_of);
        match (own.and_then(Value::as_str).and_then(|s| s.parse::<Name>().ok()), selector) {
            (Some(site), _) => self.with_vars(number, kind, &value, &site, false),
            (None, Some(wanted)) => {
                let each = self.config.labels.iter().filter(|(_, labels)| matches_labels(&wanted, labels));
                let sites: Vec<Name> = each.map(|(site, _)| site.clone()).collect();
                for site in sites {
                    self.with_vars(number, kind, &value, &site, true);
                }
            }
            (None, None) => self.object(number, kind, &value, None),
        }
    }

    fn with_vars(&mut self, number: usize, kind: Kind, value: &Value, site: &Name, selected: bool) {
        let none = Vars::new();
        let vars = self.vars.get(site).unwrap_or(&none);
        match vars::replace(value, vars) {
            Ok(value) => self.object(number, kind, &value, selected.then_some(site)),
            Err(undefined) => {
                let document = &self.config.documents[number];
                for missing in undefined {
                    let near = suggest(&missing.name, vars.keys().map(String::as_str));
                    let help = near.map_or_else(
                        || format!("define `{}` in the `vars` of site `{site}`", missing.name),
                        |near| format!("did you mean `${{{near}}}`?"),
                    );
                    let message = format!("site `{site}` does not define the variable `{}`", missing.name);
                    let found = Diagnostic::error(Code::UndefinedVariable, message);
                    self.found.push(found.at(document.value_at(&missing.pointer)).help(help));
                }
                self.give_up(kind, value);
            }
        }
    }

    /// Remembers the names in a document that could not be read.
    fn give_up(&mut self, kind: Kind, value: &Value) {
        if let Some(name) = value.pointer(NAME).and_then(Value::as_str) {
            self.config.broken.insert((kind, name.to_owned()));
        }
        if kind == Kind::Site {
            for (field, kind) in INLINE {
                let inline = value.pointer(&format!("/spec/{field}")).and_then(Value::as_object);
                let names = inline.into_iter().flatten().map(|(name, _)| (kind, name.clone()));
                self.config.broken.extend(names);
            }
        }
    }

    /// Checks a document against its schema and takes what is sound.
    fn object(&mut self, number: usize, kind: Kind, value: &Value, selected: Option<&Name>) {
        let problems = schema::of(kind).problems(value);
        for problem in &problems {
            self.problem(number, problem, selected);
        }
        let sound = |pointer: &str| {
            !problems.iter().any(|p| p.pointer == pointer || p.pointer.starts_with(&format!("{pointer}/")))
        };
        let meta =
            value.get("metadata").and_then(|v| Metadata::deserialize_value(v).ok()).filter(|_| sound("/metadata"));
        let Some(meta) = meta else { return self.give_up(kind, value) };
        let taken = match kind {
            Kind::Site => self.site(number, value, &meta, &sound),
            _ if problems.iter().any(|p| p.pointer.is_empty() || p.pointer.starts_with("/spec")) => false,
            _ => self.alone(number, kind, value, &meta, selected),
        };
        if !taken {
            self.give_up(kind, value);
        }
    }

    fn problem(&mut self, number: usize, problem: &Problem, selected: Option<&Name>) {
        let document = &self.config.documents[number];
        let at = if problem.on_key { document.key_at(&problem.pointer) } else { document.value_at(&problem.pointer) };
        // A whole document is no place to look at: its first line is.
        let message = match selected {
            Some(site) => format!("{} (with the variables of site `{site}`)", problem.message),
            None => problem.message.clone(),
        };
        let found = Diagnostic::error(problem.code, message).at(at);
        self.found.push(match &problem.help {
            Some(help) => found.help(help.clone()),
            None => found,
        });
    }

    fn site(&mut self, number: usize, value: &Value, meta: &Metadata, sound: &dyn Fn(&str) -> bool) -> bool {
        let Some(spec) = value.get("spec").and_then(Value::as_object) else { return false };
        let mut bare = spec.clone();
        for (field, kind) in INLINE {
            let inline = bare.remove(field);
            for (name, value) in inline.as_ref().and_then(Value::as_object).into_iter().flatten() {
                self.inline(number, kind, (field, name), value, meta, sound);
            }
        }
        let fields_sound = bare.keys().all(|field| sound(&format!("/spec/{}", escape(field))));
        if !fields_sound {
            return false;
        }
        let spec = match SiteSpec::deserialize_value(&Value::Object(bare)) {
            Ok(spec) => spec,
            Err(error) => {
                let place = self.config.documents[number].key_at("/spec");
                self.found.push(Diagnostic::error(Code::WrongValue, error.to_string()).at(place));
                return false;
            }
        };
        let at = Place { document: number, spec: "/spec".into(), name: NAME.into() };
        let scope = Scope::Site(meta.name.clone());
        self.config.sites.push(Object { name: meta.name.clone(), scope, spec, at });
        true
    }

    fn inline(
        &mut self,
        number: usize,
        kind: Kind,
        (field, name): (&str, &str),
        value: &Value,
        site: &Metadata,
        sound: &dyn Fn(&str) -> bool,
    ) {
        let pointer = format!("/spec/{field}/{}", escape(name));
        let at = Place { document: number, spec: pointer.clone(), name: pointer.clone() };
        let scope = Scope::Site(site.name.clone());
        for field in ["site", "selector"].into_iter().filter(|field| value.get(*field).is_some()) {
            let place = self.config.documents[number].key_at(&format!("{pointer}/{field}"));
            let message = format!("an inline {} belongs to the site around it", kind.noun());
            self.found.push(Diagnostic::error(Code::Scope, message).at(place).help(format!("delete `{field}`")));
        }
        let taken = match name.parse::<Name>() {
            Ok(name) if sound(&pointer) => self.push(kind, name, scope, value, at),
            _ => false,
        };
        if !taken {
            self.config.broken.insert((kind, name.to_owned()));
        }
    }

    fn alone(&mut self, number: usize, kind: Kind, value: &Value, meta: &Metadata, selected: Option<&Name>) -> bool {
        let spec = &value["spec"];
        let site = spec.get("site").and_then(Value::as_str).and_then(|s| s.parse::<Name>().ok());
        let selector = spec.get("selector").map(labels_of);
        let scope = match (kind, selected, site, selector) {
            (Kind::SlaClass, ..) => Scope::Fleet,
            (_, Some(site), None, _) => Scope::Selected(site.clone()),
            (_, _, Some(site), None) => Scope::Site(site),
            (_, _, None, Some(wanted)) => Scope::Selector(wanted),
            (_, _, site, _) => {
                self.wrong_scope(number, kind, site.is_some());
                return false;
            }
        };
        let at = Place { document: number, spec: "/spec".into(), name: NAME.into() };
        self.push(kind, meta.name.clone(), scope, spec, at)
    }

    fn wrong_scope(&mut self, number: usize, kind: Kind, both: bool) {
        let document = &self.config.documents[number];
        let (message, at) = if both {
            ("`site` and `selector` exclude each other".to_owned(), document.key_at("/spec/selector"))
        } else {
            (format!("the {} does not say which site it belongs to", kind.noun()), document.key_at("/spec"))
        };
        let help = match kind {
            Kind::Path => "give it a `site`",
            _ => "give it a `site`, or a `selector` (`selector: {}` is every site)",
        };
        self.found.push(Diagnostic::error(Code::Scope, message).at(at).help(help));
    }

    fn push(&mut self, kind: Kind, name: Name, scope: Scope, value: &Value, at: Place) -> bool {
        let place = self.config.documents[at.document].value_at(&at.spec);
        let added = match kind {
            Kind::Site => return false,
            Kind::Path => add(&mut self.config.paths, name, scope, value, at),
            Kind::FailoverRule => add(&mut self.config.rules, name, scope, value, at),
            Kind::SlaClass => add(&mut self.config.sla_classes, name, scope, value, at),
            Kind::Policy => add(&mut self.config.policies, name, scope, value, at),
        };
        // What the schema lets pass and the types do not must not vanish in silence.
        added.map_err(|error| self.found.push(Diagnostic::error(Code::WrongValue, error.to_string()).at(place))).is_ok()
    }
}

fn add<T: DeserializeOwned>(
    list: &mut Vec<Object<T>>,
    name: Name,
    scope: Scope,
    value: &Value,
    at: Place,
) -> Result<(), serde_json::Error> {
    let spec = T::deserialize_value(value)?;
    list.push(Object { name, scope, spec, at });
    Ok(())
}

/// Reading a typed value from a borrowed one.
trait FromValue: Sized {
    fn deserialize_value(value: &Value) -> Result<Self, serde_json::Error>;
}

impl<T: DeserializeOwned> FromValue for T {
    fn deserialize_value(value: &Value) -> Result<Self, serde_json::Error> {
        T::deserialize(value)
    }
}

fn labels_of(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
