//! What `plan`, `apply`, `teardown` and `run` have in common: settings, configuration, kernel, journal.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Exit, Failure};
use crate::{
    apply::{Outcome as Applied, Recovery},
    clock,
    config::{Snapshot, commit::Signature},
    diag::{self, Diagnostic},
    engine::{self, Active, ConfigError, Origin, Whence, router::Router},
    failover::{self, Selection},
    health::{Healths, Measures},
    kernel::{
        Kernel, KernelError,
        linux::{Linux, has_net_admin},
        lock::{Lock, LockError},
    },
    settings::{Settings, Source},
    source::{
        self,
        git::{Follower, GitError, Reason, Way},
    },
    store::{self, LastGood, Ledger},
    units::{Name, plural},
    validate::{self, intent::Site},
};

const RUNTIME_VARIABLE: &str = "PATRONUS_RUNTIME_DIR";
const SOCKET_NAME: &str = "patronus.sock";

/// Where this router's own settings come from.
#[derive(Debug, Clone, clap::Args)]
pub struct RouterArgs {
    /// Settings of this router [default: /etc/patronus/patronus.yaml if it is there]
    #[arg(long, value_name = "FILE", env = "PATRONUS_CONFIG")]
    pub config: Option<PathBuf>,
    /// Site that this router is, in place of the settings' one
    #[arg(long, value_name = "NAME", env = "PATRONUS_SITE")]
    pub site: Option<Name>,
    /// State directory, in place of the settings' one
    #[arg(long, value_name = "DIR", env = "PATRONUS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory for the lock and the socket, in place of the settings' one
    #[arg(long, value_name = "DIR", env = RUNTIME_VARIABLE)]
    pub runtime_dir: Option<PathBuf>,
    /// Control socket of the daemon, in place of the settings' one
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE)]
    pub socket: Option<PathBuf>,
}

/// Environment variable that names the control socket, for every verb that asks the daemon.
pub const SOCKET_VARIABLE: &str = "PATRONUS_SOCKET";

/// Where the daemon of this router listens, for verbs that need nothing else of the settings. Settings that cannot be
/// read are no reason not to ask.
pub fn socket() -> PathBuf {
    match std::env::var_os(RUNTIME_VARIABLE) {
        Some(dir) => Path::new(&dir).join(SOCKET_NAME),
        None => usual().socket,
    }
}

/// Where it keeps its records, for the same verbs.
pub fn state_dir() -> PathBuf {
    usual().state_dir
}

fn usual() -> Settings {
    Settings::load(None, |name| std::env::var(name).ok()).unwrap_or_default()
}

/// Settings with what the command line says in their place; `dir` is the configuration to use instead of the
/// settings' source.
pub fn settings(args: &RouterArgs, dir: Option<PathBuf>) -> Result<Settings, Failure> {
    let mut settings = Settings::load(args.config.as_deref(), |name| std::env::var(name).ok())
        .map_err(|error| Failure::new(Exit::Settings, crate::units::chain(&error)))?;
    settings.source = dir.map(Source::Dir).or(settings.source);
    settings.site = args.site.clone().or(settings.site);
    if let Some(dir) = &args.state_dir {
        settings.state_dir.clone_from(dir);
    }
    if let Some(dir) = &args.runtime_dir {
        settings.socket = dir.join(SOCKET_NAME);
        settings.runtime_dir.clone_from(dir);
    }
    if let Some(socket) = &args.socket {
        settings.socket.clone_from(socket);
    }
    Ok(settings)
}

/// Where the configuration comes from.
fn whence(settings: &Settings) -> Result<Whence, Failure> {
    let missing = "no configuration: name a directory, or give the settings a `source: {dir: PATH}`";
    match &settings.source {
        Some(Source::Dir(dir)) => Ok(Whence::Dir(dir.clone())),
        Some(Source::Git(spec)) => Ok(Whence::Git(Follower::new((**spec).clone(), &settings.state_dir))),
        None => Err(Failure::new(Exit::Settings, missing)),
    }
}

/// Which site the daemon is for, and where its configuration comes from.
pub fn origin(settings: &Settings) -> Result<Origin, Failure> {
    let missing = "which site is this router? Give the settings a `site: NAME`, or add --site NAME";
    Ok(Origin {
        site: settings.site.clone().ok_or_else(|| Failure::new(Exit::Settings, missing))?,
        source: whence(settings)?,
        options: settings.check_options(),
    })
}

