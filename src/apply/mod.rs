//! The transaction: journal, execute, undo, verify.
