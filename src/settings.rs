//! The router's own settings, which are not in Git.
