//! Pure difference of desired and observed: an ordered list of steps, each with before, after and reason.

use serde::{Deserialize, Serialize};

use crate::state::{Fwmark, Key, Value};

/// One change to one kernel object. The executor has no choice beyond a `match` on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Step {
    /// Bring an object from `before` to `after`; absent before is an addition, absent after a removal.
    Set {
        /// Which object.
        key: Key,
        /// What the observed state holds.
        before: Option<Value>,
        /// What the desired state holds.
        after: Option<Value>,
        /// Why, for a person.
        reason: String,
    },
    /// Delete the conntrack entries whose mark, under the mask, equals the value: their next packet is new
    /// and takes the path that is right now.
    Forget {
        /// Which entries.
        flows: Fwmark,
        /// Why, for a person.
        reason: String,
    },
}
