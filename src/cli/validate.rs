//! `patronus validate`.
