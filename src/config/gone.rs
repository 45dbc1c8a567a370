//! Sites that a change of the files takes away, with what was written about them, as it was written.
//!
//! Only files that differ are read: whoever asks has just put the new ones in force and has no time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::yaml;
use crate::units::Name;

/// A site that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The site.
    pub site: Name,
    /// Its documents and those that were for it alone, by file, with their comments.
    pub files: BTreeMap<String, String>,
}

type Files = BTreeMap<String, Vec<u8>>;

/// The sites that `old` has and `new` has not.
#[must_use]
pub fn gone(old: &Files, new: &Files) -> Vec<Gone> {
    let before = parts(old, new);
    let after = parts(new, old);
    let sites = |parts: &[Part]| -> BTreeSet<Name> { parts.iter().filter_map(|part| part.site.clone()).collect() };
    let gone: Vec<Name> = sites(&before).difference(&sites(&after)).cloned().collect();
    gone.into_iter()
        .map(|site| {
            let mut files: BTreeMap<String, String> = BTreeMap::new();
            for part in before.iter().filter(|part| part.owner.as_ref() == Some(&site)) {
                let text = files.entry(part.file.to_owned()).or_default();
                if !text.is_empty() {
                    text.push_str("---\n");
                }
                text.push_str(part.text);
            }
            Gone { site, files }
        })
        .collect()
}

/// A document with what stands around it.
struct Part<'a> {
    file: &'a str,
    text: &'a str,
    /// The site that it is.
    site: Option<Name>,
    /// The one site that it is about.
    owner: Option<Name>,
}

/// The documents of the files that `others` does not have just so.
fn parts<'a>(files: &'a Files, others: &Files) -> Vec<Part<'a>> {
    let changed = files.iter().filter(|(name, content)| others.get(*name) != Some(*content));
    let texts = changed.filter_map(|(name, content)| Some((name.as_str(), std::str::from_utf8(content).ok()?)));
    texts.flat_map(|(name, text)| documents(text).into_iter().map(move |text| part(name, text))).collect()
}

/// The text between the lines that separate documents; such a line can stand nowhere else.
fn documents(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut begin, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" {
            found.push(&text[begin..at]);
            begin = at + line.len();
        }
        at += line.len();
    }
    found.push(&text[begin..]);
    found.retain(|text| !text.trim().is_empty());
    found
}

fn part<'a>(file: &'a str, text: &'a str) -> Part<'a> {
    let name: Arc<str> = file.into();
    let parsed = yaml::parse(&name, text);
    let value = parsed.documents.first().map(|document| &document.value);
    let at = |pointer: &str| value.and_then(|v| v.pointer(pointer)?.as_str()?.parse::<Name>().ok());
    let is_site = value.and_then(|v| v.get("kind")?.as_str()) == Some("Site");
    let site = if is_site { at("/metadata/name") } else { None };
    let owner = site.clone().or_else(|| at("/spec/site"));
    Part { file, text, site, owner }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Files {
        files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    const NORTH: &str = "# The north.\nkind: Site\nmetadata: {name: north}\nspec: {}\n";
    const PATH: &str = "kind: Path\nmetadata: {name: hq}\nspec: {site: north, from: a, to: internet}\n";
    const SOUTH: &str = "kind: Site\nmetadata: {name: south}\n";

    #[test]
    fn a_deleted_file_is_kept_as_it_was_written() {
        let old = files(&[("n.yaml", NORTH), ("s.yaml", SOUTH)]);
        let found = gone(&old, &files(&[("s.yaml", SOUTH)]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].site.as_str(), &found[0].files), ("north", &[("n.yaml".into(), NORTH.into())].into()));
    }

    #[test]
    fn documents_of_a_shared_file_are_told_apart() {
        let old = files(&[("all.yaml", &format!("{NORTH}---\n{SOUTH}---\n{PATH}"))]);
        let found = gone(&old, &files(&[("all.yaml", SOUTH)]));
        assert_eq!(found[0].files["all.yaml"], format!("{NORTH}---\n{PATH}"));
    }

    #[test]
    fn a_site_that_moves_to_another_file_is_not_gone() {
        let found =
            gone(&files(&[("a.yaml", NORTH)]), &files(&[("b.yaml", &NORTH.replace("spec: {}", "spec: {vars: {}}"))]));
        assert!(found.is_empty(), "{found:?}");
        assert!(gone(&files(&[("a.yaml", NORTH)]), &files(&[("a.yaml", NORTH)])).is_empty());
    }
}
