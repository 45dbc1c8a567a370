//! The guard rails as they are written: protected networks, limits, confirmation, change windows.

use std::net::SocketAddr;

use jiff::{
    civil::{Time, Weekday},
    tz::TimeZone,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::{scalars::Prefix, yaml::Document},
    diag::{Code, Diagnostic},
    guard::{
        Confirm,
        rails::{Limits, Protected},
        window::{Effect, Window},
    },
    units::{IfName, Ratio, Span},
};

/// Management access that no commit may cut off.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ProtectedFile {
    /// Networks that manage this router.
    prefixes: Vec<Prefix>,
    /// Interfaces that no uplink, tunnel or policy may use.
    interfaces: Vec<IfName>,
    /// Ports that no policy drops or rejects by name.
    ports: Vec<u16>,
}

impl ProtectedFile {
    pub(super) fn build(self) -> Protected {
        let prefixes = self.prefixes.into_iter().map(|p| p.0).collect();
        Protected { prefixes, interfaces: self.interfaces, ports: self.ports }
    }
}

/// How large a change may be before somebody has to say that it is meant.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct LimitsFile {
    /// Largest share of the site's objects that one change may delete. Default 50%.
    largest_deletion: Option<Ratio>,
}

impl LimitsFile {
    pub(super) fn build(&self) -> Limits {
        let default = Limits::default();
        Limits { largest_deletion: self.largest_deletion.unwrap_or(default.largest_deletion) }
    }
}

/// How a new revision proves that it has cut nothing off.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfirmFile {
    /// How long it may wait for its evidence before it is undone; `0s` switches that off. Default 120s.
    timeout: Option<Span>,
    /// TCP services, as `ADDRESS:PORT`, that have to answer afterwards if they did before.
    reach: Vec<String>,
}

impl ConfirmFile {
    pub(super) fn build(&self, document: &Document, found: &mut Vec<Diagnostic>) -> Confirm {
        let wrong = self.reach.iter().enumerate().filter(|(_, text)| text.parse::<SocketAddr>().is_err());
        for (index, text) in wrong {
            let here = document.value_at(&format!("/confirm/reach/{index}"));
            let wrong = Diagnostic::error(Code::WrongValue, format!("`{text}` is not an address and a port"));
            found.push(wrong.at(here).help("write `192.0.2.10:22` or `\"[2001:db8::10]:22\"`"));
        }
        let timeout = self.timeout.map_or(Confirm::default().timeout, Span::get);
        Confirm { timeout, reach: self.reach.clone() }
    }
}

/// A weekly time at which new revisions may, or may not, be put in force.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct WindowFile {
    /// What the window does.
    kind: KindFile,
    /// Days on which it begins. Default: every day.
    #[serde(default)]
    days: Vec<Day>,
    /// When it begins, as `HH:MM`. Default `00:00`.
    from: Option<String>,
    /// When it ends, as `HH:MM`; on the next day if that is not after `from`. Default `00:00`.
    to: Option<String>,
    /// Where the clock hangs, such as `Europe/Berlin`. Default `UTC`.
    time_zone: Option<String>,
}

/// What a window does.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    /// Changes are made only inside such windows.
    Allow,
    /// No change is made inside.
    Deny,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Day> for Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Mon => Self::Monday,
            Day::Tue => Self::Tuesday,
            Day::Wed => Self::Wednesday,
            Day::Thu => Self::Thursday,
            Day::Fri => Self::Friday,
            Day::Sat => Self::Saturday,
            Day::Sun => Self::Sunday,
        }
    }
}

/// All windows; those that are wrong are told and left out.
pub(super) fn windows(files: Vec<WindowFile>, document: &Document, found: &mut Vec<Diagnostic>) -> Vec<Window> {
    let built = files.into_iter().enumerate();
    built.filter_map(|(index, file)| window(file, &format!("/windows/{index}"), document, found)).collect()
}

fn window(file: WindowFile, at: &str, document: &Document, found: &mut Vec<Diagnostic>) -> Option<Window> {
    let mut wrong = |field: &str, message: String, help: &str| {
        let here = document.value_at(&format!("{at}/{field}"));
        found.push(Diagnostic::error(Code::WrongValue, message).at(here).help(help));
    };
    let mut time = |field: &str, text: Option<&String>| {
        let Some(text) = text else { return Some(Time::midnight()) };
        let parsed = Time::strptime("%H:%M", text).ok();
        if parsed.is_none() {
            wrong(field, format!("`{text}` is not a time of day"), "write `\"08:00\"`");
        }
        parsed
    };
    let (from, to) = (time("from", file.from.as_ref()), time("to", file.to.as_ref()));
    let zone = file.time_zone.as_ref().map_or(Some(TimeZone::UTC), |name| TimeZone::get(name).ok());
    if let (None, Some(name)) = (&zone, &file.time_zone) {
        let help = "`timedatectl list-timezones` lists those it knows (package tzdata)";
        wrong("timeZone", format!("this machine knows no time zone `{name}`"), help);
    }
    let effect = match file.kind {
        KindFile::Allow => Effect::Allow,
        KindFile::Deny => Effect::Deny,
    };
    Some(Window { effect, days: file.days.into_iter().map(Into::into).collect(), from: from?, to: to?, zone: zone? })
}
