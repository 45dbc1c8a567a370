//! Store, metrics and API.
