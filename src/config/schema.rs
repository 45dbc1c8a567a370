//! JSON Schemas (draft 2020-12) of the kinds, made from the types, and what their errors mean to a person.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind as Fault};
use schemars::{JsonSchema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Value, json};

use super::{
    scalars,
    trial::TestSpec,
    types::{FailoverSpec, Metadata, PathSpec, PolicySpec, SiteSpec, SlaSpec},
};
use crate::{
    diag::{Code, listed, suggest},
    units::plural,
};

/// The one version of the language.
pub const API_VERSION: &str = "patronus.network/v1alpha1";
/// How many faults of one document are shown.
const MAX_FAULTS: usize = 50;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A place with one router.
    Site,
    /// What traffic can be steered onto.
    Path,
    /// Which path of several is used now.
    FailoverRule,
    /// Thresholds of a kind of traffic.
    SlaClass,
    /// Which traffic, and where it goes.
    Policy,
    /// A test of failover rules; no part of the configuration.
    FailoverTest,
}

impl Kind {
    /// All kinds in the order of the reference.
    pub const ALL: [Self; 6] =
        [Self::Site, Self::Path, Self::FailoverRule, Self::SlaClass, Self::Policy, Self::FailoverTest];

    /// The word in `kind:`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Site => "Site",
            Self::Path => "Path",
            Self::FailoverRule => "FailoverRule",
            Self::SlaClass => "SlaClass",
            Self::Policy => "Policy",
            Self::FailoverTest => "FailoverTest",
        }
    }

    /// In a sentence.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Path => "path",
            Self::FailoverRule => "failover rule",
            Self::SlaClass => "SLA class",
            Self::Policy => "policy",
            Self::FailoverTest => "failover test",
        }
    }
}

/// A schema and its compiled form.
#[derive(Debug)]
pub struct Schema {
    value: Value,
    validator: Validator,
}

/// One fault of a value, at a JSON pointer into it.
#[derive(Debug)]
pub struct Problem {
    /// Which kind of fault.
    pub code: Code,
    /// Where, as a JSON pointer.
    pub pointer: String,
    /// Whether the key is meant rather than its value.
    pub on_key: bool,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// The compiled schemas of the kinds, each made when it is first asked for.
///
/// They are a megabyte and more, which a daemon needs when its configuration changes and never between: they live as long
/// as somebody holds them.
#[derive(Debug, Default)]
pub struct Schemas([OnceLock<Schema>; Kind::ALL.len()]);

static HELD: Mutex<Weak<Schemas>> = Mutex::new(Weak::new());

impl Schemas {
    /// The ones that somebody holds already, or new ones.
    #[must_use]
    pub fn held() -> Arc<Self> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self::default());
            *held = Arc::downgrade(&new);
            new
        })
    }

    /// The schema of a document of this kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &Schema {
        self.0[kind as usize].get_or_init(|| Schema::new(document(kind)))
    }
}

/// The schema of a document of any kind.
#[must_use]
pub fn any() -> Value {
    let branches = Kind::ALL.map(|kind| {
        let mut then = document(kind);
        if let Some(object) = then.as_object_mut() {
            object.remove("$schema");
        }
        json!({"if": {"properties": {"kind": {"const": kind.text()}}}, "then": then})
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Patronus document",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {"kind": {"enum": Kind::ALL.map(Kind::text)}},
        "allOf": branches,
    })
}

/// The schema of a document of this kind.
#[must_use]
pub fn document(kind: Kind) -> Value {
    let spec = match kind {
        Kind::Site => generate::<SiteSpec>(),
        Kind::Path => generate::<PathSpec>(),
        Kind::FailoverRule => generate::<FailoverSpec>(),
        Kind::SlaClass => generate::<SlaSpec>(),
        Kind::Policy => generate::<PolicySpec>(),
        Kind::FailoverTest => generate::<TestSpec>(),
    };
    let description = spec["description"].clone();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.text(),
        "description": description,
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSION, "description": "The version of the language."},
            "kind": {"const": kind.text(), "description": "What the object is."},
            "metadata": generate::<Metadata>(),
            "spec": spec,
        },
        "additionalProperties": false,
    })
}

/// The schema of a type: everything in place, and no `null` beside what an optional field holds.
pub(crate) fn generate<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let settings = settings.with_transform(RecursiveTransform(tidy));
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(object) = schema.as_object_mut() {
        object.remove("title");
    }
    schema
}

