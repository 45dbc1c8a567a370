//! What the checks are made from: plain values, so that a test can say whatever it likes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    foreign::{Surroundings, programs::Process},
    settings::Settings,
    state::{Observed, State},
    units::IfName,
    validate::intent::Site,
};

/// A machine and what it is to do.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The settings; the defaults if they cannot be read.
    pub settings: Settings,
    /// What is wrong with them, on one line.
    pub settings_error: Option<String>,
    /// The file that they are in.
    pub settings_file: PathBuf,
    /// The configuration.
    pub configuration: Configuration,
    /// Texts of files below `/proc`, `/etc` and so on, by their absolute path; absent ones are absent.
    pub texts: BTreeMap<PathBuf, String>,
    /// Directories and files that matter, by their absolute path; absent ones are absent.
    pub places: BTreeMap<PathBuf, Place>,
    /// The kernel, or why it cannot be looked at.
    pub kernel: Result<Kernel, String>,
    /// What was applied last since the boot, if anything was.
    pub applied: Option<State>,
    /// What `nft --version` says; nothing without the program.
    pub nft: Option<String>,
    /// Who runs.
    pub processes: Vec<Process>,
    /// Who looks: effective user and capabilities.
    pub user: u32,
    /// Capabilities, as a set of bits.
    pub capabilities: u64,
    /// Who holds the lock of this network namespace, if anybody does.
    pub holder: Option<String>,
    /// Whether a daemon answers on the control socket.
    pub daemon: bool,
    /// The metrics port.
    pub metrics: Port,
    /// Seconds since 1970 and since the boot.
    pub wall: i64,
    /// Seconds since the boot.
    pub uptime: u64,
    /// The time zone database that programs use has this zone; for change windows.
    pub zones: bool,
}

/// The configuration and the site in it.
#[derive(Debug, Clone)]
pub enum Configuration {
    /// The settings name no source.
    Unnamed,
    /// It is in a Git repository, and nothing of it has been applied yet.
    Unfetched,
    /// It cannot be read.
    Unreadable(String),
    /// It has errors, or not this site.
    Invalid(String),
    /// The site that this router is.
    Site(Arc<Site>),
}

/// A file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// It is a directory.
    pub directory: bool,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub owner: u32,
    /// Whoever looks may write there.
    pub writable: bool,
    /// Its file system is mounted read-only.
    pub read_only: bool,
    /// Bytes free and in all, of its file system.
    pub bytes: (u64, u64),
    /// Inodes free and in all; (0, 0) where there is no such limit.
    pub inodes: (u64, u64),
}

/// The metrics port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// The settings want none.
    Off,
    /// It is free.
    Free,
    /// It cannot be had.
    Refused(String),
}

/// What the kernel shows.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    /// Our objects and the interfaces.
    pub observed: Observed,
    /// What others have.
    pub around: Surroundings,
    /// Neighbours: whether the kernel has a link-layer address for them that it believes.
    pub neighbours: BTreeMap<(IfName, IpAddr), bool>,
    /// Experiments in an empty network namespace.
    pub trials: Trials,
}

/// Experiments.
#[derive(Debug, Clone, Default)]
pub struct Trials {
    /// Our ruleset is loaded.
    pub ruleset: Trial,
    /// A rule that sets connection marks is loaded.
    pub connection_mark: Trial,
    /// A VXLAN interface is made.
    pub vxlan: Trial,
    /// Rules by mark are added for both families.
    pub rules: Trial,
}

/// How an experiment ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trial {
    /// It works.
    Works,
    /// It does not.
    Fails(String),
    /// It was not made.
    #[default]
    Untried,
}

impl Facts {
    /// The text of a file, if it is there.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(Path::new(path)).map(String::as_str)
    }

    /// A sysctl by its path below `/proc/sys/net`.
    #[must_use]
    pub fn sysctl(&self, path: &str) -> Option<&str> {
        self.text(&format!("/proc/sys/net/{path}")).map(str::trim)
    }

    /// The texts of files in a directory, in the order of their names.
    pub fn texts_below<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = (&'a Path, &'a str)> {
        let below = self.texts.iter().filter(move |(path, _)| path.starts_with(directory));
        below.map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// The process of this name, if it runs.
    #[must_use]
    pub fn runs(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// The site, if it is known.
    #[must_use]
    pub fn site(&self) -> Option<&Site> {
        match &self.configuration {
            Configuration::Site(site) => Some(site),
            _ => None,
        }
    }
}
