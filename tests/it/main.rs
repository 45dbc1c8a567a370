//! The integration tests, one binary.

mod brain;
mod classifier;
mod config;
mod kernel;
mod lab;
mod records;
mod support;
mod transaction;
