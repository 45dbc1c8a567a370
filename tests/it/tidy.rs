//! The shape of the source: which module may use which, file and function sizes, and no panic without a proof.
//!
//! The table of `docs/architecture.md` is the rule; whoever changes an edge changes the table and says why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The crate's two roots are no modules.
const ROOTS: [&str; 2] = ["lib", "main"];
const LINES_OF_A_FILE: usize = 500;
const LINES_OF_A_FUNCTION: usize = 80;
const PANICS: [&str; 5] = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!("];
/// A proof stands on the line itself or in so many lines above it.
const PROOF_WITHIN: usize = 4;

/// A source file without its tests.
struct Source {
    path: String,
    module: String,
    text: String,
}

impl Source {
    fn new(path: &str, whole: &str) -> Self {
        let module = path.trim_start_matches("src/").trim_end_matches(".rs");
        let module = module.split('/').next().unwrap_or_default().to_owned();
        let tests = whole.find("#[cfg(test)]\nmod tests {").unwrap_or(whole.len());
        Self { path: path.to_owned(), module, text: whole[..tests].to_owned() }
    }

    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(i, line)| (i + 1, line))
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The files of `src/` with their names as `src/...`.
fn files() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 50, "the tree was not found");
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn sources() -> Vec<Source> {
    let tests = |path: &str| path.ends_with("/tests.rs");
    files().iter().filter(|(path, _)| !tests(path)).map(|(path, text)| Source::new(path, text)).collect()
}

/// Which modules each module may use, from the table in `docs/architecture.md`: rows of "| `module` | … | uses |".
fn allowed(document: &str) -> BTreeMap<String, BTreeSet<String>> {
    let table = document.split("<!-- modules -->").nth(1).expect("the table stands between two <!-- modules -->");
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let module = cells.first()?.strip_prefix('`')?.split('`').next()?;
        let uses = cells.last()?.split(',').map(|word| word.trim().trim_matches('`'));
        Some((module.to_owned(), uses.filter(|word| !word.is_empty()).map(str::to_owned).collect()))
    });
    rows.collect()
}

/// The modules behind each `crate::` of a text, in use declarations with groups too.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => found.extend(head(rest)),
        }
    }
    found
}

fn head(text: &str) -> Option<String> {
    let word: String =
        text.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// The first word of each element of a group, up to the group's end.
fn heads(group: &str) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = head(group).into_iter().collect();
    let mut depth = 0_i32;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => found.extend(head(&group[at + 1..])),
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    found
}

/// Edges that the table does not have.
fn strangers(sources: &[Source], allowed: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in sources {
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for module in used(&code.join("\n")) {
            let known = allowed.get(&source.module).is_some_and(|uses| uses.contains(&module) || uses.contains("all"));
            if module != source.module && !known {
                found.insert(format!("{}: {} uses {module}", source.path, source.module));
            }
        }
    }
    found
}

/// Functions that are too long, with the line each begins on.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| *word != "fn").collect();
        let modifier = |word: &&str| word.starts_with("pub") || ["async", "const", "extern"].contains(word);
        if !line.contains("fn ") || !words.iter().all(modifier) || line.trim_end().ends_with([';', '}']) {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[at..].iter().position(|line| *line == end).map_or(0, |n| n + 1);
        if length > LINES_OF_A_FUNCTION {
            found.push(format!("{}:{}: {length} lines", source.path, at + 1));
        }
    }
    found
}

/// Places that may panic and do not say why they cannot.
fn unproven(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let panics = |line: &str| PANICS.iter().any(|word| line.contains(word));
    let proven = |at: usize| lines[at.saturating_sub(PROOF_WITHIN)..=at].iter().any(|line| line.contains("// "));
    let bare = source.code().filter(|(number, line)| panics(line) && !proven(number - 1));
    bare.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect()
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let allowed = allowed(&fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    let found = strangers(&sources(), &allowed);
    assert!(found.is_empty(), "edges that docs/architecture.md does not list:\n{found:#?}");
}

#[test]
fn the_table_lists_every_module_once_and_only_edges_that_exist() {
    let allowed = allowed(&fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    let sources = sources();
    let modules: BTreeSet<&str> = sources.iter().map(|s| s.module.as_str()).filter(|m| !ROOTS.contains(m)).collect();
    assert_eq!(allowed.keys().map(String::as_str).collect::<BTreeSet<_>>(), modules);
    let mut real: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        real.entry(&source.module).or_default().extend(used(&code.join("\n")));
    }
    for (module, uses) in &allowed {
        let idle: Vec<&String> =
            uses.iter().filter(|to| *to != "all" && !real[module.as_str()].contains(*to)).collect();
        assert!(idle.is_empty(), "the table allows {module} what it does not use: {idle:?}");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for directory in ["src", "tests"] {
        let mut paths = Vec::new();
        walk(&root().join(directory), &mut paths);
        let bare: Vec<_> = paths.iter().filter(|p| !fs::read_to_string(p).unwrap().starts_with("//! ")).collect();
        assert!(bare.is_empty(), "without a leading `//!`: {bare:?}");
    }
}

#[test]
fn files_and_functions_are_short() {
    let sources = sources();
    let lines = |source: &Source| source.text.lines().count();
    let long = sources.iter().filter(|s| lines(s) > LINES_OF_A_FILE).map(|s| format!("{}: {} lines", s.path, lines(s)));
    let found: Vec<String> = long.chain(sources.iter().flat_map(long_functions)).collect();
    assert!(found.is_empty(), "too long:\n{found:#?}");
}

#[test]
fn nothing_panics_without_a_proof() {
    let found: Vec<String> = sources().iter().flat_map(unproven).collect();
    assert!(found.is_empty(), "say in a comment why it cannot happen:\n{found:#?}");
}

#[test]
fn the_picture_is_in_the_crate_documentation() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let picture = document.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let quoted: String = picture.lines().map(|line| format!("//! {line}").trim_end().to_owned() + "\n").collect();
    assert!(lib.contains(&quoted), "the picture of docs/architecture.md is not that of src/lib.rs");
}

/// The sabotage twin: each fault is planted, and found.
#[test]
fn the_scanner_sees_planted_faults() {
    let table = "<!-- modules -->\n| `units` P | x | |\n| `plan` P | x | `units` |\n<!-- modules -->";
    let allowed = allowed(table);
    let plan = |text: &str| vec![Source::new("src/plan/mod.rs", text)];
    assert!(strangers(&plan("use crate::units::Name;\nuse crate::plan::Step;\n"), &allowed).is_empty());
    for fault in [
        "use crate::kernel::Kernel;\n",
        "use crate::{\n    units::{Family, Name},\n    kernel,\n};\n",
        "fn f() { crate::kernel::look() }\n",
        "pub(crate) use crate::{kernel::{self}, units};\n",
    ] {
        let found = strangers(&plan(fault), &allowed);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["src/plan/mod.rs: plan uses kernel"], "{fault}");
    }
    assert!(
        strangers(&plan("//! See [`crate::kernel`].\n#[cfg(test)]\nmod tests {\n use crate::lab;\n"), &allowed)
            .is_empty()
    );

    let body = |lines: usize| format!("    pub async fn f(\n{}    }}\n", "        x();\n".repeat(lines));
    assert_eq!(long_functions(&plan(&body(79))[0]).len(), 1);
    assert!(long_functions(&plan(&body(78))[0]).is_empty());

    assert_eq!(unproven(&plan("fn f() {\n    x.unwrap()\n}\n")[0]).len(), 1);
    assert!(unproven(&plan("fn f() {\n    // x was checked above.\n    x.unwrap()\n}\n")[0]).is_empty());
}
