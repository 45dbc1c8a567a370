//! The integration tests, one binary.

mod brain;
mod cases;
mod classifier;
mod config;
mod confirm;
mod dataplane;
mod docs;
mod failover;
mod kernel;
mod lab;
mod messages;
mod preview;
mod reconcile;
mod records;
mod support;
mod tidy;
mod transaction;
mod tunnels;
