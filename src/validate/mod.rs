//! From a loaded configuration to an intent.

pub mod intent;
