//! What may be printed into a ruleset.
//!
//! Invariant: nothing reaches the text that has not passed a filter for its alphabet. The formatter refuses
//! every value that no filter has marked, since nft knows no escapes.

use std::sync::LazyLock;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

pub(super) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(environment);

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_formatter(|out, _, value| {
        if !value.is_safe() {
            return Err(refuse("unfiltered value", &value.to_string()));
        }
        out.write_str(value.as_str().unwrap_or_default()).map_err(|_| refuse("write", ""))
    });
    for (filter, allowed) in ALPHABETS {
        env.add_filter(filter, move |value: &Value| checked(filter, allowed, value));
    }
    env
}

type Allowed = fn(char) -> bool;

/// What each kind of value may consist of.
const ALPHABETS: [(&str, Allowed); 13] = [
    ("comment", |c| c.is_ascii_alphanumeric() || " /-".contains(c)),
    ("name", is_name),
    ("chain", |c| is_name(c) || c == '_'),
    ("mark", |c| c.is_ascii_hexdigit() || c == 'x'),
    ("word", |c| c.is_ascii_lowercase() || c.is_ascii_digit()),
    ("number", |c| c.is_ascii_digit()),
    ("address", |c| c.is_ascii_hexdigit() || ".:".contains(c)),
    ("prefix", is_prefix),
    ("prefixes", |c| is_prefix(c) || ", ".contains(c)),
    ("interface", is_interface),
    ("interfaces", |c| is_interface(c) || ", ".contains(c)),
    ("values", |c| is_prefix(c) || is_interface(c) || "-, ".contains(c)),
    ("fields", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || " .".contains(c)),
];

const fn is_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn is_prefix(c: char) -> bool {
    c.is_ascii_hexdigit() || ".:/".contains(c)
}

fn is_interface(c: char) -> bool {
    c.is_ascii_alphanumeric() || "\"._+-".contains(c)
}

fn refuse(what: &str, value: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("refused to print {what} `{value}` into the ruleset"))
}

/// nft's comments end at 128 bytes (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub(super) const MAX_COMMENT: usize = 127;

fn checked(filter: &str, allowed: Allowed, value: &Value) -> Result<Value, Error> {
    let text = value.to_string();
    let too_long = filter == "comment" && text.len() > MAX_COMMENT;
    if text.is_empty() || too_long || !text.chars().all(allowed) {
        return Err(refuse(filter, &text));
    }
    Ok(Value::from_safe_string(text))
}
