//! A preview as the comment of a pull request: one table, the worst first, the rest folded.
//!
//! Invariant: what comes from the repository is inert here. Names, paths and comments appear inside code only, in
//! which neither markup nor mentions nor HTML mean anything; what could leave the code, and every character that moves
//! the cursor or the reading direction, is replaced. The whole never exceeds [`MOST`] characters, and says what was
//! left out.

use std::fmt::Write as _;

use super::{
    Group, Preview, SiteChange,
    deletion::Deletion,
    groups,
    text::{self, deleted, details},
};
use crate::{
    plan::{
        Action,
        report::{Consequence, Route},
    },
    units::{Name, plural},
};

/// Most characters of a comment: GitHub takes 65,536, GitLab more.
pub const MOST: usize = 65_000;

/// What the table may take of it; the rest is for the details.
const TABLE: usize = 24_000;
/// What one site's details may take.
const DETAILS: usize = 12_000;
/// What the last lines take.
const FOOT: usize = 600;
/// Things that a cell names; the others are counted.
const CELL: usize = 3;
/// Site names that a fold lists.
const NAMES: usize = 40;

/// The comment.
#[must_use]
pub fn render(preview: &Preview) -> String {
    let groups = groups(&preview.sites);
    let mut out = String::from("## Patronus: what this change does\n\n");
    let _ = writeln!(out, "**{}**", text::headline(preview));
    let _ = writeln!(out, "{} → {}\n", code(&preview.base), code(&preview.head));
    let mut cut = Cut::default();
    table(&mut out, preview, &groups, &mut cut);
    let warnings: Vec<String> = preview.warnings.iter().map(|w| code(w)).collect();
    let warnings = list("New warnings of the validator", &warnings);
    for (sites, fold) in folds(preview, &groups) {
        let fits = out.len() + fold.len() + warnings.len() + FOOT <= MOST;
        if fits { out.push_str(&fold) } else { cut.details += sites }
    }
    out.push_str(&warnings);
    cut.tell(&mut out, preview);
    out
}

/// The comment on a change that is not valid: nothing would be applied.
#[must_use]
pub fn refused(base: &str, head: &str, errors: usize, left: &[String], shown: &str) -> String {
    let mut out = String::from("## Patronus: this change is not valid\n\n");
    let _ = writeln!(out, "**{}; no router would take it**", plural(errors, "error"));
    let _ = writeln!(out, "{} → {}\n", code(base), code(head));
    out.push_str(&list("Deleted, and still referred to", &left.iter().map(|l| code(l)).collect::<Vec<_>>()));
    out.push_str(&fence("text", shown, MOST - out.len() - FOOT));
    out
}

/// The comment where there is one thing to say.
#[must_use]
pub fn note(text: &str) -> String {
    format!("## Patronus\n\n{}\n", code(text))
}

/// What did not fit.
#[derive(Default)]
struct Cut {
    rows: usize,
    details: usize,
}

impl Cut {
    fn tell(&self, out: &mut String, preview: &Preview) {
        let all = format!("`patronus diff {} {}`", inert(&preview.base), inert(&preview.head));
        let whole = code(&all.replace('`', ""));
        if self.rows > 0 {
            let _ = writeln!(out, "\n**{} left out of the table.** {whole} shows all.", plural(self.rows, "site"));
        }
        if self.details > 0 {
            let _ = writeln!(
                out,
                "\n**The details of {} are left out:** a comment has room for {MOST} characters. {whole} shows all.",
                plural(self.details, "site")
            );
        }
    }
}

fn table(out: &mut String, preview: &Preview, groups: &[Group<'_>], cut: &mut Cut) {
    if preview.is_empty() {
        return;
    }
    out.push_str("| sites | what changes | where traffic goes | risk | kernel |\n|---|---|---|---|---|\n");
    let rows = preview.deletions.iter().map(|d| (1, deletion_row(d)));
    let rows = rows.chain(groups.iter().map(|g| (g.sites.len(), row(g))));
    for (sites, row) in rows {
        if out.len() + row.len() <= TABLE { out.push_str(&row) } else { cut.rows += sites }
    }
    out.push('\n');
}

fn deletion_row(deletion: &Deletion) -> String {
    let prefixes: Vec<String> = deletion.prefixes.iter().map(|n| code(&n.prefix.to_string())).collect();
    let gone = if prefixes.is_empty() { String::new() } else { format!("{} reachable nowhere", some(&prefixes)) };
    let risk = match (deletion.elsewhere.len(), deletion.left.len()) {
        (0, 0) => String::new(),
        (taken, 0) => format!("takes {} of other sites along", plural(taken, "object")),
        (taken, left) => {
            format!("takes {} of other sites along, {left} still name its networks", plural(taken, "object"))
        }
    };
    format!("| {} | **deleted** | {gone} | {risk} | |\n", code(deletion.site.as_str()))
}

fn row(group: &Group<'_>) -> String {
    let change = group.first;
    let sign = |action| match action {
        Action::Add => '+',
        Action::Remove => '-',
        _ => '~',
    };
    let new = if change.action == Action::Add { vec!["**new site**".to_owned()] } else { Vec::new() };
    let objects = change.plan.objects.iter();
    let objects = objects.map(|o| code(&format!("{} {} {}", sign(o.action), o.kind, o.name)));
    let objects: Vec<String> = if new.is_empty() { objects.collect() } else { new };
    let moves: Vec<String> =
        change.plan.consequences.iter().filter(|c| path(c.from.as_ref()) != path(c.to.as_ref())).map(moved).collect();
    let s = &change.plan.summary;
    let names: Vec<String> = group.sites.iter().map(|name| code(name.as_str())).collect();
    format!(
        "| {} | {} | {} | {} | +{} ~{} -{} |\n",
        some(&names),
        some(&objects),
        if moves.is_empty() { "as before".to_owned() } else { some(&moves) },
        some(&risks(change)),
        s.add,
        s.change,
        s.remove
    )
}

fn path(route: Option<&Route>) -> String {
    route.map_or_else(|| "main table".to_owned(), Route::told)
}

fn moved(c: &Consequence) -> String {
    format!("{}: {} → {}", code(c.policy.as_str()), code(&path(c.from.as_ref())), code(&path(c.to.as_ref())))
}

fn risks(change: &SiteChange) -> Vec<String> {
    change.risks().iter().map(|risk| format!("{} {}", code(risk.policy.as_str()), inert(&risk.what))).collect()
}

/// The first few, and how many more there are.
fn some(things: &[String]) -> String {
    let shown = things.iter().take(CELL).cloned().collect::<Vec<_>>().join(", ");
    match things.len().checked_sub(CELL) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// The folded details with the number of sites that they are about.
fn folds<'a>(preview: &'a Preview, groups: &'a [Group<'a>]) -> impl Iterator<Item = (usize, String)> + 'a {
    let gone = preview.deletions.iter().map(|d| (1, fold(&format!("{}: deleted", d.site), None, &deleted(d))));
    let changed = groups.iter().map(|group| {
        let title = format!("{}: {}", text::named(&group.sites), title(group.first));
        (group.sites.len(), fold(&title, Some(&group.sites), &details(group, false)))
    });
    gone.chain(changed)
}

