//! Metrics exposition and store.
