//! What is told, and the template of a webhook's body. Pure.

use minijinja::{Environment, UndefinedBehavior, Value};
use serde::Serialize;

use super::Parcel;
use crate::{
    engine::status::Event,
    units::{Name, plural},
};

/// Longest subject in characters.
const SUBJECT: usize = 120;

/// What is told: what programs get as JSON, and templates as variables.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// 1.
    pub format_version: u32,
    /// The site.
    pub site: Name,
    /// One line.
    pub subject: String,
    /// One line an event.
    pub text: String,
    /// The events.
    pub events: Vec<Event>,
    /// How many older ones are left out.
    pub more: u64,
    /// Whether it tells of something that is some time ago: nobody could be told at once, or so many messages were not
    /// wanted.
    pub late: bool,
}

impl Message {
    /// The message of what is to be told.
    #[must_use]
    pub fn new(site: &Name, parcel: &Parcel) -> Self {
        Self::of(site, parcel.events(), parcel.more, parcel.late)
    }

    pub(super) fn of(site: &Name, events: Vec<Event>, more: u64, late: bool) -> Self {
        let line = |event: &Event| clean(&format!("{}: {}", event.kind, event.message));
        let others = events.len().saturating_sub(1) as u64 + more;
        let others = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        let first = events.first().map(line).unwrap_or_default();
        let when =
            events.first().filter(|_| late).map(|first| format!("late, of {:.0}: ", first.at)).unwrap_or_default();
        let subject = format!("[{site}] {when}{}{others}", first.chars().take(SUBJECT).collect::<String>());
        let older = (more > 0).then(|| format!("{} left out", plural(more, "older event")));
        let lines = older.into_iter().chain(events.iter().map(|event| format!("{} {}", event.at, line(event))));
        let text = lines.collect::<Vec<_>>().join("\n") + "\n";
        Self { format_version: 1, site: site.clone(), subject, text, events, more, late }
    }

    /// The message as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// One that says that it is a test.
    #[must_use]
    pub fn test(site: &Name, at: crate::clock::Wall) -> Self {
        let message = "a test of the notifications: nothing has happened".to_owned();
        let detail = serde_json::Value::Null;
        let event = Event { id: 0, at, kind: "test".into(), subject: String::new(), message, detail };
        Self::of(site, vec![event], 0, false)
    }
}

/// Text of commits and programs on one line: a mail's header must not gain another.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A body by its template. What is not there is an error; `|json` writes a value as JSON, quotes included.
pub fn render(template: &str, message: &Message) -> Result<String, String> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_filter("json", |value: Value| {
        serde_json::to_string(&value)
            .map(Value::from_safe_string)
            .map_err(|error| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string()))
    });
    let context = minijinja::value::Serde(message);
    env.render_str(template, context).map_err(|error| match error.line() {
        Some(line) => format!("{error} (line {line} of the template)"),
        None => error.to_string(),
    })
}
