//! The integration tests, one binary.

mod brain;
mod classifier;
mod config;
mod docs;
mod failover;
mod kernel;
mod lab;
mod records;
mod support;
mod tidy;
mod transaction;
