//! Diagnostics for people: the source line with carets, other places, and help.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Diagnostic, Severity, Sources, Span, floor};

/// Lines of context kept around a place; the renderer folds what it does not need.
const AROUND: usize = 2;
/// A line longer than this is cut around the place.
const LONGEST: usize = 4096;

/// All findings as text, one blank line between them; `colour` adds ANSI styles.
#[must_use]
pub fn terminal(found: &[Diagnostic], sources: &Sources, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for diagnostic in found {
        out.push_str(&renderer.render(&[group(diagnostic, sources)]));
        out.push_str("\n\n");
    }
    out
}

fn group<'a>(d: &'a Diagnostic, sources: &'a Sources) -> Group<'a> {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(&*d.message).id(d.code.info().code);
    let mut group = match &d.span {
        Some(span) => title.element(snippet(span, AnnotationKind::Primary, None, sources)),
        None => Group::with_title(title),
    };
    for note in &d.notes {
        group = group.element(snippet(&note.span, AnnotationKind::Context, Some(&note.message), sources));
    }
    match &d.help {
        Some(help) => group.element(Level::HELP.message(&**help)),
        None => group,
    }
}

fn snippet<'a>(
    span: &'a Span,
    kind: AnnotationKind,
    label: Option<&'a str>,
    sources: &'a Sources,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = sources.text(&span.file);
    let (start, end) = (floor(text, span.start), floor(text, span.end.max(span.start)));
    // Only the first line of a long object is underlined.
    let end = text[start..end].find('\n').map_or(end, |at| start + at).min(start + LONGEST);
    let end = floor(text, end);
    let window = window(text, start, end);
    let (line, _) = sources.position(&span.file, window.start);
    let inner = start - window.start..end - window.start;
    let annotation = kind.span(inner).label(label);
    Snippet::source(&text[window]).path(&*span.file).line_start(line).annotation(annotation)
}

/// The lines around a place; the renderer scans all it is given.
fn window(text: &str, start: usize, end: usize) -> std::ops::Range<usize> {
    let mut from = start;
    for _ in 0..=AROUND {
        from = text[..from].rfind('\n').unwrap_or(0);
    }
    if text[from..].starts_with('\n') && from < start {
        from += 1;
    }
    let mut to = end;
    for _ in 0..=AROUND {
        to = text[to..].find('\n').map_or(text.len(), |at| (to + at + 1).min(text.len()));
    }
    floor(text, from.max(start.saturating_sub(LONGEST)))..floor(text, to.min(end + LONGEST))
}
