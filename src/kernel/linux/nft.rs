//! The nft table `inet patronus`: loaded and listed through `nft`, its numbers read through netlink.
//!
//! The listing is compared and shown, never parsed. Sets and counters come from the kernel itself, which takes
//! microseconds where a second `nft` would take milliseconds.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::io::AsyncWriteExt as _;

use super::{socket::Channel, tables};
use crate::{
    clock::{self, Instant},
    kernel::KernelError,
    state::{Allocations, Counter, NftTable, Ranges, Stamp},
    units::{Name, pack},
};

pub(super) const TABLE: &str = "patronus";
const LIST: [&str; 5] = ["-s", "list", "table", "inet", TABLE];
/// One transaction, on one line so that nft's line numbers are the source's.
const REPLACE: &str = "table inet patronus {}; delete table inet patronus; ";
/// What stands for the stamp's text in the canonical form.
const NO_STAMP: &str = "-";

/// The ruleset may change between the listing and the reading of the sets so often before it counts as an error.
const LOOKS: usize = 8;

/// A listing of an unchanged ruleset is believed so long; then it is made again all the same.
const LISTING_AGE: Duration = Duration::from_secs(60);

/// Runs of `nft` that are remembered: more than happen between a change and the reading of its notification.
const RUNS: usize = 64;

/// The table with the numbers that it carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub table: Option<NftTable>,
    pub stamp: Option<Stamp>,
    pub allocations: Allocations,
    pub counters: BTreeMap<Name, Counter>,
}

/// The last listing. Listing a thousand policies takes 50 ms, and a generation names one ruleset.
#[derive(Debug)]
struct Listing {
    generation: u32,
    ranges: Ranges,
    at: Instant,
    found: Found,
}

impl Listing {
    fn holds(&self, generation: u32, ranges: &Ranges) -> bool {
        self.generation == generation && self.ranges == *ranges && clock::now().since(self.at) < LISTING_AGE
    }
}

/// The `nft` program and what it said last.
#[derive(Debug)]
pub(super) struct Nft {
    program: PathBuf,
    listing: Mutex<Option<Listing>>,
    /// The highest values seen: counters go on from them after somebody deleted the table.
    counted: Mutex<BTreeMap<Name, Counter>>,
    /// The form in which the ruleset loaded last is expected to be listed: an equal listing shares its text.
    expected: Mutex<Arc<str>>,
    /// Process ids of the newest runs, oldest first: notifications name them.
    runs: Mutex<VecDeque<u32>>,
}

impl Nft {
    pub(super) fn new(program: PathBuf) -> Self {
        Self {
            program,
            listing: Mutex::default(),
            counted: Mutex::default(),
            runs: Mutex::default(),
            expected: Mutex::default(),
        }
    }

    /// Whether this process started that one.
    pub(super) fn started(&self, pid: u32) -> bool {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
    }

    fn note_run(&self, pid: Option<u32>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.extend(pid);
        while runs.len() > RUNS {
            runs.pop_front();
        }
    }

