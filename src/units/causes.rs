//! Errors as people read them.

use std::error::Error;

/// An error with its causes on one line. A cause that its effect tells already is not told again.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Self>>);

    #[test]
    fn causes_follow_in_their_order_and_none_is_told_twice() {
        let cause = |text, cause: Option<Told>| Told(text, cause.map(Box::new));
        let disk = || cause("disk full", None);
        assert_eq!(chain(&disk()), "disk full");
        assert_eq!(chain(&cause("cannot write", Some(cause("x.db", Some(disk()))))), "cannot write: x.db: disk full");
        assert_eq!(chain(&cause("cannot write: disk full", Some(disk()))), "cannot write: disk full");
    }
}