fn tidy(schema: &mut schemars::Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    let dispensable = |v: &Value| *v == json!({"type": "null"});
    if let Some(Value::Array(branches)) = object.get("anyOf")
        && let [one, null] = &branches[..]
        && dispensable(null)
        && let Value::Object(one) = one.clone()
    {
        object.remove("anyOf");
        for (key, value) in one {
            object.entry(key).or_insert(value);
        }
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|t| t != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(options)) = object.get_mut("enum") {
        options.retain(|o| !o.is_null());
    }
    for noise in ["default", "format"] {
        let known = object.get(noise).and_then(Value::as_str).is_some_and(|f| scalars::FORMATS.contains(&f));
        if !known {
            object.remove(noise);
        }
    }
    let names = object
        .remove("patternProperties")
        .and_then(|p| p.as_object()?.iter().next().map(|(k, v)| (k.clone(), v.clone())));
    if let Some((pattern, values)) = names {
        object.insert(
            "propertyNames".into(),
            json!({"pattern": pattern, "x-expects": "a name: a-z, 0-9 and `-`, at most 63 characters"}),
        );
        object.insert("additionalProperties".into(), values);
    }
    if let Some(Value::String(pattern)) = object.get_mut("pattern")
        && !pattern.contains(r"\$\{")
    {
        *pattern = format!(r"({pattern})|\$\{{[A-Za-z0-9_-]+\}}");
    }
}

impl Schema {
    /// Compiles a schema that this program generated.
    pub(crate) fn new(value: Value) -> Self {
        let mut options =
            jsonschema::options().with_draft(jsonschema::Draft::Draft202012).should_validate_formats(true);
        for format in scalars::FORMATS {
            options = options.with_format(format, move |text: &str| scalars::check(format, text).is_ok());
        }
        // The schema comes from our own types, not from input; a test builds every one of them.
        let validator =
            options.build(&value).unwrap_or_else(|error| unreachable!("a generated schema is valid: {error}"));
        Self { value, validator }
    }

    /// All that is wrong with a value.
    #[must_use]
    pub fn problems(&self, value: &Value) -> Vec<Problem> {
        if self.validator.is_valid(value) {
            return Vec::new();
        }
        let mut out = Vec::new();
        let mut errors = self.validator.iter_errors(value);
        let mut more = 0;
        for error in errors.by_ref().take(MAX_FAULTS) {
            more += self.explain(&error, &mut out);
        }
        more += errors.count();
        // A value of the wrong type breaks several rules at once; the first says it best.
        let mut seen = std::collections::BTreeSet::new();
        out.retain(|p| seen.insert((p.pointer.clone(), p.on_key, p.code == Code::MissingField, p.message.clone())));
        if more > 0 {
            let message = format!("and {more} more faults in this document");
            let help = Some("correct the others first".to_owned());
            out.push(Problem { code: Code::More, pointer: String::new(), on_key: false, message, help });
        }
        out
    }

    /// Adds what an error means; returns how many faults of it are left out.
    fn explain(&self, error: &ValidationError<'_>, out: &mut Vec<Problem>) -> usize {
        let pointer = error.instance_path().as_str().to_owned();
        let around = error.schema_path().as_str().rsplit_once('/').map_or("", |(around, _)| around);
        let schema = self.value.pointer(around).unwrap_or(&Value::Null);
        match error.kind() {
            Fault::AdditionalProperties { unexpected } => {
                let fields: Vec<&str> = properties(schema);
                out.extend(unexpected.iter().take(MAX_FAULTS).map(|name| unknown_field(&pointer, name, &fields)));
                return unexpected.len().saturating_sub(MAX_FAULTS);
            }
            Fault::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                out.push(missing(pointer, name, schema));
            }
            Fault::PropertyNames { error } => {
                let name = error.instance().as_str().unwrap_or_default().to_owned();
                let message = format!("`{}` is not a name: use 1 to 63 of a-z, 0-9 and `-`", short(&name));
                let help = tamed(&name);
                let pointer = format!("{pointer}/{}", escape(&name));
                out.push(Problem { code: Code::WrongValue, pointer, on_key: true, message, help });
            }
            Fault::Not { .. } => {
                let field = pointer.rsplit('/').next().unwrap_or_default();
                let message = format!("`{field}` is not supported yet");
                let help = Some("delete it".to_owned());
                out.push(Problem { code: Code::NotYet, pointer, on_key: true, message, help });
            }
            kind => out.push(wrong(pointer, error.instance(), schema, kind, &error.to_string())),
        }
        0
    }
}

