//! Saved plans: writing one, and whether one may still be carried out.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{Exit, Failure, plan::Made};
use crate::{
    clock,
    plan::{
        saved::{self, Binding, MAX, Saved},
        text,
    },
    settings::Settings,
    source::{
        git::{Purpose, check_signature},
        local::Local,
    },
};

/// What a signature is made for.
const PURPOSE: Purpose = Purpose { namespace: "patronus-plan", what: "plan" };

/// A saved plan as it was read.
pub struct Opened {
    /// The plan.
    pub saved: Saved,
    file: PathBuf,
    bytes: Vec<u8>,
}

/// A saved plan where one is named in place of a directory; YAML is configuration.
pub fn open(path: Option<&Path>) -> Result<Option<Opened>, Failure> {
    let Some(path) = path.filter(|path| path.is_file() && !is_yaml(path)) else { return Ok(None) };
    let doing = || format!("cannot use {}", path.display());
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(MAX as u64).read_to_end(&mut bytes));
    read.map_err(|e| Failure::error(doing(), &e))?;
    let saved = Saved::parse(&bytes).map_err(|e| Failure::error(doing(), &e))?;
    Ok(Some(Opened { saved, file: path.to_owned(), bytes }))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

/// Who signed the plan, where the settings ask for that; a plan without a good signature is refused then.
pub fn approver(opened: &Opened, settings: &Settings) -> Result<Option<String>, Failure> {
    let Some(signers) = &settings.plan_signers else { return Ok(None) };
    let file = opened.file.display();
    let refused = |why: String| {
        let text = format!(
            "this router takes signed plans only, and {why}; nothing was changed\n  \
             sign it: ssh-keygen -Y sign -n {} -f KEY {file}",
            PURPOSE.namespace
        );
        Failure::new(Exit::Error, text)
    };
    let mut name = opened.file.as_os_str().to_owned();
    name.push(".sig");
    let name = PathBuf::from(name);
    let signature = fs::read(&name).map_err(|e| refused(format!("{} cannot be read: {e}", name.display())))?;
    let now = jiff::Timestamp::from_microsecond(clock::wall().as_micros()).unwrap_or_default();
    let found = check_signature(PURPOSE, signers, &signature, &opened.bytes, now);
    let (signer, key) = found.map_err(|why| refused(format!("the signature of {file} is not good: {why}")))?;
    Ok(Some(format!("{signer} ({key})")))
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
    let saved = Saved::new(binding, before, planned.stamp.clone(), planned.steps.to_vec(), shown);
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
    let fetched = made.active.commit.as_ref().filter(|_| directory.is_none()).map(|commit| commit.id.clone());
    let commit = fetched.or_else(|| planned_dir.and_then(|dir| Local::around(dir).ok().flatten()?.head()));
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
