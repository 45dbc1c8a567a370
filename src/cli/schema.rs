//! `patronus schema`.
