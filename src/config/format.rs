//! The canonical form of a file: indentation, spaces, quotes, line breaks. Comments stay.
//!
//! Invariant: formatting changes how a file looks and nothing else. A result that does not say the same, has not the
//! same comments in the same order, or would be formatted differently a second time, is not given out.

use std::sync::Arc;

use pretty_yaml::config::{FormatOptions, LanguageOptions, LayoutOptions};
use yaml_parser::SyntaxKind;

use super::yaml;

/// The widest line, where a line can be broken.
const WIDTH: usize = 120;

/// Why a file was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not YAML, or has what the configuration refuses: duplicate keys, tags, merge keys.
    #[error("it has errors: `patronus validate` shows them")]
    Invalid,
    /// The formatter would have changed more than its looks.
    #[error("it cannot be formatted without {0}")]
    Unsafe(&'static str),
}

/// Formats a file.
///
/// # Errors
///
/// The file has errors, or would not stay what it is.
pub fn format(text: &str) -> Result<String, FormatError> {
    let values = values(text).ok_or(FormatError::Invalid)?;
    let formatted = pretty(text)?;
    if self::values(&formatted).as_ref() != Some(&values) {
        return Err(FormatError::Unsafe("changing what it says"));
    }
    if comments(&formatted) != comments(text) {
        return Err(FormatError::Unsafe("losing a comment"));
    }
    if pretty(&formatted)? != formatted {
        return Err(FormatError::Unsafe("being formatted differently a second time"));
    }
    Ok(formatted)
}

fn pretty(text: &str) -> Result<String, FormatError> {
    let layout = LayoutOptions { print_width: WIDTH, ..LayoutOptions::default() };
    let language = LanguageOptions { brace_spacing: false, trailing_comma: false, ..LanguageOptions::default() };
    pretty_yaml::format_text(text, &FormatOptions { layout, language }).map_err(|_| FormatError::Invalid)
}

/// What the documents say, as our own reader understands it; nothing if it finds an error.
fn values(text: &str) -> Option<Vec<serde_json::Value>> {
    let parsed = yaml::parse(&Arc::from("file"), text);
    parsed.found.is_empty().then(|| parsed.documents.into_iter().map(|document| document.value).collect())
}

/// The comments in their order.
fn comments(text: &str) -> Option<Vec<String>> {
    let tree = yaml_parser::parse(text).ok()?;
    let tokens = tree.descendants_with_tokens().filter_map(|element| element.as_token().cloned());
    let comments = tokens.filter(|token| token.kind() == SyntaxKind::COMMENT);
    Some(comments.map(|token| token.text().trim_end().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const UGLY: &str = "# first\napiVersion:   patronus.network/v1alpha1   # which\nkind: Site\n\n\n\nmetadata: { name: 'berlin' }\nspec:\n     lan:\n        - {interface: lan0,   prefixes: [ 192.168.10.0/24 ]}   \n     # before\n     endpoints:\n          fiber:  {interface: wan0, gateway: auto} # behind\n# last\n";

    #[test]
    fn a_file_gets_its_form_and_keeps_its_comments() {
        let formatted = format(UGLY).unwrap();
        let wanted = "# first\napiVersion: patronus.network/v1alpha1 # which\nkind: Site\n\nmetadata: {name: \"berlin\"}\nspec:\n  lan:\n    - {interface: lan0, prefixes: [192.168.10.0/24]}\n  # before\n  endpoints:\n    fiber: {interface: wan0, gateway: auto} # behind\n# last\n";
        assert_eq!(formatted, wanted);
        assert_eq!(format(&formatted).as_deref(), Ok(wanted));
    }

    #[test]
    fn every_example_can_be_formatted() {
        fn walk(directory: &Path, seen: &mut usize) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, seen);
                } else if path.extension().is_some_and(|end| end == "yaml") {
                    let text = fs::read_to_string(&path).unwrap();
                    format(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    *seen += 1;
                }
            }
        }
        let mut seen = 0;
        for part in ["examples", "policies", "tests/config/valid"] {
            walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(part), &mut seen);
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn a_file_with_errors_is_left_as_it_is() {
        for text in ["a: [1", "a: 1\na: 2\n", "a: !tag x\n", "a: {<<: *b}\n"] {
            assert_eq!(format(text), Err(FormatError::Invalid), "{text}");
        }
    }

    #[test]
    fn the_checker_sees_a_lost_comment_and_a_changed_value() {
        assert_ne!(comments(UGLY), comments(&UGLY.replace("# before\n", "\n")));
        assert_ne!(values(UGLY), values(&UGLY.replace("wan0", "wan1")));
        // A `#` in a text is no comment.
        assert_eq!(comments("a: 'b # c'\n"), Some(Vec::new()));
    }
}
