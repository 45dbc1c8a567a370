//! A kernel in memory that injects faults.
