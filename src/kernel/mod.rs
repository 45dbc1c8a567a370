//! The port to the kernel: look, do one step, be told of changes.
//!
//! Invariant: kernel operations are idempotent here and only here, by errno. Deleting the absent is Ok,
//! adding the equal is Ok; any other errno is a [`KernelError`] that reaches the journal and the user.

pub mod fake;
pub mod linux;
pub mod lock;

use std::future::Future;

use crate::{
    foreign::programs::Touch,
    plan::Step,
    state::{Observed, Ranges, Stamp},
    units::IfName,
};

/// What to look at.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Which objects are ours.
    pub ranges: Ranges,
    /// Sysctls whose value matters, as paths below `/proc/sys/net/`.
    pub sysctls: Vec<String>,
    /// Interfaces whose facts matter; empty means all.
    pub interfaces: Vec<IfName>,
}

/// A step that the kernel refused, or a look that failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A netlink request failed.
    #[error("{doing}: {text}")]
    Netlink {
        /// What was being done, to what.
        doing: String,
        /// The positive errno; 0 when there was none.
        errno: i32,
        /// The errno's text, with the kernel's extended acknowledgement where it sent one.
        text: String,
    },
    /// The `nft` program refused a ruleset or could not run.
    #[error("{doing}: {text}")]
    Nft {
        /// What was being done.
        doing: String,
        /// What nft said, with its line and column.
        text: String,
    },
    /// A file under `/proc/sys` could not be read or written.
    #[error("{doing}")]
    Sysctl {
        /// What was being done, to what.
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Something is missing on this machine; the text carries the remedy.
    #[error("{what}")]
    Missing {
        /// What is missing, and how to get it.
        what: String,
    },
    /// The privilege is missing; the text carries the remedy.
    #[error("{what}")]
    Privilege {
        /// What needs which privilege.
        what: String,
    },
    /// The fake kernel was told to fail here.
    #[error("injected fault at {at}")]
    Injected {
        /// Which operation.
        at: String,
    },
}

/// A change that the kernel announced. It carries no meaning beyond "look again", except that a lost
/// carrier is acted on at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    /// A link changed: (name, up, carrier). Gone links have neither.
    Link {
        /// Its name.
        name: IfName,
        /// Administratively up.
        up: bool,
        /// Has a carrier.
        carrier: bool,
    },
    /// Addresses, routes, rules or nft changed.
    Changed(&'static str),
    /// Somebody changed an object that looks like ours: evidence for the case of a fight, never a reason to act.
    Touched(Touch),
    /// Notifications were lost (`ENOBUFS`): look at everything.
    Lost,
}

/// A kernel, real or fake.
pub trait Kernel {
    /// Looks at our objects and the facts around them, as one consistent picture where the kernel allows it.
    fn observe(&self, scope: &Scope) -> impl Future<Output = Result<Observed, KernelError>>;

    /// Carries out one step. `stamp` goes into the nft table if the step touches it.
    fn execute(
        &self,
        step: &Step,
        ranges: &Ranges,
        stamp: &Stamp,
    ) -> impl Future<Output = Result<Executed, KernelError>>;

    /// The canonical text of a rendered ruleset: loaded and listed in a throw-away network namespace.
    fn canonical(&self, source: &str) -> impl Future<Output = Result<String, KernelError>>;

    /// What makes canonical forms: two equal answers mean that a source has the same form. None if unknown.
    fn canonical_by(&self) -> Option<String> {
        None
    }
}

/// What a step did, where the step itself does not say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Executed {
    /// Conntrack entries deleted by a step that forgets flows.
    pub flows: u64,
}