/// Stands for the site where none is named.
pub fn nameless() -> Name {
    "this-router".parse().unwrap_or_else(|_| unreachable!("a constant name is valid"))
}

/// Reads and checks the configuration; prints what it finds to standard error. Of a repository it is what was fetched
/// last; only if that is nothing, it is fetched now.
pub async fn configuration(settings: &Settings) -> Result<Active, Failure> {
    let unreadable = |error: &dyn std::error::Error| Failure::error("cannot read the configuration", error);
    let (snapshot, place) = match whence(settings)? {
        Whence::Dir(dir) => (source::read(&dir).map_err(|error| unreadable(&error))?, dir.display().to_string()),
        Whence::Git(follower) => {
            let snapshot = fetched(&follower).await.map_err(|error| unreadable(&error))?;
            let place = format!("{} at {}", follower.spec().url, snapshot.revision);
            (snapshot, place)
        }
    };
    activate(snapshot, settings).map_err(|error| match error {
        ConfigError::Invalid(config, found) => {
            show(&found, &config);
            let errors = found.iter().filter(|d| d.severity == diag::Severity::Error).count();
            Failure::new(Exit::Config, format!("{place} has {}; nothing was changed", plural(errors, "error")))
        }
        ConfigError::NoSite(..) => {
            let lines = error.lines().join("\n");
            Failure::new(Exit::Settings, format!("{lines}; name one with --site or in the settings"))
        }
    })
}

async fn fetched(follower: &Follower) -> Result<Snapshot, GitError> {
    match follower.stored(None).await {
        Err(error) if error.reason == Reason::Empty => Ok(follower.fetch(vec![Way::default()], None).await?.snapshot),
        known => known,
    }
}

/// Says no to a commit that must not be put in force, whoever asks.
pub fn signed(active: &Active) -> Result<(), Failure> {
    let why = match active.commit.as_ref().map(|commit| &commit.signature) {
        Some(Signature::Missing) => "it is not signed",
        Some(Signature::Bad { reason }) => reason,
        _ => return Ok(()),
    };
    let text = format!("the settings ask for signed commits, and {} must not be applied: {why}", active.revision);
    Err(Failure::new(Exit::Config, text))
}

pub fn activate(snapshot: Snapshot, settings: &Settings) -> Result<Active, ConfigError> {
    engine::activate(snapshot, settings.site.as_ref(), &settings.check_options())
}

/// Says what of a work tree a router that follows the repository would refuse, once it is committed.
pub fn warn_of_refused(dir: &Path) {
    for (path, what) in source::local::refused(dir) {
        let remedy = if what == "is executable" { "chmod a-x" } else { "write a plain file in its place; rm" };
        let text = format!(
            "warning: {0} {what}: once it is committed, routers that follow this repository refuse the whole commit; \
             {remedy} {0}\n",
            path.display()
        );
        // A closed standard error is nobody's loss.
        let _ = write!(anstream::stderr(), "{text}");
    }
}

fn show(found: &[Diagnostic], config: &crate::config::Config) {
    let text = diag::terminal(found, config.sources(), true);
    // A closed standard error is nobody's loss.
    let _ = write!(anstream::stderr(), "{text}");
}

/// Connects to the kernel.
pub fn kernel() -> Result<Linux, Failure> {
    Linux::connect().map_err(|error| from_kernel("cannot use this machine's kernel", &error))
}

/// A kernel error with the right exit status.
pub fn from_kernel(doing: &str, error: &KernelError) -> Failure {
    match error {
        KernelError::Privilege { .. } => Failure::new(Exit::Privilege, error.to_string()),
        KernelError::Missing { .. } => Failure::new(Exit::Error, error.to_string()),
        other => Failure::error(doing, other),
    }
}

/// Says what a verb that changes the kernel needs, before it fails half-way.
pub fn privilege(verb: &str) -> Result<(), Failure> {
    if has_net_admin() {
        return Ok(());
    }
    let text = format!(
        "`{verb}` changes the network, and that needs the capability CAP_NET_ADMIN\n  \
         run it as root, or as a service with `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`"
    );
    Err(Failure::new(Exit::Privilege, text))
}

