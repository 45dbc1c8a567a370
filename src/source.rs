//! Where configuration comes from: a directory becomes a snapshot; no parsing.
