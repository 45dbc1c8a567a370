//! `patronus lab`.
