//! The real kernel: netlink, nft, sysctl, conntrack.
