//! What is wrong, where, and what to do: diagnostics with stable codes, and their renderers.
//!
//! Invariant: a diagnostic points into a text that [`Sources`] holds, or nowhere; rendering never fails.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::units::Name;

mod codes;
mod export;
mod terminal;

pub use codes::{CODES, Code, CodeInfo};
pub use export::{github, json, sarif, sarif_location};
pub use terminal::terminal;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is applied while it stands.
    Error,
    /// It works, and somebody should look at it.
    Warning,
}

/// A place in a file, as bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The file, as [`Sources`] knows it.
    pub file: Arc<str>,
    /// Where the place begins, in bytes.
    pub start: usize,
    /// Where it ends, exclusive, in bytes.
    pub end: usize,
}

impl Span {
    /// A place in `file`.
    #[must_use]
    pub fn new(file: &Arc<str>, range: Range<usize>) -> Self {
        Self { file: Arc::clone(file), start: range.start, end: range.end.max(range.start) }
    }
}

/// Another place that belongs to a finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Where.
    pub span: Span,
    /// What is there.
    pub message: String,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Which kind of fault; never changes its meaning.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where; none when it concerns no single place.
    pub span: Option<Span>,
    /// Other places that belong to it.
    pub notes: Vec<Note>,
    /// What to do.
    pub help: Option<String>,
    /// The sites that it concerns; none where it concerns all.
    pub sites: Vec<Name>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, severity: Severity::Error, message, span: None, notes: Vec::new(), help: None, sites: Vec::new() }
    }

    /// A warning without a place.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same at a place.
    #[must_use]
    pub fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// The same with another place that belongs to it.
    #[must_use]
    pub fn note(mut self, span: Span, message: impl Into<String>) -> Self {
        self.notes.push(Note { span, message: message.into() });
        self
    }

    /// The same for these sites.
    #[must_use]
    pub fn concerns<'a>(mut self, sites: impl IntoIterator<Item = &'a Name>) -> Self {
        self.sites = sites.into_iter().cloned().collect();
        self.sites.sort_unstable();
        self.sites.dedup();
        self
    }

    /// Whether it concerns a site.
    #[must_use]
    pub fn is_about(&self, site: &Name) -> bool {
        self.sites.is_empty() || self.sites.contains(site)
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Whether any finding is an error.
#[must_use]
pub fn has_errors(found: &[Diagnostic]) -> bool {
    found.iter().any(|d| d.severity == Severity::Error)
}

/// Most findings that one pass over a tree gives; a file of rubbish could give as many as it has values.
pub const MAX_FOUND: usize = 1_000;

/// Sorts by place, then by code and text, and drops repetitions. What has no place comes last.
pub fn sort(found: &mut Vec<Diagnostic>) {
    let key = |d: &Diagnostic| (d.span.is_none(), d.code == Code::More);
    found.sort_by(|a, b| (key(a), &a.span, a.code, &a.message).cmp(&(key(b), &b.span, b.code, &b.message)));
    found.dedup();
}

/// Cuts sorted findings to [`MAX_FOUND`], warnings before errors, and says so in a last one.
pub fn cap(found: &mut Vec<Diagnostic>, doing: &str) {
    let Some(more) = found.len().checked_sub(MAX_FOUND).filter(|more| *more > 0) else { return };
    let severity = if has_errors(found) { Severity::Error } else { Severity::Warning };
    found.sort_by_key(|d| d.severity);
    found.truncate(MAX_FOUND);
    sort(found);
    let message =
        format!("and {more} more: {doing} found {} in all, and the first {MAX_FOUND} are shown", more + MAX_FOUND);
    found.push(Diagnostic { severity, ..Diagnostic::error(Code::More, message) }.help("correct these first"));
}

/// The texts that diagnostics point into.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: BTreeMap<Arc<str>, Source>,
}

#[derive(Debug, Clone)]
struct Source {
    text: Arc<str>,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Sources {
    /// Adds a file and returns the name under which spans refer to it.
    pub fn add(&mut self, file: &str, text: &str) -> Arc<str> {
        let name: Arc<str> = file.into();
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        self.files.insert(Arc::clone(&name), Source { text: text.into(), lines });
        name
    }

    /// The text of a file; empty when it is not known.
    #[must_use]
    pub fn text(&self, file: &str) -> &str {
        self.files.get(file).map_or("", |source| &source.text)
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Line and column, both from 1, the column in characters.
    #[must_use]
    pub fn position(&self, file: &str, offset: usize) -> (usize, usize) {
        let Some(source) = self.files.get(file) else { return (1, 1) };
        let offset = floor(&source.text, offset);
        let line = source.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|n| source.lines.get(n)).copied().unwrap_or(0);
        (line, source.text[start..offset].chars().count() + 1)
    }
}

/// The largest character boundary of `text` that is not above `offset`.
fn floor(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The candidate that `word` most probably meant.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let distance = |c: &'a str| (strsim::damerau_levenshtein(&word.to_lowercase(), &c.to_lowercase()), c);
    let near = |(n, c): &(usize, &str)| *n <= 1 + c.len() / 4 && *n < c.len();
    candidates.into_iter().map(distance).filter(near).min().map(|(_, c)| c)
}

/// `a`, `b` and `c`, each in backquotes, at most `limit` of them.
pub fn listed<T: std::fmt::Display>(items: &[T], limit: usize) -> String {
    let mut names: Vec<String> = items.iter().take(limit).map(|item| format!("`{item}`")).collect();
    if items.len() > limit {
        names.push(format!("{} more", items.len() - limit));
    }
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} and {last}", names.join(", ")),
        None => String::new(),
    }
}
