//! YAML text to JSON values that remember their places: one pass over parser events, with budgets.
//!
//! Invariant: arbitrary text yields documents and diagnostics, never a panic, in time linear in its length.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use super::unread::Unread;
use crate::diag::{Code, Diagnostic, Span};

/// How deep a document may nest.
const MAX_DEPTH: usize = 32;
/// How many values the anchors of one document may keep and its aliases expand to, together.
const MAX_ALIASED: usize = 10_000;
/// How many values one document may hold: a site with 4,000 policies of its own.
const MAX_VALUES: usize = 50_000;
/// How many values one file may hold: one of the largest size, densely written, holds about 80,000.
const MAX_VALUES_OF_FILE: usize = 100_000;
/// How many documents one file may hold: a file of the largest size has no room for more objects.
const MAX_DOCUMENTS: usize = 10_000;
/// After how many syntax errors the rest of a file is left unread.
const MAX_FAULTS: usize = 20;
/// After how many other faults of its YAML the rest of a file is left unread.
const MAX_FOUND: usize = 100;

const TOO_DEEP: &str = "no object of the language nests deeper than 8 levels: is a bracket left open?";
const HALF_MERGED: &str =
    "the marks of a merge (`<<<<<<<`, `>>>>>>>`) are still in this file: settle it and delete them";

/// What one file may cost.
#[derive(Debug, Clone, Copy)]
struct Budget {
    aliased: usize,
    values: usize,
    values_of_file: usize,
    documents: usize,
}

const BUDGET: Budget =
    Budget { aliased: MAX_ALIASED, values: MAX_VALUES, values_of_file: MAX_VALUES_OF_FILE, documents: MAX_DOCUMENTS };

/// The places of a value and of everything in it.
#[derive(Debug, Clone, Default)]
pub struct Places {
    key: Option<Range<usize>>,
    value: Range<usize>,
    children: Vec<(String, Places)>,
}

/// One document of a file.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file.
    pub file: Arc<str>,
    /// What it says.
    pub value: Value,
    /// Where it says it.
    pub places: Places,
}

impl Document {
    fn find(&self, pointer: &str) -> Option<&Places> {
        let mut at = &self.places;
        for part in pointer.split('/').skip(1) {
            let name = part.replace("~1", "/").replace("~0", "~");
            at = &at.children.iter().find(|(key, _)| *key == name)?.1;
        }
        Some(at)
    }

    /// The place of the value at a JSON pointer, or of the nearest thing around it.
    #[must_use]
    pub fn value_at(&self, pointer: &str) -> Span {
        self.nearest(pointer, |places| Some(places.value.clone()))
    }

    /// The place of the key at a JSON pointer, or of its value where it has no key.
    #[must_use]
    pub fn key_at(&self, pointer: &str) -> Span {
        self.nearest(pointer, |places| places.key.clone().or(Some(places.value.clone())))
    }

    fn nearest(&self, pointer: &str, get: impl Fn(&Places) -> Option<Range<usize>>) -> Span {
        let mut pointer = pointer;
        loop {
            if let Some(range) = self.find(pointer).and_then(&get) {
                return Span::new(&self.file, range);
            }
            match pointer.rsplit_once('/') {
                Some((parent, _)) => pointer = parent,
                None => return Span::new(&self.file, self.places.value.clone()),
            }
        }
    }
}

/// What one file holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Its documents, empty ones left out.
    pub documents: Vec<Document>,
    /// What is wrong with it.
    pub found: Vec<Diagnostic>,
    /// What could not be read.
    pub unread: Unread,
}

/// Reads all documents of a text.
#[must_use]
pub fn parse(file: &Arc<str>, text: &str) -> Parsed {
    parse_within(BUDGET, file, text)
}

fn parse_within(budget: Budget, file: &Arc<str>, text: &str) -> Parsed {
    let mut reader = Reader {
        budget,
        file,
        text,
        out: Parsed::default(),
        stack: Vec::new(),
        anchors: BTreeMap::new(),
        aliased: 0,
        values: 0,
        earlier: 0,
        started: 0,
        root: None,
    };
    let options = granit_parser::options! { flow_nesting_limit: 64, block_nesting_limit: 64 };
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut faults = 0;
    while let Some(next) = parser.next() {
        let go_on = match next {
            Ok((event, span)) => reader.event(event, span.byte_range().unwrap_or_default()),
            Err(error) => {
                faults += 1;
                let at = reader.syntax(&error);
                if faults == MAX_FAULTS {
                    reader.give_up(Code::More, format!("the rest of the file was not read after {faults} errors"), at)
                } else {
                    matches!(parser.proceed_next_document(), Ok(true))
                }
            }
        };
        if !go_on {
            break;
        }
    }
    reader.out
}

