//! Apply: undo, crash, recovery, on the fake and on a real kernel.