    /// Finds `nft`; ordinary users' `PATH` lacks the directories for administrators.
    pub(super) fn find() -> Result<Self, KernelError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        directories.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
        let found = directories.into_iter().map(|d| d.join("nft")).find(|p| p.is_file());
        found.map(Self::new).ok_or_else(missing)
    }

    /// The program's file and the kernel's release: what the listing of a ruleset depends on. The library that
    /// does the work is replaced together with the program by every packaging.
    pub(super) fn identity(&self) -> Option<String> {
        let file = std::fs::metadata(&self.program).ok()?;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        let (program, length, inode) = (self.program.display(), file.len(), file.ino());
        Some(format!("{program} {length} {inode} {}.{} {}", file.ctime(), file.ctime_nsec(), release.trim()))
    }

    /// What it says of its version.
    pub(super) fn version(&self) -> Option<String> {
        let output = Command::new(&self.program).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Replaces the whole table in one transaction. Counters go on from their present values; what passes while
    /// `nft` runs, some milliseconds, is forwarded and not counted.
    pub(super) async fn load(&self, channel: &Channel, table: &NftTable, stamp: &Stamp) -> Result<(), KernelError> {
        let counters = self.highest(tables::counters(channel)?);
        let text = with_counters(&with_stamp(&table.source, &stamp.to_string()), &counters);
        self.run("load the ruleset", &["-f", "-"], &format!("{REPLACE}{text}")).await?;
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&table.canonical);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|name, _| text.contains(&format!("counter policy_{name} {{")));
        Ok(())
    }

    /// Takes in values of the running counters, and gives back the highest ever seen.
    pub(super) fn highest(&self, running: BTreeMap<Name, Counter>) -> BTreeMap<Name, Counter> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, counter) in running {
            let seen = counted.entry(name).or_default();
            *seen = Counter { packets: seen.packets.max(counter.packets), bytes: seen.bytes.max(counter.bytes) };
        }
        counted.clone()
    }

    /// Deletes the table, if there is one.
    pub(super) async fn delete(&self) -> Result<(), KernelError> {
        self.run("delete table inet patronus", &["-f", "-"], REPLACE).await.map(|_| ())
    }

    async fn list(&self) -> Result<String, KernelError> {
        let text = self.run("list table inet patronus", &LIST, "").await?;
        Ok(with_stamp(&text, NO_STAMP))
    }

    async fn run(&self, doing: &str, arguments: &[&str], input: &str) -> Result<String, KernelError> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| self.not_run(doing, &e))?;
        self.note_run(child.id());
        let mut stdin = child.stdin.take();
        let write = async move {
            if let Some(stdin) = &mut stdin {
                // nft says itself what was wrong with an input that it did not read to its end.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        outcome(doing, &output.map_err(|e| self.not_run(doing, &e))?)
    }

    fn not_run(&self, doing: &str, error: &std::io::Error) -> KernelError {
        if error.kind() == std::io::ErrorKind::NotFound {
            return missing();
        }
        let text = format!("{} could not run: {error}", self.program.display());
        KernelError::Nft { doing: doing.to_owned(), text }
    }

    /// Loads a source in a network namespace of its own and lists it there.
    pub(super) async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        let (nft, source) = (Self::new(self.program.clone()), format!("{REPLACE}{source}"));
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || done.send(nft.canonical_here(&source)));
        let ended = KernelError::Nft { doing: CHECK.to_owned(), text: "the check ended without a result".to_owned() };
        result.await.unwrap_or(Err(ended)).map(|text| with_stamp(&text, NO_STAMP))
    }

    /// Leaves the calling thread in another network namespace; without the privilege for that, a child goes there.
    fn canonical_here(&self, source: &str) -> Result<String, KernelError> {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok() {
            let mut load = Command::new(&self.program);
            self.feed(load.args(["-f", "-"]), source)?;
            return self.feed(Command::new(&self.program).args(LIST), "");
        }
        let script = r#""$0" -f - && exec "$0" -s list table inet patronus"#;
        let mut child = Command::new("unshare");
        let result = self.feed(child.args(["-rn", "sh", "-c", script]).arg(&self.program), source);
        result.map_err(|error| if let KernelError::Nft { .. } = error { error } else { not_isolated() })
    }

    fn feed(&self, command: &mut Command, input: &str) -> Result<String, KernelError> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().map_err(|e| self.not_run(CHECK, &e))?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        });
        outcome(CHECK, &output.map_err(|e| self.not_run(CHECK, &e))?)
    }

    /// The table, its stamp, its numbers: as one picture, by the ruleset's generation before and after.
    pub(super) async fn observe(&self, channel: &Channel, ranges: &Ranges) -> Result<Found, KernelError> {
        for _ in 0..LOOKS {
            let generation = tables::generation(channel)?;
            let found = match self.listed(generation, ranges) {
                Some(found) => Ok(found),
                None => self.look(channel, ranges).await,
            };
            let counters = tables::counters(channel);
            if tables::generation(channel)? == generation {
                let (found, counters) = (found?, counters?);
                let counters = self.highest(counters);
                self.keep(generation, ranges, &found);
                return Ok(Found { counters, ..found });
            }
        }
        let text = format!("the ruleset changed during each of {LOOKS} looks");
        Err(KernelError::Nft { doing: "list table inet patronus".to_owned(), text })
    }

    /// A listing without a second copy of a text that is known.
    fn shared(&self, listed: &str) -> Arc<str> {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if **expected == *listed { Arc::clone(&expected) } else { listed.into() }
    }

    /// What was listed of this generation, a short time ago.
    fn listed(&self, generation: u32, ranges: &Ranges) -> Option<Found> {
        let listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.as_ref().filter(|listing| listing.holds(generation, ranges)).map(|listing| listing.found.clone())
    }

    fn keep(&self, generation: u32, ranges: &Ranges, found: &Found) {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if !listing.as_ref().is_some_and(|listing| listing.holds(generation, ranges)) {
            *listing = Some(Listing { generation, ranges: *ranges, at: clock::now(), found: found.clone() });
        }
    }

    async fn look(&self, channel: &Channel, ranges: &Ranges) -> Result<Found, KernelError> {
        if !tables::exists(channel)? {
            return Ok(Found::default());
        }
        let canonical = self.shared(&self.list().await?);
        let stamps = tables::elements(channel, "stamp")?;
        let mut allocations = Allocations::default();
        for (mark, text) in tables::elements(channel, "targets")? {
            let number = ranges.target_mask.number(mark);
            allocations.targets.extend(text.parse().ok().map(|target| (target, number)));
        }
        for (mark, text) in tables::elements(channel, "policies")? {
            let number = ranges.policy_mask.number(mark);
            allocations.policies.extend(text.parse().ok().map(|policy| (policy, number)));
        }
        pack(&mut allocations.targets);
        pack(&mut allocations.policies);
        Ok(Found {
            stamp: stamps.values().find_map(|text| parse_stamp(text)),
            table: Some(NftTable { source: Arc::clone(&canonical), canonical }),
            allocations,
            counters: BTreeMap::new(),
        })
    }
}

