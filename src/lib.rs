//! Patronus: software-defined WAN on plain Linux, driven from Git.
//!
//! YAML becomes the state of a Linux router and stays so while links come and go.
//!
//! ```text
//!              effects                 pure                 pure                  pure
//!  dir, git -> source --Snapshot--> config --Config--> validate --Intent-------> desired --State--+
//!                                                                                  ^               v
//!  network --> probe --Sample--> health --Healths--> failover --Selection----------+              plan --Steps--> apply
//!                                                                                                  ^                |
//!                                                         kernel --Observed------------------------+ <--executes----+
//!                                                                                                                   |
//!                                         engine (the only loop) --Status--> store, metrics, api <----Outcome-------+
//! ```
//!
//! [`engine`] is the only loop. What is pure takes `now` as an argument; [`kernel`] is the only module that changes
//! the kernel, and [`cli`] the only one that prints. `docs/architecture.md` has the invariants and the tests that
//! hold them. The modules stand below in the order of the picture.

#![forbid(unsafe_code)]

pub mod units;

pub mod clock;
pub mod diag;
pub mod http;

pub mod settings;
pub mod source;

pub mod config;
pub mod revision;
pub mod validate;

pub mod failover;
pub mod health;
pub mod probe;
pub mod prove;

pub mod desired;
pub mod state;

pub mod drift;
pub mod explain;
pub mod foreign;
pub mod kernel;
pub mod plan;

pub mod preview;

pub mod apply;
pub mod guard;

pub mod engine;

pub mod doctor;
pub mod forge;

pub mod api;
pub mod metrics;
pub mod notify;
pub mod store;

pub mod cli;
pub mod lab;
