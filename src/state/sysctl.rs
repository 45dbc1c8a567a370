//! Sysctls. A large hub has thousands, each once more with what it was before, so that copies share their texts.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};

/// One sysctl below `/proc/sys/net`, as path components joined with `/`, such as `ipv4/conf/wan0/rp_filter`.
/// Slashes, because interface names may contain dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SysctlKey {
    /// The path below `/proc/sys/net/`.
    pub path: Arc<str>,
}

/// What sysctls were before us.
pub type Originals = BTreeMap<SysctlKey, Cow<'static, str>>;

/// The text of a sysctl's value. Those that nearly all have cost no allocation.
#[must_use]
pub fn sysctl_text(value: &str) -> Cow<'static, str> {
    let usual = ["0", "1", "2"].into_iter().find(|usual| *usual == value);
    usual.map_or_else(|| Cow::Owned(value.to_owned()), Cow::Borrowed)
}

pub(super) fn value<'de, D: Deserializer<'de>>(d: D) -> Result<Cow<'static, str>, D::Error> {
    Ok(sysctl_text(&Cow::<'_, str>::deserialize(d)?))
}
