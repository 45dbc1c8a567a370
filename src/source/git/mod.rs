//! A Git repository as the source: fetched in this process, read from its objects, never checked out.

mod spec;

pub use spec::{Address, Reference, Scheme, Secret, Spec, Verify};
