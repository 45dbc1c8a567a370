//! The router's own settings, which no commit can move: `/etc/patronus/patronus.yaml`.
//!
//! Invariant: unknown fields and values out of range are refused with the same diagnostics as the
//! configuration's; flags and environment are applied by the caller afterwards.

mod git;
mod guard;
mod notify;
mod report;
mod webhook;

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::{
        MAX_FILE,
        schema::{self, Problem, Schema},
        yaml,
    },
    diag::{self, Code, Diagnostic, Sources},
    drift::Modes,
    forge,
    guard::Rules,
    notify::Channel,
    source,
    state::Ranges,
    units::{MarkMask, Name, Span},
    validate,
};

pub use self::webhook::Webhook;

/// Where the settings are read from when nothing else is said.
pub const PATH: &str = "/etc/patronus/patronus.yaml";
/// Environment variable that names another file.
pub const PATH_VARIABLE: &str = "PATRONUS_CONFIG";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("cannot read the settings {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is wrong; the text is ready for a terminal.
    #[error("the settings {path} are wrong:\n{rendered}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// All that is wrong, rendered without colour.
        rendered: String,
        /// The same as values.
        found: Vec<Diagnostic>,
    },
}

/// The router's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which site this router is; needed by everything but inspection.
    pub site: Option<Name>,
    /// Where the configuration comes from.
    pub source: Option<Source>,
    /// Where the database lives.
    pub state_dir: PathBuf,
    /// Where lock and socket live.
    pub runtime_dir: PathBuf,
    /// Where metrics are served; `None` = nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where STAMP is answered; `None` = nowhere.
    pub stamp: Option<SocketAddr>,
    /// The webhook of a forge; `None` = nobody listens.
    pub webhook: Option<Webhook>,
    /// Whom to tell what became of a commit; `None` = nobody.
    pub report: Option<forge::Spec>,
    /// Who is told of what happens, and how.
    pub notify: Vec<Channel>,
    /// Whether the wall clock is kept on UTC, so that delays of one direction mean something.
    pub clock_synchronised: bool,
    /// The control socket.
    pub socket: PathBuf,
    /// What may be changed, when, and whether it stands.
    pub guard: Rules,
    /// Marks, tables, priorities and protocol number.
    pub ranges: Ranges,
    /// What is done about changes that others make to our objects.
    pub drift: Modes,
    /// Who may sign saved plans; with a file, none without a signature is carried out.
    pub plan_signers: Option<PathBuf>,
    /// How long samples and events are kept; samples only as far as there is room.
    pub retention: Duration,
}

/// Where the configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory that is watched.
    Dir(PathBuf),
    /// A repository that is fetched.
    Git(Box<source::git::Spec>),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            site: None,
            source: None,
            state_dir: "/var/lib/patronus".into(),
            runtime_dir: "/run/patronus".into(),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9469))),
            stamp: None,
            webhook: None,
            report: None,
            notify: Vec::new(),
            clock_synchronised: false,
            socket: "/run/patronus/patronus.sock".into(),
            guard: Rules::default(),
            ranges: Ranges::default(),
            drift: Modes::default(),
            plan_signers: None,
            retention: Duration::from_secs(30 * 86_400),
        }
    }
}

