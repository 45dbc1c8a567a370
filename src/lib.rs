//! Patronus: software-defined WAN on plain Linux, driven from Git.

#![forbid(unsafe_code)]

pub mod units;

pub mod clock;
pub mod diag;

pub mod settings;
pub mod source;

pub mod config;
pub mod validate;

pub mod failover;
pub mod health;
pub mod probe;

pub mod desired;
pub mod state;

pub mod kernel;
pub mod plan;

pub mod apply;

pub mod engine;

pub mod api;
pub mod metrics;
pub mod store;

pub mod cli;
pub mod lab;
