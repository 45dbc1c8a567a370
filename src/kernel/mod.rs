//! The port to the kernel: look, do one step, be told of changes.
//!
//! Invariant: kernel operations are idempotent here and only here, by errno. Deleting the absent is Ok,
//! adding the equal is Ok; any other errno is a [`KernelError`] that reaches the journal and the user.

pub mod fake;
pub mod linux;
pub mod lock;

use std::future::Future;

use nix::errno::Errno;

use crate::{
    foreign::programs::Touch,
    plan::Step,
    state::{Fwmark, Observed, Ranges, Stamp},
    units::{Family, IfName},
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

impl KernelError {
    /// Whether the same may work the next time: the kernel was busy or short of something, or an interface went away
    /// under the request; what was asked for is not at fault.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Netlink { errno, .. } => passes(*errno) || is_of_a_link(*errno),
            // The sysctls of an interface go with it.
            Self::Sysctl { source, .. } => {
                source.raw_os_error().is_some_and(|errno| passes(errno) || errno == Errno::ENOENT as i32)
            }
            Self::Nft { text, .. } => PASSING.iter().any(|(_, words)| text.contains(words)),
            Self::Missing { .. } | Self::Privilege { .. } | Self::Injected { .. } => false,
        }
    }
}

/// Errors that tell of the moment and not of what was asked for, with the words of the programs that tell of them.
const PASSING: [(Errno, &str); 6] = [
    (Errno::EBUSY, "Device or resource busy"),
    (Errno::EAGAIN, "Resource temporarily unavailable"),
    (Errno::EINTR, "Interrupted system call"),
    (Errno::ENOBUFS, "No buffer space available"),
    (Errno::ENOMEM, "Cannot allocate memory"),
    (Errno::ETIMEDOUT, "Connection timed out"),
];

fn passes(errno: i32) -> bool {
    PASSING.iter().any(|(known, _)| *known == Errno::from_raw(errno))
}

/// What netlink answers when an interface is down, has gone or has lost its addresses between the look and the step.
/// A configuration that asks for just that gets the same answers, so whoever tries again does so a few times and says so.
const OF_A_LINK: [Errno; 6] =
    [Errno::ENODEV, Errno::ENXIO, Errno::ENETDOWN, Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EADDRNOTAVAIL];

fn is_of_a_link(errno: i32) -> bool {
    OF_A_LINK.contains(&Errno::from_raw(errno))
}

/// A change that the kernel announced. It carries no meaning beyond "look again", except that a lost
/// carrier is acted on at once, and that what goes with an interface is put down to nobody.
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
    /// An address was taken from an interface, whose routes go with its last one.
    AddressGone {
        /// Its name; none if it has gone by now, which is announced by itself.
        link: Option<IfName>,
    },
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

    /// Carries out steps that forget flows, together where the kernel allows it.
    fn forget_all(
        &self,
        steps: &[Step],
        ranges: &Ranges,
        stamp: &Stamp,
    ) -> impl Future<Output = Result<Executed, KernelError>> {
        async move {
            let mut all = Executed::default();
            for step in steps {
                all.flows += self.execute(step, ranges, stamp).await?.flows;
            }
            Ok(all)
        }
    }

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

/// Entries of connection tracking that are to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doomed {
    /// Those whose mark, under the mask, equals the value.
    pub flows: Fwmark,
    /// Those of this family only, if it is given.
    pub family: Option<Family>,
}

/// What became of flows that were to be forgotten.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// How many entries were deleted, for each of what was asked for.
    pub flows: Vec<u64>,
    /// Why it ended early. What was deleted before stays deleted.
    pub error: Option<KernelError>,
}

impl Forgotten {
    /// Nothing was forgotten.
    #[must_use]
    pub const fn failed(error: KernelError) -> Self {
        Self { flows: Vec::new(), error: Some(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_busy_or_whose_link_flaps_may_obey_the_next_time_and_one_that_refuses_does_not() {
        let netlink = |errno: Errno| KernelError::Netlink { doing: "x".into(), errno: errno as i32, text: "x".into() };
        let nft = |text: &str| KernelError::Nft { doing: "x".into(), text: text.into() };
        let sysctl = |errno: Errno| KernelError::Sysctl { doing: "x".into(), source: errno.into() };
        for error in [
            netlink(Errno::EBUSY),
            netlink(Errno::ENOBUFS),
            nft("Error: Could not process rule: Device or resource busy"),
            sysctl(Errno::EAGAIN),
            // An interface that flaps: gone, down, without its addresses, and its sysctls with it.
            netlink(Errno::ENODEV),
            netlink(Errno::ENETDOWN),
            netlink(Errno::ENETUNREACH),
            netlink(Errno::EHOSTUNREACH),
            netlink(Errno::EADDRNOTAVAIL),
            sysctl(Errno::ENOENT),
        ] {
            assert!(error.may_pass(), "{error:?}");
        }
        for error in [
            netlink(Errno::EINVAL),
            netlink(Errno::EOPNOTSUPP),
            nft("-:3:9-12: Error: syntax error, unexpected string"),
            netlink(Errno::ENOENT),
            sysctl(Errno::EINVAL),
            KernelError::Missing { what: "nft".into() },
        ] {
            assert!(!error.may_pass(), "{error:?}");
        }
    }
}