/// A finished value: what it says, where, and how many nodes it has.
#[derive(Clone)]
struct Node {
    value: Value,
    places: Places,
    size: usize,
}

struct Key {
    text: String,
    at: Range<usize>,
    keep: bool,
}

struct Frame {
    start: usize,
    anchor: usize,
    size: usize,
    places: Vec<(String, Places)>,
    kind: Kind,
}

enum Kind {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<Key>),
}

struct Reader<'a> {
    budget: Budget,
    file: &'a Arc<str>,
    text: &'a str,
    out: Parsed,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    aliased: usize,
    values: usize,
    /// Values of the documents before this one.
    earlier: usize,
    /// Where the present document begins.
    started: usize,
    root: Option<Node>,
}

impl Reader<'_> {
    /// Takes one event; false ends the reading of this file.
    fn event(&mut self, event: Event<'_>, at: Range<usize>) -> bool {
        if !self.take(event, at.clone()) {
            return false;
        }
        if self.values > self.budget.values {
            return self.give_up(
                Code::Limit,
                format!("the document holds more than {} values", self.budget.values),
                at,
            );
        }
        if self.values + self.earlier > self.budget.values_of_file {
            let message = format!("the file holds more than {} values", self.budget.values_of_file);
            return self.give_up(Code::Limit, message, at);
        }
        if self.aliased > self.budget.aliased {
            let message = format!("anchors and aliases stand for more than {} values", self.budget.aliased);
            return self.give_up(Code::Limit, message, at);
        }
        if self.out.documents.len() > self.budget.documents {
            let message = format!("the file holds more than {} documents", self.budget.documents);
            return self.give_up(Code::Limit, message, at);
        }
        if self.out.found.len() >= MAX_FOUND {
            let message = format!("the rest of the file was not read after {MAX_FOUND} errors");
            return self.give_up(Code::More, message, at);
        }
        true
    }

    /// Ends the reading of this file here.
    fn give_up(&mut self, code: Code, message: String, at: Range<usize>) -> bool {
        let help = match code {
            Code::More => "correct these first",
            _ if self.aliased > self.budget.aliased => "write the values out, or share them with `selector` and `vars`",
            _ => "split the file, by site for example",
        };
        self.report(code, message, at, help);
        self.out.unread.text(self.text.get(self.started..).unwrap_or_default());
        false
    }

    fn take(&mut self, event: Event<'_>, at: Range<usize>) -> bool {
        match event {
            Event::DocumentStart(..) => {
                self.begin();
                self.started = at.start.min(self.text.len());
            }
            Event::DocumentEnd => self.finish(),
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(tag.is_some(), &at);
                self.scalar(&text, style, anchor, at);
            }
            Event::SequenceStart(_, anchor, tag) => {
                return self.open(Kind::List(Vec::new()), anchor, tag.is_some(), at);
            }
            Event::MappingStart(_, anchor, tag) => {
                return self.open(Kind::Map(Map::new(), None), anchor, tag.is_some(), at);
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(id) => return self.alias(id, at),
            _ => {}
        }
        true
    }

    fn report(&mut self, code: Code, message: impl Into<String>, at: Range<usize>, help: &str) {
        let found = Diagnostic::error(code, message).at(Span::new(self.file, at));
        self.out.found.push(if help.is_empty() { found } else { found.help(help) });
    }

    fn begin(&mut self) {
        self.stack.clear();
        self.anchors.clear();
        self.aliased = 0;
        self.earlier += std::mem::take(&mut self.values);
        self.root = None;
    }

    fn finish(&mut self) {
        if let Some(node) = self.root.take()
            && !node.value.is_null()
        {
            self.out.documents.push(Document { file: Arc::clone(self.file), value: node.value, places: node.places });
        }
    }

    /// Whether somebody committed the marks of a merge.
    fn is_half_merged(&self) -> bool {
        let mark = |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
        self.text.lines().any(mark)
    }

    fn syntax(&mut self, error: &granit_parser::ScanError) -> Range<usize> {
        let at = error.marker().byte_offset().unwrap_or(0).min(self.text.len());
        let info = error.info();
        let limit = info.contains("limit") || info.contains("nest");
        let code = if limit { Code::Limit } else { Code::Syntax };
        let (message, help) = match code {
            Code::Limit => (info.clone(), TOO_DEEP),
            _ if self.is_half_merged() => (format!("not YAML: {info}"), HALF_MERGED),
            _ if info.contains("tab") => (format!("not YAML: {info}"), "indent with spaces: YAML takes no tabs there"),
            _ if info.contains("flow") => (format!("not YAML: {info}"), "a `{` or `[` here or above is not closed"),
            _ => (format!("not YAML: {info}"), ""),
        };
        self.report(code, message, at..at + 1, help);
        let rest = self.text.get(at..).unwrap_or_default();
        let end = rest.find("\n---").map_or(self.text.len(), |next| at + next + 1);
        self.out.unread.text(self.text.get(self.started..end).unwrap_or_default());
        self.started = end;
        self.begin();
        at..at + 1
    }

    fn tag(&mut self, tagged: bool, at: &Range<usize>) {
        if tagged {
            self.report(Code::Tag, "a tag is not allowed", at.clone(), "delete the tag; quote the value if it is text");
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, anchor: usize, at: Range<usize>) {
        let at = self.trimmed(at);
        if self.wants_key() {
            self.key(text, style, at);
        } else {
            let places = Places { key: None, value: at, children: Vec::new() };
            self.done(Node { value: resolve(text, style), places, size: 1 }, anchor);
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { kind: Kind::Map(_, None), .. }))
    }

    fn key(&mut self, text: &str, style: ScalarStyle, at: Range<usize>) {
        let Some(Frame { kind: Kind::Map(map, _), places, .. }) = self.stack.last() else { return };
        let mut keep = true;
        let mut found = None;
        if map.contains_key(text) {
            keep = false;
            let first = places.iter().find(|(key, _)| key == text).and_then(|(_, p)| p.key.clone());
            let here = Diagnostic::error(Code::DuplicateKey, format!("`{text}` is given twice"));
            let here = here.at(Span::new(self.file, at.clone())).help("delete one of the two");
            found = Some(match first {
                Some(first) => here.note(Span::new(self.file, first), "first given here"),
                None => here,
            });
        } else if text == "<<" && style == ScalarStyle::Plain {
            keep = false;
            let help = "share objects with `selector` and values with `vars`, or write the fields out";
            let here = Diagnostic::error(Code::MergeKey, "merge keys are not allowed");
            found = Some(here.at(Span::new(self.file, at.clone())).help(help));
        }
        self.out.found.extend(found);
        self.set_key(Key { text: text.to_owned(), at, keep });
    }

    fn set_key(&mut self, new: Key) {
        if let Some(Frame { kind: Kind::Map(_, key), .. }) = self.stack.last_mut() {
            *key = Some(new);
        }
    }

    fn open(&mut self, kind: Kind, anchor: usize, tagged: bool, at: Range<usize>) -> bool {
        self.tag(tagged, &at);
        if self.stack.len() >= MAX_DEPTH {
            self.report(Code::Limit, format!("nested more than {MAX_DEPTH} levels deep"), at, TOO_DEEP);
            self.out.unread.text(self.text.get(self.started..).unwrap_or_default());
            return false;
        }
        self.stack.push(Frame { start: at.start, anchor, size: 1, places: Vec::new(), kind });
        true
    }

    fn close(&mut self, at: Range<usize>) {
        let Some(frame) = self.stack.pop() else { return };
        let value = match frame.kind {
            Kind::List(items) => Value::Array(items),
            Kind::Map(map, _) => Value::Object(map),
        };
        let value_at = self.trimmed(frame.start..at.end);
        let places = Places { key: None, value: value_at, children: frame.places };
        self.done(Node { value, places, size: frame.size }, frame.anchor);
    }

    fn alias(&mut self, id: usize, at: Range<usize>) -> bool {
        let Some(node) = self.anchors.get(&id).cloned() else {
            self.report(Code::Syntax, "an alias inside its own anchor", at, "write the value out");
            self.out.unread.text(self.text.get(self.started..).unwrap_or_default());
            return false;
        };
        self.aliased += node.size;
        if self.aliased <= self.budget.aliased {
            self.done(node, 0);
        }
        true
    }

    /// Puts a finished value where it belongs.
    fn done(&mut self, mut node: Node, anchor: usize) {
        self.values += 1;
        if anchor != 0 {
            self.aliased += node.size;
        }
        if anchor != 0 && self.aliased <= self.budget.aliased {
            self.anchors.insert(anchor, node.clone());
        }
        if self.wants_key() {
            let help = "write a word before the `:`";
            self.report(Code::ComplexKey, "a key must be a plain word", node.places.value.clone(), help);
            self.set_key(Key { text: String::new(), at: node.places.value, keep: false });
            return;
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        frame.size += node.size;
        match &mut frame.kind {
            Kind::List(items) => {
                frame.places.push((items.len().to_string(), node.places));
                items.push(node.value);
            }
            Kind::Map(map, key) => {
                if let Some(key) = key.take().filter(|key| key.keep) {
                    node.places.key = Some(key.at);
                    frame.places.push((key.text.clone(), node.places));
                    map.insert(key.text, node.value);
                }
            }
        }
    }

    /// The range without white space at its end, within the text.
    fn trimmed(&self, at: Range<usize>) -> Range<usize> {
        let end = at.end.min(self.text.len());
        let start = at.start.min(end);
        let kept = self.text.get(start..end).map_or(end - start, |text| text.trim_end().len());
        start..start + kept
    }
}

