//! Raw YAML types and the loader: a snapshot of files becomes a configuration with spans.