/// Takes the lock of this network namespace.
pub fn lock(settings: &Settings, command: &str) -> Result<Lock, Failure> {
    Lock::acquire(&settings.runtime_dir, command).map_err(|error| match &error {
        LockError::Busy { holder } => Failure::new(Exit::Busy, format!("{error}\n  {}", remedy(holder))),
        LockError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            let failure = Failure::error("cannot take the lock of this router", &error);
            let text =
                format!("{}\n  run it as the daemon's user or as root, or add --runtime-dir DIR", failure.message);
            Failure::new(Exit::Privilege, text)
        }
        LockError::Io { .. } => {
            let failure = Failure::error("cannot take the lock of this router", &error);
            Failure::new(failure.exit, format!("{}\n  --runtime-dir names another directory for it", failure.message))
        }
    })
}

/// What to do about a router that is held.
fn remedy(holder: &str) -> &'static str {
    if holder.contains("`run`") {
        "the daemon follows its source by itself; `patronus reconcile` has it look now\n  \
         to work by hand, stop it first: systemctl stop patronus   (traffic goes on as it is)"
    } else {
        "wait until it has ended, then try again"
    }
}

/// The journal for whoever only looks: it creates nothing, changes nothing, and no daemon notices.
pub fn ledger_to_read(settings: &Settings) -> Ledger {
    warned(Ledger::open_to_read(&settings.state_dir))
}

/// The journal for whoever settles what stands in it, if there is one.
pub fn existing_ledger(settings: &Settings) -> Ledger {
    if store::journal_file(&settings.state_dir).exists() { ledger(settings) } else { Ledger::memory() }
}

/// The journal.
pub fn ledger(settings: &Settings) -> Ledger {
    warned(Ledger::open(&settings.state_dir))
}

fn warned((ledger, alarm): (Ledger, Option<String>)) -> Ledger {
    if let Some(alarm) = alarm {
        tracing::warn!("{alarm}");
    }
    ledger
}

/// Settles what an earlier process left open, and says so.
pub async fn recover(router: &mut Router<Linux>) -> Result<(), Failure> {
    let recovery =
        router.recover().await.map_err(|error| Failure::error("cannot settle an interrupted change", &error))?;
    if let Recovery::Settled { stamp, report } = recovery {
        let how = match report.outcome {
            Applied::Applied => "finished",
            Applied::RolledBack { .. } => "undone",
            _ => {
                return Err(Failure::new(
                    Exit::Error,
                    format!("{stamp} was interrupted and could be neither finished nor undone: {:?}", report.outcome),
                ));
            }
        };
        tracing::warn!(%stamp, "an interrupted change was {how}");
    }
    Ok(())
}

/// What a plan needs to know of the time before it.
pub struct Memory {
    /// The path choice.
    pub selection: Option<Selection>,
    /// The configuration in force.
    pub last_good: Option<LastGood>,
}

impl Memory {
    /// What a router remembers.
    pub fn of<K: Kernel>(router: &Router<K>) -> Self {
        Self { selection: router.remembered_selection(), last_good: router.ledger.in_force() }
    }
}

/// The path choice that holds for a site: the remembered one where it still fits, else the primaries.
pub fn selection(memory: &Memory, active: &Active) -> Selection {
    let remembered = memory.selection.clone().unwrap_or_default();
    let (selection, _) = failover::select(&active.site, &Healths::new(), &Measures::new(), &remembered, clock::now());
    selection
}

/// The configuration in force before, if it is known and still valid; `new` is the one that shall be.
pub fn in_force(memory: &Memory, settings: &Settings, new: &Active) -> Option<Active> {
    let good = memory.last_good.clone()?;
    if good.revision == new.revision && good.files == new.files {
        return Some(new.clone());
    }
    let snapshot = Snapshot { revision: good.revision, files: good.files, commit: None };
    activate(snapshot, settings).ok()
}

/// A configuration from the store, checked once more.
pub fn again(settings: &Settings, kept: store::LastGood) -> Result<Active, Failure> {
    let revision = kept.revision.clone();
    let snapshot = crate::config::Snapshot { revision: kept.revision, files: kept.files, commit: None };
    activate(snapshot, settings).map_err(|error| {
        Failure::new(Exit::Config, format!("revision {revision} is not valid any more: {}", error.lines().join("; ")))
    })
}

/// The sites of a directory, for the lab.
pub fn sites(dir: &Path) -> Result<BTreeMap<Name, Site>, Failure> {
    let snapshot = source::read(dir).map_err(|error| Failure::error("cannot read the configuration", &error))?;
    let (config, mut found) = crate::config::load(&snapshot);
    let (intent, more) = validate::check(&config);
    found.extend(more);
    show(&found, &config);
    let invalid = || Failure::new(Exit::Config, format!("{} has errors", dir.display()));
    Ok(intent.ok_or_else(invalid)?.sites().clone())
}
