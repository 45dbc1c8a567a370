//! The lab: namespaces, faults, flows.
