//! Reading a snapshot: which document is what, its variables, its schema, its objects.

use std::{collections::BTreeMap, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Config, INLINE, MAX_FILE, MAX_FILES, MAX_TREE, NAME, Object, Place, Scope, Snapshot, matches_labels,
    schema::{self, Kind, Problem, Schemas, escape},
    types::{Metadata, SiteSpec},
    vars::{self, Vars},
    yaml,
};
use crate::{
    diag::{self, Code, Diagnostic, Span, suggest},
    units::Name,
};

/// Reads all `*.yaml` and `*.yml` files of a snapshot.
#[must_use]
pub fn load(snapshot: &Snapshot) -> (Config, Vec<Diagnostic>) {
    let mut loader = Loader { schemas: Schemas::held(), ..Loader::default() };
    loader.read(snapshot);
    loader.survey();
    for number in 0..loader.config.documents.len() {
        let before = loader.found.len();
        loader.document(number);
        loader.concern(number, before);
    }
    let Loader { mut config, mut found, .. } = loader;
    config.failed = diag::has_errors(&found);
    diag::sort(&mut found);
    diag::cap(&mut found, "reading");
    (config, found)
}

#[derive(Default)]
struct Loader {
    config: Config,
    found: Vec<Diagnostic>,
    kinds: Vec<Option<Kind>>,
    vars: BTreeMap<Name, Vars>,
    schemas: Arc<Schemas>,
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
            self.found.push(Diagnostic::error(Code::Limit, message).help("is this the right directory?"));
            self.config.unread.everything();
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
            self.config.unread.everything();
            return;
        }
        let text = String::from_utf8_lossy(bytes);
        let file = self.config.sources.add(name, &text);
        if let Err(error) = std::str::from_utf8(bytes) {
            let at = error.valid_up_to();
            let found = Diagnostic::error(Code::Encoding, "the file is not UTF-8").at(Span::new(&file, at..at + 1));
            self.found.push(found.help("save it as UTF-8"));
            self.config.unread.text(&text);
            return;
        }
        let parsed = yaml::parse(&file, &text);
        self.found.extend(parsed.found);
        self.config.unread.extend(parsed.unread);
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
        // It may have been any of them.
        for kind in Kind::ALL {
            let value = self.config.documents[number].value.clone();
            self.give_up(kind, &value);
        }
        None
    }

    /// Types one document, once for each set of variables that applies to it.
    fn document(&mut self, number: usize) {
        let Some(kind) = self.kinds[number] else { return };
        if kind == Kind::FailoverTest {
            self.config.trials.push(number);
            return;
        }
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

    /// Says which sites the findings of a document concern.
    fn concern(&mut self, number: usize, before: usize) {
        if before == self.found.len() {
            return;
        }
        let value = &self.config.documents[number].value;
        let own = match self.kinds[number] {
            Some(Kind::Site) => value.pointer(NAME),
            _ => value.pointer("/spec/site"),
        };
        let own = own.and_then(Value::as_str).and_then(|name| name.parse::<Name>().ok());
        let sites: Vec<&Name> = match (&own, value.pointer("/spec/selector").map(labels_of)) {
            (Some(site), _) => vec![site],
            (None, Some(wanted)) => {
                let each = self.config.labels.iter().filter(|(_, labels)| matches_labels(&wanted, labels));
                each.map(|(site, _)| site).collect()
            }
            (None, None) => Vec::new(),
        };
        for found in self.found[before..].iter_mut().filter(|found| found.sites.is_empty()) {
            *found = found.clone().concerns(sites.iter().copied());
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
        let problems = self.schemas.of(kind).problems(value);
        for problem in &problems {
            self.problem(number, problem, selected);
        }
        // Where the list of faults is cut short, nothing is known to be sound.
        let sound = |pointer: &str| {
            !problems
                .iter()
                .any(|p| p.code == Code::More || p.pointer == pointer || p.pointer.starts_with(&format!("{pointer}/")))
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
            Kind::Site | Kind::FailoverTest => return false,
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
