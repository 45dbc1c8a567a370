//! Probing many paths.
