//! Compiles intent, selection, allocations and facts into the desired state.
