//! Tests that measure time or loss take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Held by a test while it measures: no other test that measures runs meanwhile.
pub fn quiet() -> MutexGuard<'static, ()> {
    // A test that failed while it measured says nothing about the next one.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
