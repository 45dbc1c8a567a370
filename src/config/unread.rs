//! What may have been in texts that could not be read, so that nobody is told of one fault twice.

use std::collections::BTreeSet;

/// The words of all texts that could not be read.
#[derive(Debug, Default)]
pub struct Unread {
    words: BTreeSet<String>,
    /// A text that was too large to look at may hold any word.
    anything: bool,
}

impl Unread {
    /// Remembers the words of a text that could not be read.
    pub fn text(&mut self, text: &str) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        self.words.extend(words.filter(|word| !word.is_empty() && word.len() <= 63).map(str::to_owned));
    }

    /// Remembers that there was a text of which not even the words are known.
    pub const fn everything(&mut self) {
        self.anything = true;
    }

    /// Takes over what another one remembers.
    pub fn extend(&mut self, other: Self) {
        self.words.extend(other.words);
        self.anything |= other.anything;
    }

    /// Whether an object of this name may have been in such a text.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        self.anything || self.words.contains(name)
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.anything && self.words.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_of_unreadable_texts_are_mentioned() {
        let mut unread = Unread::default();
        assert!(unread.is_empty() && !unread.mentions("hq"));
        unread.text("metadata: {name: hq-fiber}\nspec: [");
        assert!(unread.mentions("hq-fiber") && !unread.mentions("hq"));
        unread.everything();
        assert!(unread.mentions("hq"));
    }
}
