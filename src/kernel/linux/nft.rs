//! The nft table `inet patronus`: loaded and listed through `nft`, its numbers read through netlink.
//!
//! The listing is compared and shown, never parsed. Sets and counters come from the kernel itself, which takes
//! microseconds where a second `nft` would take milliseconds.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::errno::Errno;
use tokio::io::AsyncWriteExt as _;

use super::{
    socket::{Channel, Refusal},
    wire,
};
use crate::{
    kernel::KernelError,
    state::{Allocations, Counter, NftTable, Ranges, Stamp},
    units::Name,
};

pub(super) const TABLE: &str = "patronus";
const LIST: [&str; 5] = ["-s", "list", "table", "inet", TABLE];
/// One transaction, on one line so that nft's line numbers are the source's.
const REPLACE: &str = "table inet patronus {}; delete table inet patronus; ";
/// What stands for the stamp's text in the canonical form.
const NO_STAMP: &str = "-";
const COUNTER_PREFIX: &str = "policy_";

const SUBSYSTEM: u16 = 10 << 8;
const NFPROTO_INET: u8 = 1;
const GET_TABLE: u16 = SUBSYSTEM | 0x01;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 0x0c;
const GET_ELEMENTS: u16 = SUBSYSTEM | 0x0d;
const GET_GENERATION: u16 = SUBSYSTEM | 0x10;
const NEW_OBJECT: u16 = SUBSYSTEM | 0x12;
const GET_OBJECT: u16 = SUBSYSTEM | 0x13;
/// `struct nfgenmsg`.
pub(super) const HEADER: usize = 4;
/// Every kind of nft object names its table in attribute 1.
pub(super) const TABLE_NAME: u16 = 1;
/// The ruleset may change between the listing and the reading of the sets so often before it counts as an error.
const LOOKS: usize = 8;

/// The table with the numbers that it carries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub table: Option<NftTable>,
    pub stamp: Option<Stamp>,
    pub allocations: Allocations,
    pub counters: BTreeMap<Name, Counter>,
}

/// The `nft` program.
#[derive(Debug, Clone)]
pub(super) struct Nft {
    program: PathBuf,
}

impl Nft {
    pub(super) const fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Finds `nft`; ordinary users' `PATH` lacks the directories for administrators.
    pub(super) fn find() -> Result<Self, KernelError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        directories.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
        let found = directories.into_iter().map(|d| d.join("nft")).find(|p| p.is_file());
        found.map(Self::new).ok_or_else(missing)
    }

    /// Replaces the whole table in one transaction. Counters go on from their present values.
    pub(super) async fn load(&self, channel: &Channel, source: &str, stamp: &Stamp) -> Result<(), KernelError> {
        let counters = counters(channel)?;
        let text = with_counters(&with_stamp(source, &stamp.to_string()), &counters);
        self.run("load the ruleset", &["-f", "-"], &format!("{REPLACE}{text}")).await.map(|_| ())
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
        let (nft, source) = (self.clone(), format!("{REPLACE}{source}"));
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
        self.feed(child.args(["-rn", "sh", "-c", script]).arg(&self.program), source)
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
            let before = generation(channel)?;
            let found = self.look(channel, ranges).await;
            if generation(channel)? == before {
                return found;
            }
        }
        let text = format!("the ruleset changed during each of {LOOKS} looks");
        Err(KernelError::Nft { doing: "list table inet patronus".to_owned(), text })
    }

    async fn look(&self, channel: &Channel, ranges: &Ranges) -> Result<Found, KernelError> {
        if !exists(channel)? {
            return Ok(Found::default());
        }
        let canonical = self.list().await?;
        let mut found = Found { counters: counters(channel)?, ..Found::default() };
        found.stamp = elements(channel, "stamp")?.values().find_map(|text| parse_stamp(text));
        for (mark, text) in elements(channel, "targets")? {
            let number = ranges.target_mask.number(mark);
            found.allocations.targets.extend(text.parse().ok().map(|target| (target, number)));
        }
        for (mark, text) in elements(channel, "policies")? {
            let number = ranges.policy_mask.number(mark);
            found.allocations.policies.extend(text.parse().ok().map(|policy| (policy, number)));
        }
        found.table = Some(NftTable { source: canonical.clone(), canonical });
        Ok(found)
    }
}

const CHECK: &str = "check the ruleset in a network namespace of its own";

