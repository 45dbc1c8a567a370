//! The integration tests, one binary.

mod brain;
mod cases;
mod classifier;
mod config;
mod confirm;
mod dataplane;
mod detection;
mod docs;
mod doctor;
mod failover;
mod git;
mod kernel;
mod lab;
mod measure;
mod messages;
mod pipelines;
mod preview;
mod prove;
mod reconcile;
mod records;
mod saved;
mod simulation;
mod support;
mod tidy;
mod transaction;
mod tunnels;
