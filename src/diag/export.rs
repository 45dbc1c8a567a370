//! Diagnostics for programs: JSON, SARIF 2.1.0 and the annotations of CI services.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Value, json};

use super::{Code, Diagnostic, Severity, Sources, Span};
use crate::units::Name;

/// Version of the JSON form.
pub const FORMAT_VERSION: u32 = 1;

fn place(span: &Span, sources: &Sources) -> Value {
    let (line, column) = sources.position(&span.file, span.start);
    let (end_line, end_column) = sources.position(&span.file, span.end);
    json!({
        "file": &*span.file, "line": line, "column": column, "endLine": end_line, "endColumn": end_column,
        "start": span.start, "end": span.end,
    })
}

/// All findings as one JSON value with a `format_version`.
#[must_use]
pub fn json(found: &[Diagnostic], sources: &Sources) -> Value {
    let one = |d: &Diagnostic| {
        let notes = d.notes.iter().map(|n| json!({"message": n.message, "place": place(&n.span, sources)}));
        json!({
            "code": d.code.info().code, "severity": d.severity, "title": d.code.info().title,
            "message": d.message, "place": d.span.as_ref().map(|s| place(s, sources)),
            "notes": notes.collect::<Vec<_>>(), "help": d.help,
            "sites": d.sites.iter().map(Name::as_str).collect::<Vec<_>>(),
        })
    };
    json!({"format_version": FORMAT_VERSION, "diagnostics": found.iter().map(one).collect::<Vec<_>>()})
}

/// All findings as a SARIF 2.1.0 log (OASIS standard), for code scanning services.
#[must_use]
pub fn sarif(found: &[Diagnostic], sources: &Sources) -> Value {
    let used: BTreeSet<_> = found.iter().map(|d| d.code).collect();
    let rules = used.iter().map(|code| {
        let info = code.info();
        json!({
            "id": info.code, "name": format!("{code:?}"), "shortDescription": {"text": info.title}, "fullDescription": {"text": info.explanation},
        })
    });
    let driver = json!({
        "name": "patronus", "version": env!("CARGO_PKG_VERSION"), "rules": rules.collect::<Vec<_>>(),
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": driver},
            "columnKind": "unicodeCodePoints",
            "results": found.iter().map(|d| sarif_result(d, &used, sources)).collect::<Vec<_>>(),
        }],
    })
}

fn sarif_result(d: &Diagnostic, used: &BTreeSet<Code>, sources: &Sources) -> Value {
    let text = d.help.as_ref().map_or_else(|| d.message.clone(), |help| format!("{}\n{help}", d.message));
    let related = d.notes.iter().enumerate().map(|(id, note)| {
        let mut location = sarif_location(&note.span, sources);
        location["id"] = id.into();
        location["message"] = json!({"text": note.message});
        location
    });
    json!({
        "ruleId": d.code.info().code, "ruleIndex": used.iter().position(|code| *code == d.code), "level": d.severity, "message": {"text": text},
        "locations": d.span.iter().map(|s| sarif_location(s, sources)).collect::<Vec<_>>(),
        "relatedLocations": related.collect::<Vec<_>>(),
    })
}

/// A place as SARIF has it.
#[must_use]
pub fn sarif_location(span: &Span, sources: &Sources) -> Value {
    let (line, column) = sources.position(&span.file, span.start);
    let (end_line, end_column) = sources.position(&span.file, span.end);
    json!({"physicalLocation": {
        "artifactLocation": artifact(&span.file),
        "region": {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column},
    }})
}

/// A relative path is one below the root of the sources.
fn artifact(path: &str) -> Value {
    match path.strip_prefix('/') {
        Some(absolute) => json!({"uri": format!("file:///{}", uri(absolute))}),
        None => json!({"uri": uri(path), "uriBaseId": "%SRCROOT%"}),
    }
}

/// A relative path as a URI reference (RFC 3986, section 4.2).
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => drop(write!(out, "%{other:02X}")),
        }
    }
    out
}

/// All findings as workflow commands, which GitHub, Gitea and Forgejo show beside the changed lines.
#[must_use]
pub fn github(found: &[Diagnostic], sources: &Sources) -> String {
    let mut out = String::new();
    for d in found {
        let level = if d.severity == Severity::Error { "error" } else { "warning" };
        let text = d.help.as_ref().map_or_else(|| d.message.clone(), |help| format!("{}\n{help}", d.message));
        let title = format!("{} {}", d.code, d.code.info().title);
        let mut fields = Vec::new();
        if let Some(span) = &d.span {
            let (line, column) = sources.position(&span.file, span.start);
            let (end_line, end_column) = sources.position(&span.file, span.end);
            fields.push(format!("file={},line={line}", escape(&span.file, true)));
            // Columns are taken only where the place is within one line.
            fields.push(if end_line == line {
                format!("col={column},endColumn={end_column}")
            } else {
                format!("endLine={end_line}")
            });
        }
        fields.push(format!("title={}", escape(&title, true)));
        // Writing to a string does not fail.
        let _ = writeln!(out, "::{level} {}::{}", fields.join(","), escape(&text, false));
    }
    out
}

/// Escapes as the runner's toolkit does: `%`, CR and LF in data, also `:` and `,` in properties.
fn escape(text: &str, property: bool) -> String {
    let data = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { data.replace(':', "%3A").replace(',', "%2C") } else { data }
}
