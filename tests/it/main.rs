//! The integration tests, one binary.

mod brain;
mod classifier;
mod config;
mod failover;
mod kernel;
mod lab;
mod records;
mod support;
mod tidy;
mod transaction;
mod tunnels;
