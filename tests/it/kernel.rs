//! The kernel port against a real kernel in namespaces.
