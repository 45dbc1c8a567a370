//! `patronus status`, `get`, `events`, `history`.
