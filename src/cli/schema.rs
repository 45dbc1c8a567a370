//! `patronus schema`: the JSON Schema of the configuration language, for editors and other programs.

use std::io::Write as _;

use super::{Exit, Failure, Outcome};
use crate::config::schema::{self, Kind};

/// Print the JSON Schema of a kind, or of any document.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Site, Path, `FailoverRule`, `SlaClass` or Policy; without it, the schema of any document.
    #[arg(value_name = "KIND")]
    kind: Option<String>,
}

/// Prints the schema.
pub fn run(args: &Args) -> Outcome {
    let schema = match args.kind.as_deref() {
        None => schema::any(),
        Some(word) => schema::document(kind(word)?),
    };
    writeln!(anstream::stdout(), "{schema:#}").map_err(|error| Failure::error("cannot print the schema", &error))?;
    Ok(Exit::Done)
}

fn kind(word: &str) -> Result<Kind, Failure> {
    let words = Kind::ALL.map(Kind::text);
    let known = Kind::ALL.into_iter().find(|kind| kind.text().eq_ignore_ascii_case(word));
    known.ok_or_else(|| {
        let near = crate::diag::suggest(word, words).map(|near| format!("; did you mean `{near}`?"));
        let near = near.unwrap_or_else(|| format!("; the kinds are {}", crate::diag::listed(&words, 9)));
        Failure::new(Exit::Usage, format!("unknown kind `{word}`{near}"))
    })
}