impl Settings {
    /// Reads the settings: from `path` if given, else from the file that `PATRONUS_CONFIG` names, else from
    /// [`PATH`]. Only the last may be absent: then the defaults hold.
    pub fn load(path: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let named = path.map(Path::to_path_buf).or_else(|| env(PATH_VARIABLE).map(PathBuf::from));
        let file = named.clone().unwrap_or_else(|| PATH.into());
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&file).and_then(|f| f.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SettingsError::Read { path: file, source }),
        }
        Self::parse(&file.to_string_lossy(), &bytes)
    }

    /// Reads settings from the bytes of a file.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, SettingsError> {
        let mut sources = Sources::default();
        let text = String::from_utf8_lossy(bytes);
        let (settings, mut found) = read(file, &text, bytes, &mut sources);
        diag::sort(&mut found);
        match settings {
            Some(settings) if !diag::has_errors(&found) => Ok(settings),
            _ => {
                let rendered = diag::terminal(&found, &sources, false).trim_end().to_owned();
                Err(SettingsError::Invalid { path: file.into(), rendered, found })
            }
        }
    }

    /// The directory that is the source, if one is.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.source {
            Some(Source::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    /// What the settings say that bears on the configuration.
    #[must_use]
    pub fn check_options(&self) -> validate::Options {
        validate::Options {
            target_mask: self.ranges.target_mask,
            policy_mask: self.ranges.policy_mask,
            protected: self.guard.protected.prefixes.clone(),
        }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    /// Which site this router is.
    site: Option<Name>,
    /// Where the configuration comes from.
    source: Option<SourceFile>,
    /// Where the database lives. Default `/var/lib/patronus`.
    state_dir: Option<PathBuf>,
    /// Where lock and socket live. Default `/run/patronus`.
    runtime_dir: Option<PathBuf>,
    /// Addresses that are listened on.
    listen: Option<Listen>,
    /// The webhook of a forge.
    webhook: Option<webhook::WebhookFile>,
    /// What became of a commit is told to the forge that it came from.
    report: Option<report::ReportFile>,
    /// Who is told of what happens, and how. Default: nobody.
    notify: Vec<notify::ChannelFile>,
    /// Whether chrony, PTP or the like keeps the wall clock on UTC within about a millisecond. STAMP then tells the
    /// delay of each direction, if the other end says so too. Default false.
    clock_synchronised: bool,
    /// The control socket. Default `patronus.sock` in `runtimeDir`.
    socket: Option<PathBuf>,
    /// Management access that no commit may cut off.
    protected: guard::ProtectedFile,
    /// How large a change may be before somebody has to say that it is meant.
    limits: guard::LimitsFile,
    /// How a new revision proves that it has cut nothing off.
    confirm: guard::ConfirmFile,
    /// When a new revision may be put in force. Default: always.
    windows: Vec<guard::WindowFile>,
    /// Marks, tables, priorities and protocol number.
    ranges: RangesFile,
    /// What is done about changes that others make to our objects: `repair`, `report` or `ignore` for each kind.
    drift: Modes,
    /// Saved plans (`plan --out`, `apply FILE`).
    plans: PlansFile,
    /// How long samples and events are kept. Default 30d.
    retention: Option<Span>,
}

/// Where the configuration comes from: exactly one of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    /// A directory that is watched.
    dir: Option<PathBuf>,
    /// A Git repository that is followed.
    git: Option<git::GitFile>,
}

/// Addresses that are listened on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Listen {
    /// Address and port of the metrics, or `none`. Default `127.0.0.1:9469`.
    metrics: Option<String>,
    /// Address and port where STAMP (RFC 8762) is answered, so that other routers can measure the path to this one, or
    /// `none`. Default `none`; the usual port is 862.
    stamp: Option<String>,
    /// Address and port of the webhook of a forge, or `none`. Default `none`; it needs a `webhook` with its secret.
    webhook: Option<String>,
}

/// Saved plans.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PlansFile {
    /// Who may sign them, in the format of `ssh-keygen(1)`; one without a signature is then refused. Default: anybody's
    /// plan is taken.
    allowed_signers: Option<PathBuf>,
}

/// Marks, tables, priorities and protocol number.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RangesFile {
    /// Mark bits that number targets. Default 0xff000000.
    target_mask: Option<MarkMask>,
    /// Connection mark bits that number policies. Default 0x0000ffff.
    policy_mask: Option<MarkMask>,
    /// Target `t` has table `tableBase + t`. Default 20000.
    #[schemars(range(min = 256, max = 1_000_000_000))]
    table_base: Option<u32>,
    /// Target `t` has rule priority `priorityBase + t`. Default 20000.
    #[schemars(range(min = 11, max = 32000))]
    priority_base: Option<u32>,
    /// Protocol number of our routes and rules. Default 157.
    #[schemars(range(min = 5, max = 255))]
    protocol: Option<u8>,
}

fn read(file: &str, text: &str, bytes: &[u8], sources: &mut Sources) -> (Option<Settings>, Vec<Diagnostic>) {
    let name = sources.add(file, text);
    let at = |from: usize| diag::Span::new(&name, from..from + 1);
    if bytes.len() > MAX_FILE {
        return (None, vec![Diagnostic::error(Code::Limit, format!("more than {MAX_FILE} bytes")).at(at(0))]);
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        return (None, vec![Diagnostic::error(Code::Encoding, "the file is not UTF-8").at(at(error.valid_up_to()))]);
    }
    let mut parsed = yaml::parse(&name, text);
    let mut found = std::mem::take(&mut parsed.found);
    let Some(document) = parsed.documents.first() else { return (Some(Settings::default()), found) };
    if let Some(second) = parsed.documents.get(1) {
        found.push(Diagnostic::error(Code::Syntax, "the settings are one document").at(second.value_at("")));
    }
    // Made here and gone again: it is large, and settings are read once.
    let problems = Schema::new(schema::generate::<File>()).problems(&document.value);
    found.extend(problems.iter().map(|problem| place(document, problem)));
    if !problems.is_empty() {
        return (None, found);
    }
    match File::deserialize(&document.value) {
        Ok(file) => (build(file, document, &mut found), found),
        Err(error) => {
            found.push(Diagnostic::error(Code::WrongValue, error.to_string()).at(document.value_at("")));
            (None, found)
        }
    }
}