fn title(change: &SiteChange) -> String {
    let risks = risks(change).len();
    let what = if change.action == Action::Add { "new" } else { "changes" };
    if risks > 0 { format!("{what}, {}", plural(risks, "risk")) } else { what.to_owned() }
}

fn fold(title: &str, sites: Option<&[&Name]>, details: &str) -> String {
    let plain = anstream::adapter::strip_str(details).to_string();
    let lines: String = plain.lines().map(|line| signed(line) + "\n").collect();
    let names = match sites {
        Some(sites) if sites.len() > CELL => {
            let names: Vec<String> = sites.iter().take(NAMES).map(|n| code(n.as_str())).collect();
            let more = sites.len().saturating_sub(NAMES);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}{more}\n\n", names.join(", "))
        }
        _ => String::new(),
    };
    let body = fence("diff", lines.trim_matches('\n'), DETAILS);
    format!("<details><summary>{}</summary>\n\n{names}{body}\n</details>\n", html(title))
}

/// A line with its sign at its beginning, where the highlighting of differences looks for it.
fn signed(line: &str) -> String {
    let inner = line.trim_start();
    let indent = line.len() - inner.len();
    match inner.chars().next() {
        Some(sign @ ('+' | '-' | '~' | '!')) if inner[1..].starts_with(' ') => {
            format!("{sign}{}{}", " ".repeat(indent), &inner[1..])
        }
        _ => line.to_owned(),
    }
}

fn list(title: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let mut out = format!("\n{title}:\n\n");
    for item in items.iter().take(NAMES) {
        let _ = writeln!(out, "- {item}");
    }
    if items.len() > NAMES {
        let _ = writeln!(out, "- and {} more", items.len() - NAMES);
    }
    out.push('\n');
    out
}

/// A block of code that nothing in it can end, at most so long.
fn fence(language: &str, text: &str, most: usize) -> String {
    let lines: String = text.lines().map(|line| inert(line) + "\n").collect();
    let mut shown = String::new();
    let mut left = lines.lines().count();
    for line in lines.lines() {
        if shown.len() + line.len() + 60 > most {
            break;
        }
        shown.push_str(line);
        shown.push('\n');
        left -= 1;
    }
    if left > 0 {
        let _ = writeln!(shown, "… {left} more lines");
    }
    let ticks = "`".repeat(longest_run(&shown).max(2) + 1);
    format!("{ticks}{language}\n{shown}{ticks}\n")
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// Text as inline code, in a table too: a cell ends at a bar even there.
fn code(text: &str) -> String {
    let inner = inert(text).replace('`', "'").replace('|', "\u{a6}");
    if inner.trim().is_empty() { "` `".to_owned() } else { format!("`{inner}`") }
}

/// Text in HTML.
fn html(text: &str) -> String {
    inert(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('@', "&#64;")
}

/// Text without characters that move the cursor, hide, or turn the reading direction: they are spelt out.
fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str("    "),
            c if c.is_control() || hides(c) => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Invisible characters, and those that set the direction of text (Unicode TR 9).
const fn hides(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_code() {
        assert_eq!(code("a`<img src=x>`|@all"), "`a'<img src=x>'\u{a6}@all`");
        assert_eq!(code("\u{202e}evil\u{1b}[2J"), "`\\u{202e}evil\\u{1b}[2J`");
        assert_eq!(html("<b>@all</b>"), "&lt;b&gt;&#64;all&lt;/b&gt;");
        let fenced = fence("text", "# ````\n</details>", 1000);
        assert!(fenced.starts_with("`````text\n") && fenced.ends_with("`````\n"), "{fenced}");
    }

    #[test]
    fn a_long_block_says_how_much_is_left_out() {
        let fenced = fence("text", &"x\n".repeat(1000), 200);
        assert!(fenced.len() < 300 && fenced.contains("more lines"), "{fenced}");
    }

    #[test]
    fn signs_stand_where_highlighting_looks_for_them() {
        assert_eq!(signed("    + route x"), "+     route x");
        assert_eq!(signed("    voice  a -> b"), "    voice  a -> b");
    }
}