const CHECK: &str = "check the ruleset in a network namespace of its own";

fn missing() -> KernelError {
    KernelError::Missing { what: "the program `nft` is missing: install it with `apt-get install nftables`".to_owned() }
}

fn not_isolated() -> KernelError {
    let what = format!("cannot {CHECK}: run as root, or install util-linux and allow unprivileged user namespaces");
    KernelError::Privilege { what }
}

fn outcome(doing: &str, output: &std::process::Output) -> Result<String, KernelError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") {
        return Err(super::privilege(doing));
    }
    let text = said.replace("/dev/stdin:", "ruleset:").trim_end().to_owned();
    Err(KernelError::Nft { doing: doing.to_owned(), text })
}

fn parse_stamp(text: &str) -> Option<Stamp> {
    let (generation, plan) = text.strip_prefix("generation ")?.split_once(" plan ")?;
    Some(Stamp { generation: generation.parse().ok()?, plan: plan.parse().ok()? })
}

/// The ruleset with another text in the one comment of set `stamp`.
fn with_stamp(ruleset: &str, text: &str) -> String {
    const COMMENT: &str = "comment \"";
    let place = ruleset.find("set stamp {").and_then(|set| {
        let block = &ruleset[set..ruleset[set..].find('}').map_or(ruleset.len(), |end| set + end)];
        let from = set + block.find(COMMENT)? + COMMENT.len();
        Some((from, from + ruleset[from..].find('"')?))
    });
    match place {
        Some((from, to)) => format!("{}{text}{}", &ruleset[..from], &ruleset[to..]),
        None => ruleset.to_owned(),
    }
}

/// The ruleset with each policy's counter starting where the running one stands.
fn with_counters(ruleset: &str, counters: &BTreeMap<Name, Counter>) -> String {
    let lines = ruleset.lines().map(|line| started(line, counters).unwrap_or_else(|| line.to_owned()));
    lines.fold(String::with_capacity(ruleset.len()), |text, line| text + &line + "\n")
}

/// `counter policy_x { packets 0 bytes 0 }` in a rendered source, `counter policy_x {` in a listing.
fn started(line: &str, counters: &BTreeMap<Name, Counter>) -> Option<String> {
    let (name, body) = line.trim_start().strip_prefix("counter policy_")?.split_once(" {")?;
    let Counter { packets, bytes } = counters.get(name)?;
    let close = if body.trim_end().ends_with('}') { " }" } else { "" };
    Some(format!("\tcounter policy_{name} {{ packets {packets} bytes {bytes}{close}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "table inet patronus {
\tset stamp { type mark; elements = { 0x1 comment \"generation 0 plan x\" }
\t}
\tset policies { type mark; elements = { 0x1 comment \"voice\" }
\t}
\tcounter policy_voice { packets 0 bytes 0 }
\tcounter policy_voice-2 {
\t}
}
";

    #[test]
    fn only_the_stamp_gets_another_text() {
        let stamped = with_stamp(SOURCE, "generation 7 plan y");
        assert_eq!(stamped, SOURCE.replace("generation 0 plan x", "generation 7 plan y"));
        assert_eq!(with_stamp(&stamped, NO_STAMP), with_stamp(SOURCE, NO_STAMP));
        let without = SOURCE.replace("set stamp", "set other");
        assert_eq!(with_stamp(&without, NO_STAMP), without);
        let empty = "set stamp {\n\ttype mark\n}\nset x { elements = { 1 comment \"a\" } }";
        assert_eq!(with_stamp(empty, NO_STAMP), empty);
    }

    #[test]
    fn known_counters_go_on_in_both_spellings_and_unknown_ones_begin() {
        let counter = Counter { packets: 3, bytes: 90 };
        let counters = BTreeMap::from([("voice-2".parse().unwrap(), counter)]);
        let text = with_counters(SOURCE, &counters);
        assert_eq!(text, SOURCE.replace("policy_voice-2 {", "policy_voice-2 { packets 3 bytes 90"));
        let counters = BTreeMap::from([("voice".parse().unwrap(), counter)]);
        let text = with_counters(SOURCE, &counters);
        assert_eq!(text, SOURCE.replace("packets 0 bytes 0", "packets 3 bytes 90"));
    }

    #[test]
    fn a_stamp_is_read_as_it_is_written() {
        let stamp = Stamp { generation: 12, plan: uuid::Uuid::from_u128(5) };
        assert_eq!(parse_stamp(&stamp.to_string()), Some(stamp));
        assert_eq!(parse_stamp("-"), None);
    }
}