fn place(document: &yaml::Document, problem: &Problem) -> Diagnostic {
    let at = if problem.on_key { document.key_at(&problem.pointer) } else { document.value_at(&problem.pointer) };
    let found = Diagnostic::error(problem.code, problem.message.clone()).at(at);
    match &problem.help {
        Some(help) => found.help(help.clone()),
        None => found,
    }
}

fn build(file: File, document: &yaml::Document, found: &mut Vec<Diagnostic>) -> Option<Settings> {
    let default = Settings::default();
    let ranges = ranges(&file.ranges, default.ranges, document, found);
    let listen = file.listen.unwrap_or_default();
    let metrics = match listen.metrics {
        None => default.metrics,
        Some(text) => address(&text, ("/listen/metrics", "127.0.0.1:9469", "[::1]:9469"), document, found)?,
    };
    let stamp = match listen.stamp {
        None => default.stamp,
        Some(text) => address(&text, ("/listen/stamp", "0.0.0.0:862", "[::]:862"), document, found)?,
    };
    let hook = match listen.webhook {
        Some(text) => address(&text, ("/listen/webhook", "0.0.0.0:9470", "[::]:9470"), document, found)?,
        None => None,
    };
    let webhook = webhook::build(hook, file.webhook, document, found);
    let notify = notify::channels(file.notify, document, found);
    let source = file.source.and_then(|source| self::source(source, document, found));
    let report = report::build(file.report, source.as_ref(), document, found);
    let rules = Rules {
        protected: file.protected.build(),
        limits: file.limits.build(),
        confirm: file.confirm.build(document, found),
        windows: guard::windows(file.windows, document, found),
    };
    let runtime_dir = file.runtime_dir.unwrap_or(default.runtime_dir);
    Some(Settings {
        site: file.site,
        source,
        state_dir: file.state_dir.unwrap_or(default.state_dir),
        socket: file.socket.unwrap_or_else(|| runtime_dir.join("patronus.sock")),
        runtime_dir,
        metrics,
        stamp,
        webhook,
        report,
        notify,
        clock_synchronised: file.clock_synchronised,
        guard: rules,
        ranges,
        drift: file.drift,
        plan_signers: file.plans.allowed_signers,
        retention: file.retention.map_or(default.retention, Span::get),
    })
}

/// An address and a port, or none; nothing at all if it is neither.
#[allow(clippy::option_option)]
fn address(
    text: &str,
    (field, four, six): (&str, &str, &str),
    document: &yaml::Document,
    found: &mut Vec<Diagnostic>,
) -> Option<Option<SocketAddr>> {
    if text == "none" {
        return Some(None);
    }
    let Ok(address) = text.parse() else {
        let message = format!("`{text}` is not an address and a port");
        let here = Diagnostic::error(Code::WrongValue, message).at(document.value_at(field));
        found.push(here.help(format!("write `{four}`, `\"{six}\"`, or `none`")));
        return None;
    };
    Some(Some(address))
}

fn source(file: SourceFile, document: &yaml::Document, found: &mut Vec<Diagnostic>) -> Option<Source> {
    match (file.dir, file.git) {
        (Some(dir), None) => Some(Source::Dir(dir)),
        (None, Some(file)) => git::build(file, document, found).map(|spec| Source::Git(Box::new(spec))),
        (dir, _) => {
            let message = if dir.is_some() { "there are two sources" } else { "the source is empty" };
            let here = Diagnostic::error(Code::Combination, message).at(document.value_at("/source"));
            found.push(here.help("give either `dir: PATH` or `git: {url: ADDRESS}`"));
            None
        }
    }
}