/// What a scalar is by the core schema of YAML 1.2 (section 10.3): `yes` and `on` are text.
fn resolve(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !first.is_ascii_digit() && !matches!(first, b'-' | b'+' | b'.') {
        return None;
    }
    let radix =
        |prefix: &str, radix| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Some(whole) = text.parse().ok().or_else(|| radix("0x", 16)).or_else(|| radix("0o", 8)) {
        return Some(Number::from(whole));
    }
    let digits = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+');
    if text.bytes().all(digits) { text.parse().ok().and_then(Number::from_f64) } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Parsed {
        parse(&"a.yaml".into(), text)
    }

    fn at<'a>(text: &'a str, span: &Span) -> &'a str {
        &text[span.start..span.end]
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let text = "é: {b: [one, \"two\"]}\nc:\n  - d: x # why\n";
        let parsed = read(text);
        let document = &parsed.documents[0];
        assert_eq!(document.value, json!({"é": {"b": ["one", "two"]}, "c": [{"d": "x"}]}));
        assert_eq!(at(text, &document.value_at("/é/b/1")), "\"two\"");
        assert_eq!(at(text, &document.key_at("/é/b")), "b");
        assert_eq!(at(text, &document.value_at("/c/0/d")), "x");
        assert_eq!(at(text, &document.value_at("/é")), "{b: [one, \"two\"]}");
    }

    #[test]
    fn what_is_not_there_is_at_the_nearest_thing_around_it() {
        let text = "a: {b: 1}\n";
        let parsed = read(text);
        assert_eq!(at(text, &parsed.documents[0].value_at("/a/x/y")), "{b: 1}");
        assert_eq!(at(text, &parsed.documents[0].key_at("/a/x")), "a");
    }

    #[test]
    fn keys_with_slashes_are_found() {
        let text = "\"a/b~c\": 1\n";
        assert_eq!(at(text, &read(text).documents[0].value_at("/a~1b~0c")), "1");
    }

    #[test]
    fn scalars_follow_the_core_schema_of_yaml_1_2() {
        let text = "[yes, on, true, ~, 12, 0x1f, 0o17, 1.5, 1e3, '12', 012, 0b1, .inf, 1_000, -3, +4]";
        let wanted = json!(["yes", "on", true, null, 12, 31, 15, 1.5, 1000.0, "12", 12, "0b1", ".inf", "1_000", -3, 4]);
        assert_eq!(read(text).documents[0].value, wanted);
    }

    #[test]
    fn reading_goes_on_after_a_broken_document() {
        let parsed = read("a: 1\n---\nname: lost\nb: [\n---\nc: 2\n");
        let values: Vec<_> = parsed.documents.iter().map(|d| d.value.clone()).collect();
        assert_eq!(values, [json!({"a": 1}), json!({"c": 2})]);
        assert_eq!(parsed.found.len(), 1);
        assert!(parsed.unread.mentions("lost") && !parsed.unread.mentions("c"));
    }

    /// Five levels of ten aliases: a hundred thousand values from 300 bytes.
    fn bomb() -> String {
        let first = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        (0..4).fold(first, |text, n| {
            let each = vec![format!("*a{n}"); 10].join(",");
            format!("{text}a{}: &a{} [{each}]\n", n + 1, n + 1)
        })
    }

    fn size(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(map) => map.values().map(size).sum(),
            _ => 0,
        }
    }

    #[test]
    fn aliases_have_a_budget() {
        let parsed = read(&bomb());
        assert!(parsed.documents.is_empty());
        assert_eq!(parsed.found[0].code, Code::Limit);
    }

    #[test]
    fn sabotage_without_the_budget_the_aliases_expand() {
        let budget = Budget { aliased: usize::MAX, ..BUDGET };
        let parsed = parse_within(budget, &"a.yaml".into(), &bomb());
        assert!(size(&parsed.documents[0].value) > 100_000);
    }

    #[test]
    fn sabotage_without_the_budget_all_values_are_read() {
        let text = format!("[{}]", "x,".repeat(MAX_VALUES + 10));
        assert!(read(&text).documents.is_empty());
        let parsed =
            parse_within(Budget { values: usize::MAX, values_of_file: usize::MAX, ..BUDGET }, &"a.yaml".into(), &text);
        assert_eq!(parsed.documents[0].value.as_array().unwrap().len(), MAX_VALUES + 10);
    }
}
