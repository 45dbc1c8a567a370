//! Saved plans: writing one, and whether one may still be carried out.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{Exit, Failure, plan::Made};
use crate::{
    plan::{
        saved::{self, Binding, MAX, Saved},
        text,
    },
    settings::Settings,
    source::local::Local,
};

/// A saved plan where one is named in place of a directory; YAML is configuration.
pub fn open(path: Option<&Path>) -> Result<Option<Saved>, Failure> {
    let Some(path) = path.filter(|path| path.is_file() && !is_yaml(path)) else { return Ok(None) };
    let doing = || format!("cannot use {}", path.display());
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(MAX as u64).read_to_end(&mut bytes));
    read.map_err(|e| Failure::error(doing(), &e))?;
    Saved::parse(&bytes).map(Some).map_err(|e| Failure::error(doing(), &e))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

/// The settings as the plan was made for: its site, and its directory where one was named.
pub fn adopt(saved: &Saved, settings: &mut Settings) -> Result<(), Failure> {
    let site = &saved.binding.site;
    match &settings.site {
        Some(own) if own != site => {
            let text = format!("this plan is for site {site}, and this router is {own}; nothing was changed");
            Err(Failure::new(Exit::Error, text))
        }
        _ => {
            settings.site = Some(site.clone());
            Ok(())
        }
    }
}

/// Saves a plan.
pub fn write(file: &Path, made: &Made, dir: Option<&Path>, settings: &Settings) -> Result<(), Failure> {
    let directory = match dir {
        Some(dir) => {
            Some(dir.canonicalize().map_err(|e| Failure::error(format!("cannot find {}", dir.display()), &e))?)
        }
        None => None,
    };
    let binding = binding(made, directory.as_deref(), settings);
    let shown = anstream::adapter::strip_str(&text::render(&made.report, true)).to_string();
    let planned = &made.planned;
    let before = made.observed.state.as_ref().clone();
    let saved = Saved::new(binding, before, planned.stamp.clone(), planned.steps.clone(), shown);
    let failed = |e: &dyn std::error::Error| Failure::error(format!("cannot save the plan as {}", file.display()), e);
    let text = saved.text().map_err(|e| failed(&e))?;
    replace(file, text.as_bytes()).map_err(|e| failed(&e))
}

/// Whole or not at all: beside, then renamed.
pub fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut new = fs::File::create(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(beside, file)
}

fn binding(made: &Made, directory: Option<&Path>, settings: &Settings) -> Binding {
    let planned_dir = directory.or_else(|| settings.directory());
    let commit = planned_dir.and_then(|dir| Local::around(dir).ok().flatten()?.head());
    Binding {
        site: made.active.site.name.clone(),
        directory: directory.map(|dir| dir.to_string_lossy().into_owned()),
        revision: made.active.revision.clone(),
        commit,
        configuration: saved::digest(&made.active.files),
        previous: made.planned.previous.clone(),
    }
}

/// Puts the saved plan in the fresh one's place if it is still the same; else says what has moved.
pub fn take(saved: &Saved, made: &mut Made, settings: &Settings) -> Result<(), Failure> {
    let now = binding(made, saved.binding.directory.as_ref().map(Path::new), settings);
    let moved = saved.moved(&now, &made.observed.state, &made.planned.steps);
    if moved.is_empty() {
        made.planned.stamp = saved.stamp.clone();
        return Ok(());
    }
    let text = format!(
        "this plan is out of date; nothing was changed:\n  {}\n  make it again: patronus plan --out FILE",
        moved.join("\n  ")
    );
    Err(Failure::new(Exit::Error, text))
}
