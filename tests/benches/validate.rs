//! Loading and validating a large configuration.