fn ranges(file: &RangesFile, default: Ranges, document: &yaml::Document, found: &mut Vec<Diagnostic>) -> Ranges {
    let ranges = Ranges {
        target_mask: file.target_mask.unwrap_or(default.target_mask),
        policy_mask: file.policy_mask.unwrap_or(default.policy_mask),
        table_base: file.table_base.unwrap_or(default.table_base),
        priority_base: file.priority_base.unwrap_or(default.priority_base),
        protocol: file.protocol.unwrap_or(default.protocol),
    };
    let (targets, policies) = (ranges.target_mask, ranges.policy_mask);
    if targets.bits() & policies.bits() != 0 {
        let message = format!("the mask of targets {targets} and that of policies {policies} share bits");
        let here = Diagnostic::error(Code::MaskOverlap, message).at(document.value_at("/ranges"));
        found.push(here.help("the connection mark carries both: give them different bits"));
    }
    let most = 32_765_u32.saturating_sub(ranges.priority_base);
    if targets.max_number() > most {
        let message =
            format!("{} targets do not fit between priority {} and 32766", targets.max_number(), ranges.priority_base);
        let here = Diagnostic::error(Code::WrongValue, message).at(document.value_at("/ranges"));
        found.push(here.help("the main table's rule stands at 32766: lower `priorityBase` or narrow `targetMask`"));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::Mode;

    fn wrong(text: &str) -> String {
        match Settings::parse("patronus.yaml", text.as_bytes()) {
            Err(SettingsError::Invalid { rendered, .. }) => rendered,
            other => panic!("accepted: {other:?}"),
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Settings::parse("p.yaml", b"").unwrap(), Settings::default());
    }

    #[test]
    fn every_field_is_read() {
        let text = "site: berlin\nsource: {dir: /etc/net}\nstateDir: /s\nruntimeDir: /r\nlisten: {metrics: '[::1]:9'}\n\
            protected: {prefixes: [10.0.0.0/8], interfaces: [mgmt0], ports: [22]}\n\
            limits: {largestDeletion: 30%}\nconfirm: {timeout: 90s, reach: ['10.0.0.5:22']}\n\
            windows: [{kind: deny, days: [fri], from: '12:00', timeZone: Europe/Berlin}]\n\
            ranges: {targetMask: '0x00ff0000', policyMask: '0x0000ffff', tableBase: 300, priorityBase: 400, protocol: 99}\n\
            retention: 7d\ndrift: {route: report, sysctl: ignore}\nplans: {allowedSigners: /s}\n";
        let settings = Settings::parse("p.yaml", text.as_bytes()).unwrap();
        assert_eq!(settings.socket, PathBuf::from("/r/patronus.sock"));
        assert_eq!(settings.ranges.target_mask.bits(), 0x00ff_0000);
        let rules = &settings.guard;
        let protected = &rules.protected;
        assert_eq!((protected.prefixes.len(), protected.interfaces.len(), &protected.ports[..]), (1, 1, &[22][..]));
        assert_eq!(rules.limits.largest_deletion, crate::units::Ratio::of(3, 10));
        assert_eq!((rules.confirm.timeout, rules.confirm.reach.len()), (Duration::from_secs(90), 1));
        assert_eq!((rules.windows.len(), rules.windows[0].zone.iana_name()), (1, Some("Europe/Berlin")));
        assert_eq!(settings.retention, Duration::from_secs(7 * 86_400));
        let drift = Modes { route: Mode::Report, sysctl: Mode::Ignore, ..Modes::default() };
        assert_eq!(settings.drift, drift);
        assert_eq!(settings.plan_signers, Some(PathBuf::from("/s")));
        assert_eq!(settings.source, Some(Source::Dir("/etc/net".into())));
    }

    #[test]
    fn a_window_at_no_time_and_a_service_without_a_port_are_shown_where_they_stand() {
        let shown = wrong("windows: [{kind: allow, from: '8 am'}, {kind: deny, timeZone: Europe/Atlantis}]\n");
        assert!(
            shown.contains("`8 am` is not a time of day") && shown.contains("no time zone `Europe/Atlantis`"),
            "{shown}"
        );
        let shown = wrong("confirm: {reach: [10.0.0.5]}\n");
        assert!(shown.contains("is not an address and a port") && shown.contains("patronus.yaml:1:19"), "{shown}");
    }

    #[test]
    fn overlapping_masks_are_refused() {
        let shown = wrong("ranges: {policyMask: '0x0f000000'}\n");
        assert!(shown.contains("PAT0801") && shown.contains("patronus.yaml:1:9"), "{shown}");
    }

    #[test]
    fn unknown_fields_get_a_suggestion() {
        let shown = wrong("soruce: {dir: /x}\n");
        assert!(shown.contains("did you mean `source`?"), "{shown}");
    }

    #[test]
    fn only_the_default_file_may_be_absent() {
        let absent = Path::new("/nonexistent/patronus.yaml");
        assert!(matches!(Settings::load(Some(absent), |_| None), Err(SettingsError::Read { .. })));
        let env = |_: &str| Some("/nonexistent/p.yaml".to_owned());
        assert!(matches!(Settings::load(None, env), Err(SettingsError::Read { .. })));
    }

    #[test]
    fn priorities_stay_below_the_main_table() {
        let shown = wrong("ranges: {targetMask: '0xffff0000', policyMask: '0x0000ffff'}\n");
        assert!(shown.contains("do not fit"), "{shown}");
    }
}
