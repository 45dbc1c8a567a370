//! Prometheus exposition of the published status.
