//! The bounds, measured: `cargo bench`. Prints one row per figure: name, median, bound or peer in the same run.

mod probe;
mod records;
mod validate;

fn main() {}