fn missing() -> KernelError {
    KernelError::Missing { what: "the program `nft` is missing: install it with `apt-get install nftables`".to_owned() }
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

/// The generation of the whole ruleset; it changes with every transaction, ours or not.
pub(super) fn generation(channel: &Channel) -> Result<u32, KernelError> {
    const NFTA_GEN_ID: u16 = 1;
    let reply = channel.get(GET_GENERATION, vec![0; HEADER]).map_err(|r| r.doing("read the nft generation"))?;
    let id = wire::find(reply.get(HEADER..).unwrap_or_default(), NFTA_GEN_ID).and_then(wire::be32);
    id.ok_or_else(|| Refusal::text("the answer has no number").doing("read the nft generation"))
}

/// A request about our table.
fn about(attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut request = vec![NFPROTO_INET, 0, 0, 0];
    wire::put_text(&mut request, TABLE_NAME, TABLE);
    for (kind, text) in attributes {
        wire::put_text(&mut request, *kind, text);
    }
    request
}

fn exists(channel: &Channel) -> Result<bool, KernelError> {
    match channel.get(GET_TABLE, about(&[])) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(false),
        Err(refusal) => Err(refusal.doing("look for table inet patronus")),
    }
}

/// Marks in one of our sets, with their comments.
fn elements(channel: &Channel, set: &str) -> Result<BTreeMap<u32, String>, KernelError> {
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    let keep = |kind: u16, payload: &[u8]| {
        let list = wire::find(payload.get(HEADER..).unwrap_or_default(), ELEMENTS).filter(|_| kind == NEW_ELEMENTS);
        Ok(list.map(|list| wire::attributes(list).filter_map(|(_, e)| element(e)).collect::<Vec<_>>()))
    };
    match channel.dump(GET_ELEMENTS, &about(&[(SET, set)]), keep) {
        Ok(parts) => Ok(parts.into_iter().flatten().collect()),
        // Somebody deleted the set: the listing shows it as drift.
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(BTreeMap::new()),
        Err(refusal) => Err(refusal.doing(format!("list set {set} of table inet patronus"))),
    }
}

/// A mark is held in the host's order; a comment is a type, a length and a text that ends in zero.
fn element(attributes: &[u8]) -> Option<(u32, String)> {
    const KEY: u16 = 1;
    const USER_DATA: u16 = 6;
    const DATA_VALUE: u16 = 1;
    let value = wire::find(wire::find(attributes, KEY)?, DATA_VALUE)?;
    Some((wire::u32_at(value, 0)?, comment(wire::find(attributes, USER_DATA).unwrap_or_default())))
}

fn comment(mut user_data: &[u8]) -> String {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = user_data {
        let (value, after) = rest.split_at(rest.len().min(usize::from(*length)));
        if *kind == COMMENT {
            return wire::text(value);
        }
        user_data = after;
    }
    String::new()
}

/// The counters `policy_<name>`; none without the table.
pub(super) fn counters(channel: &Channel) -> Result<BTreeMap<Name, Counter>, KernelError> {
    let keep = |kind: u16, payload: &[u8]| Ok((kind == NEW_OBJECT).then(|| counter(payload)).flatten());
    let found = channel.dump(GET_OBJECT, &about(&[]), keep).map_err(|r| r.doing("read the policies' counters"))?;
    Ok(found.into_iter().collect())
}

fn counter(payload: &[u8]) -> Option<(Name, Counter)> {
    const NAME: u16 = 2;
    const KIND: u16 = 3;
    const DATA: u16 = 4;
    const KIND_COUNTER: u32 = 1;
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let attributes = payload.get(HEADER..)?;
    let ours = wire::find(attributes, TABLE_NAME).map(wire::text).as_deref() == Some(TABLE);
    let kind = wire::find(attributes, KIND).and_then(wire::be32);
    let data = wire::find(attributes, DATA).filter(|_| ours && kind == Some(KIND_COUNTER))?;
    let name = wire::text(wire::find(attributes, NAME)?);
    let value = |kind| wire::find(data, kind).and_then(wire::be64);
    let counter = Counter { packets: value(PACKETS)?, bytes: value(BYTES)? };
    Some((name.strip_prefix(COUNTER_PREFIX)?.parse().ok()?, counter))
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
    Some(format!("\tcounter {COUNTER_PREFIX}{name} {{ packets {packets} bytes {bytes}{close}"))
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

    #[test]
    fn comments_of_any_bytes_end() {
        assert_eq!(comment(&[1, 2, 9, 9, 0, 3, b'a', b'b', 0]), "ab");
        assert_eq!(comment(&[0, 200, b'a']), "a");
        assert_eq!(comment(&[7]), "");
    }
}