fn properties(schema: &Value) -> Vec<&str> {
    schema["properties"].as_object().map(|fields| fields.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// A part of a JSON pointer (RFC 6901).
#[must_use]
pub fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn unknown_field(pointer: &str, name: &str, fields: &[&str]) -> Problem {
    let help = match suggest(name, fields.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the fields here are {}", listed(fields, 20)),
    };
    let message = format!("unknown field `{}`", short(name));
    let pointer = format!("{pointer}/{}", escape(name));
    Problem { code: Code::UnknownField, pointer, on_key: true, message, help: Some(help) }
}

fn missing(pointer: String, name: &str, schema: &Value) -> Problem {
    let about = schema["properties"][name]["description"].as_str().map(|text| format!("`{name}`: {text}"));
    let message = format!("the field `{name}` is missing");
    Problem { code: Code::MissingField, pointer, on_key: true, message, help: about }
}

fn wrong(pointer: String, value: &Value, schema: &Value, kind: &Fault, fallback: &str) -> Problem {
    let shown = show(value);
    let expects = schema["x-expects"].as_str();
    let mut help = hint(value, schema);
    let mut code = Code::WrongValue;
    let message = match (kind, value.as_str()) {
        (Fault::Format { format }, Some(text)) => {
            let found =
                scalars::check(format, text).err().map_or_else(|| fallback.to_owned(), |error| error.to_string());
            if found.contains("host bits") {
                code = Code::HostBits;
            }
            found
        }
        (Fault::Enum { options }, _) => {
            let options: Vec<&str> = options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let field = pointer.rsplit('/').next().unwrap_or_default();
            let near = value.as_str().and_then(|v| suggest(v, options.iter().copied()));
            let near = near.map(|near| format!("did you mean `{near}`?"));
            let only = match &options[..] {
                [one] => format!("write `{one}`"),
                more => format!("the values are {}", listed(more, 20)),
            };
            help = Some(near.unwrap_or(only));
            if schema["x-later"].as_array().is_some_and(|later| later.contains(value)) {
                code = Code::NotYet;
                format!("`{field}: {}` is not supported yet", shown.trim_matches('`'))
            } else {
                format!("{shown} is not a value of `{field}`")
            }
        }
        (Fault::Constant { expected_value }, _) => {
            help = Some(format!("write {}", show(expected_value)));
            format!("{shown} is not {}", show(expected_value))
        }
        (Fault::Minimum { limit }, _) if expects.is_none() => format!("{shown} is below the smallest value, {limit}"),
        (Fault::Maximum { limit }, _) if expects.is_none() => format!("{shown} is above the largest value, {limit}"),
        (Fault::MinItems { limit }, _) => format!("the list needs at least {}", plural(*limit, "entry")),
        (Fault::MaxItems { limit }, _) => format!("the list has more than {}", plural(*limit, "entry")),
        (_, _) if value.is_null() => "a value is missing".to_owned(),
        _ => match (expects, schema["type"].as_str()) {
            (Some(expects), _) => format!("{shown} is not {expects}"),
            (None, Some(wanted)) => format!("{shown} is not {}", article(wanted)),
            (None, None) => fallback.to_owned(),
        },
    };
    Problem { code, pointer, on_key: false, message, help }
}

fn article(kind: &str) -> &str {
    match kind {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        other => other,
    }
}

fn hint(value: &Value, schema: &Value) -> Option<String> {
    let wanted = schema["type"].as_str().unwrap_or_default();
    let expects = schema["x-expects"].as_str().unwrap_or_default();
    match value {
        Value::Number(number) => with_unit(number, expects).or_else(|| {
            let text = wanted == "string" && expects.is_empty();
            text.then(|| format!("quote it: \"{number}\""))
        }),
        Value::String(text) if expects.starts_with("a name") => tamed(text),
        Value::Null => Some("give it a value, or delete the field".into()),
        Value::String(text) if wanted == "boolean" => match text.to_lowercase().as_str() {
            "yes" | "on" | "y" => Some("write `true`".into()),
            "no" | "off" | "n" => Some("write `false`".into()),
            _ => None,
        },
        Value::Bool(_) if wanted == "string" && expects.is_empty() => Some(format!("quote it: \"{value}\"")),
        _ if wanted == "object" => {
            let fields: Vec<&String> = schema["properties"].as_object()?.keys().collect();
            Some(format!("write a mapping; its fields are {}", listed(&fields, 8)))
        }
        _ if wanted == "array" && !value.is_array() => {
            Some(format!("write it as a list: [{}]", show(value).trim_matches('`')))
        }
        _ => None,
    }
}

/// The number with the unit that was probably meant.
fn with_unit(number: &serde_json::Number, expects: &str) -> Option<String> {
    if expects.contains("duration") {
        return Some(format!("write `{number}s` or `{number}ms`"));
    }
    if expects.contains("percentage") {
        let share = number.as_f64().filter(|share| (0.0..=100.0).contains(share))?;
        let percent = if share < 1.0 { (share * 1e6).round() / 1e4 } else { share };
        return Some(format!("write `{percent}%`"));
    }
    let rate: crate::units::Rate = format!("{number}bit").parse().ok().filter(|_| expects.contains("rate"))?;
    Some(format!("write `{rate}`"))
}

/// A text as a name, where little has to be changed.
fn tamed(text: &str) -> Option<String> {
    let tame = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: crate::units::Name = text.chars().map(tame).collect::<String>().trim_matches('-').parse().ok()?;
    Some(format!("write `{name}`"))
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{}`", short(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
        other => format!("`{other}`"),
    }
}

/// At most 60 characters of a text.
fn short(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(59).chain(['…']).collect() }
}
