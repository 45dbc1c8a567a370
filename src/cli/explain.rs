//! `patronus explain`: which policy, rule and path a flow takes and why, and what the kernel says to it.
//!
//! Reads the kernel, the journal and the records; asks the daemon for its choice if it runs. Sends no packet.

use std::{io::Write as _, path::PathBuf};

use hyper::Method;
use serde::Serialize;

use self::families::FamilyThen;
use super::{
    Exit, Failure, Format, Outcome,
    context::{self, RouterArgs},
    inspect::{self, Since},
};
use crate::{
    api::client::{self, ClientError},
    clock::{self, Wall},
    config::{Snapshot, scalars::Protocol},
    drift::{self, drifted},
    engine::{
        self, Active,
        router::Router,
        status::{Pinned, Status},
    },
    explain::{self, Asked, Compared, Flow, Kernel, Model, Origin, Ruleset, Tracked, Verdict, World},
    failover::{Alternative, Pin, Selection, Transition},
    foreign,
    kernel::linux::Linux,
    plan,
    settings::Settings,
    source,
    state::{Allocations, Key, Observed},
    store::{self, Generation, Standing, TransitionRecord, read, read::Wanted},
    units::{Dscp, IfName, Name},
    validate::intent::Site,
};

mod families;
mod text;

/// Show which way a flow takes and why, and what the kernel says to it; status 1 if the two disagree
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The flow, such as `tcp 192.168.10.5:4711 to 203.0.113.9:443 dscp ef in lan0`; without a source it is the router's own
    #[arg(value_name = "FLOW")]
    flow: Vec<String>,
    /// Protocol: `tcp`, `udp`, `icmp`, or a number
    #[arg(long, value_name = "NAME")]
    protocol: Option<Protocol>,
    /// Where it begins; an address of the router, or none, means the router's own traffic
    #[arg(long, value_name = "ADDRESS")]
    source: Option<std::net::IpAddr>,
    /// Its source port; connection tracking is asked only if it is known
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Where it leads
    #[arg(long, value_name = "ADDRESS")]
    destination: Option<std::net::IpAddr>,
    /// Its destination port
    #[arg(long, value_name = "PORT")]
    destination_port: Option<u16>,
    /// The DSCP that it comes with: `ef`, `af41`, or a number
    #[arg(long, value_name = "DSCP")]
    dscp: Option<Dscp>,
    /// The interface that it comes in by [default: the one that its source is behind, by `lan`]
    #[arg(long, value_name = "NAME")]
    in_interface: Option<IfName>,
    /// Answer for then, from the records: a duration back such as `2h`, or a time such as `2026-05-01T03:00:00Z`
    #[arg(long, value_name = "WHEN")]
    at: Option<Since>,
    /// Judge by this configuration in place of the one in force
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Everything that there is to say.
#[derive(Debug, Serialize)]
struct Report {
    format_version: u32,
    flow: Flow,
    origin: Origin,
    /// The moment that is answered for; absent for now.
    at: Option<Wall>,
    revision: String,
    model: Model,
    /// What people ordered of the rule and its paths, in force now; not known of the past.
    orders: Vec<ByHand>,
    /// How the rule came to its path.
    since: Option<Chosen>,
    /// How the families of the paths in question were then; empty for now.
    families: Vec<FamilyThen>,
    /// What the kernel says; absent for the past.
    kernel: Option<Kernel>,
    #[serde(flatten)]
    compared: Compared,
}

impl Report {
    /// What the configuration says of a flow, and nothing of the kernel, of people or of the past.
    fn of(flow: Flow, world: &World<'_>, revision: String) -> Result<Self, Failure> {
        let origin = explain::origin(&flow, world.site, world.facts).map_err(|why| Failure::new(Exit::Usage, why))?;
        let model = explain::model(&flow, &origin, world);
        Ok(Self {
            format_version: 1,
            flow,
            origin,
            at: None,
            revision,
            model,
            orders: Vec::new(),
            since: None,
            families: Vec::new(),
            kernel: None,
            compared: Compared::default(),
        })
    }
}

/// An order by hand that is in force.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "order", rename_all = "lowercase")]
enum ByHand {
    /// The rule is to use a path.
    Pin { rule: Name, to: Name, seconds: f64, reason: String },
    /// No rule is to use a path.
    Drain { path: Name, since: Option<Wall> },
}

/// The record of a rule's choice.
#[derive(Debug, Serialize)]
struct Chosen {
    #[serde(flatten)]
    transition: TransitionRecord,
    /// What each path was worth then, and why those that were not chosen lost.
    alternatives: Vec<Alternative>,
    /// The path that is used, if it is another than this record led to: the newest record is missing.
    missing: Option<Name>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let flow = asked(&args).and_then(Asked::flow).map_err(|why| Failure::new(Exit::Usage, why))?;
    let settings = context::settings(&args.router, args.dir.clone())?;
    let router = Router::new(context::kernel()?, context::ledger_to_read(&settings), settings.ranges);
    let failed = |error| context::from_kernel("cannot look at the kernel", &error);
    let observed = router.observe(None).await.map_err(failed)?;
    let report = match args.at {
        Some(Since(at)) if at > clock::wall() => {
            return Err(Failure::new(Exit::Usage, format!("{at} is still to come: nothing is recorded of it")));
        }
        Some(Since(at)) => past(flow, at, &args, &settings, &router, &observed)?,
        None => present(flow, &args, &settings, &router, &observed).await?,
    };
    let shown = match args.output {
        Format::Text => text::report(&report),
        Format::Json => {
            let json = serde_json::to_string_pretty(&report);
            format!("{}\n", json.map_err(|e| Failure::error("cannot print the answer", &e))?)
        }
    };
    anstream::stdout().write_all(shown.as_bytes()).map_err(|e| Failure::error("cannot print the answer", &e))?;
    Ok(if report.compared.disagreements.is_empty() { Exit::Done } else { Exit::Error })
}

fn asked(args: &Args) -> Result<Asked, String> {
    let words = Asked::words(&args.flow.join(" "))?;
    Ok(Asked {
        protocol: args.protocol.or(words.protocol),
        source: args.source.or(words.source),
        source_port: args.source_port.or(words.source_port),
        destination: args.destination.or(words.destination),
        destination_port: args.destination_port.or(words.destination_port),
        dscp: args.dscp.or(words.dscp),
        input: args.in_interface.clone().or(words.input),
    })
}

/// The answer for now: the configuration in force, the choice of the daemon or the one remembered, the kernel.
async fn present(
    flow: Flow,
    args: &Args,
    settings: &Settings,
    router: &Router<Linux>,
    observed: &Observed,
) -> Result<Report, Failure> {
    let active = configuration(args, settings, router).await?;
    let (selection, orders) = choices(settings, router, &active).await?;
    // Numbers of a table that is gone lead nowhere.
    let nothing = Allocations::default();
    let numbers = if observed.stamp.is_some() { &observed.allocations } else { &nothing };
    let (site, ranges) = (&active.site, &settings.ranges);
    let world = World { site, selection: &selection, facts: &observed.facts, numbers, ranges };
    let report = Report::of(flow, &world, active.revision)?;
    let kernel = kernel(&report.flow, &report.origin, &report.model, router, observed, &world)?;
    let mut compared = explain::compare(&report.flow, &report.model, &kernel, &world);
    compared.disagreements.extend(barred(&report.model, router, observed, &world));
    let since = chosen(settings, &report.model, clock::wall());
    let orders = bearing(orders, &report.model, site);
    Ok(Report { orders, since, kernel: Some(kernel), compared, ..report })
}

/// What is in force; where nothing is, what the settings lead to.
async fn configuration(args: &Args, settings: &Settings, router: &Router<Linux>) -> Result<Active, Failure> {
    match router.ledger.in_force().filter(|_| args.dir.is_none()) {
        Some(kept) => context::again(settings, kept),
        None => context::configuration(settings).await,
    }
}

/// Which path each rule uses, and what people ordered.
async fn choices(
    settings: &Settings,
    router: &Router<Linux>,
    active: &Active,
) -> Result<(Selection, Vec<ByHand>), Failure> {
    let mut selection = context::selection(&context::Memory::of(router), active);
    match client::ask::<Status>(&settings.socket, Method::GET, "/v1/status", inspect::PATIENCE).await {
        Ok(status) => {
            let orders = ordered(&status);
            let known = status.rules.into_iter().filter(|(name, _)| active.site.rules.contains_key(name));
            selection.rules.extend(known.map(|(name, rule)| (name, rule.choice)));
            Ok((selection, orders))
        }
        // Whoever cannot ask the daemon reads what it remembers: it is written down with every switch.
        Err(ClientError::Down { .. } | ClientError::Forbidden { .. }) => Ok((selection, remembered(router))),
        Err(error) => Err(inspect::failure(&error)),
    }
}

fn ordered(status: &Status) -> Vec<ByHand> {
    let pins = status.rules.iter().filter_map(|(rule, known)| {
        let Pinned { to, seconds, reason } = known.pinned.clone()?;
        Some(ByHand::Pin { rule: rule.clone(), to, seconds, reason })
    });
    let drained = status.paths.iter().filter(|(_, path)| path.drained);
    pins.chain(drained.map(|(path, known)| ByHand::Drain { path: path.clone(), since: known.drained_since })).collect()
}

fn remembered(router: &Router<Linux>) -> Vec<ByHand> {
    let (orders, now) = (engine::kept_orders(&router.ledger), clock::now());
    let pins = orders.pins.into_iter().map(|(rule, Pin { to, until, reason })| {
        let seconds = until.since(now).as_secs_f64();
        ByHand::Pin { rule, to, seconds, reason }
    });
    let drains = orders.drains.into_iter().map(|(path, drain)| ByHand::Drain { path, since: Some(drain.since) });
    pins.chain(drains).collect()
}

/// The orders that have a say in where a flow goes: those for its rule, and for the paths of that rule.
fn bearing(orders: Vec<ByHand>, model: &Model, site: &Site) -> Vec<ByHand> {
    let rule = match &model.verdict {
        Verdict::Steered(steered) => steered.rule.as_ref().and_then(|rule| site.rules.get(rule)),
        _ => None,
    };
    let bears = |order: &ByHand| match (order, rule) {
        (ByHand::Pin { rule: pinned, .. }, Some(rule)) => *pinned == rule.name,
        (ByHand::Drain { path, .. }, Some(rule)) => rule.members.contains(path),
        (_, None) => false,
    };
    orders.into_iter().filter(bears).collect()
}

/// All that the kernel tells of a flow without a packet.
fn kernel(
    flow: &Flow,
    origin: &Origin,
    model: &Model,
    router: &Router<Linux>,
    observed: &Observed,
    world: &World<'_>,
) -> Result<Kernel, Failure> {
    let failed = |error| context::from_kernel("cannot look the flow up", &error);
    let look = |mark| router.kernel.look_up(flow, origin, mark).map_err(failed);
    let route = look(explain::first_mark(origin, model, world))?;
    let tracked = tracked(flow, router, world);
    let bound = match &tracked {
        Some(Tracked { target: Some(_), mark, .. }) => Some(look(mark & world.ranges.target_mask.bits())?),
        _ => None,
    };
    let around = router.kernel.surroundings(world.ranges).map_err(failed)?;
    let ahead = foreign::overrides(&around, &observed.intruders, world.ranges);
    let ahead = ahead.into_iter().filter(|o| o.kind == foreign::Kind::RuleAhead).map(|o| o.what);
    Ok(Kernel { ruleset: ruleset(router, observed), route, tracked, bound, ahead: ahead.collect() })
}

/// Without the privilege for it, connection tracking has nothing to say.
fn tracked(flow: &Flow, router: &Router<Linux>, world: &World<'_>) -> Option<Tracked> {
    let found = router.kernel.tracked(flow).unwrap_or_else(|error| {
        tracing::warn!("connection tracking is left out: {error}");
        None
    });
    let (mark, source_became) = found?;
    let number = world.ranges.target_mask.number(mark);
    let mut targets = world.numbers.targets.iter();
    let target = targets.find(|(_, n)| **n == number && number != 0).map(|(target, _)| target.clone());
    Some(Tracked { mark, source_became, target })
}

fn ruleset(router: &Router<Linux>, observed: &Observed) -> Ruleset {
    match router.applied() {
        _ if observed.stamp.is_none() => Ruleset::Missing,
        None => Ruleset::Unknown,
        Some(applied) if drifted(applied, applied, &observed.state).iter().any(|d| d.key == Key::Nft) => {
            Ruleset::Changed
        }
        Some(_) => Ruleset::Intact,
    }
}

/// The paths that the flow could take and that somebody left without a way of their own: nothing can be measured of them.
fn barred(model: &Model, router: &Router<Linux>, observed: &Observed, world: &World<'_>) -> Vec<String> {
    let Some(applied) = router.applied() else { return Vec::new() };
    let could = in_question(model, world.site);
    let text = |d: &drift::Drifted| {
        let path =
            drift::barred(d, applied, &world.numbers.targets, world.ranges).filter(|path| could.contains(path))?;
        let command = plan::text::command(&d.key, applied.objects.get(&d.key)?, world.ranges.protocol)?;
        let what = plan::text::key_text(&d.key);
        Some(format!("path {path} has no way of its own: {what} {}; `{command}` puts it back", d.how))
    };
    drifted(applied, applied, &observed.state).iter().filter_map(text).collect()
}

/// The answer for an earlier moment: the configuration that was in force then, and what its rules used by the records.
/// The kernel of then cannot be asked.
fn past(
    flow: Flow,
    at: Wall,
    args: &Args,
    settings: &Settings,
    router: &Router<Linux>,
    observed: &Observed,
) -> Result<Report, Failure> {
    let active = configuration_at(at, args, settings, router)?;
    let mut selection = context::selection(&context::Memory { selection: None, last_good: None }, &active);
    for (rule, choice) in &mut selection.rules {
        let Some(record) = recorded(settings, rule, at)? else {
            continue;
        };
        let members = active.site.rules.get(rule).map(|r| r.members.clone()).unwrap_or_default();
        choice.tail = members.into_iter().filter(|path| Some(path) != record.to.as_ref()).collect();
        if !choice.sharing.is_empty() && !choice.in_turn {
            let used = alternatives(settings, &record).into_iter().filter(|other| other.lost.is_empty());
            choice.sharing = used.map(|other| other.path).collect();
        }
        choice.active.clone_from(&record.to);
        families::part(settings, &record, choice, at);
    }
    let (numbers, site) = (Allocations::default(), &active.site);
    let facts = explain::with_carrier(&observed.facts);
    let world = World { site, selection: &selection, facts: &facts, numbers: &numbers, ranges: &settings.ranges };
    let report = Report::of(flow, &world, active.revision)?;
    let since = chosen(settings, &report.model, at);
    let families = families::then(settings, in_question(&report.model, site).into_iter(), at);
    Ok(Report { at: Some(at), since, families, ..report })
}

fn configuration_at(at: Wall, args: &Args, settings: &Settings, router: &Router<Linux>) -> Result<Active, Failure> {
    let generation = || {
        let all = read::generations(&store::place(&settings.state_dir, &settings.runtime_dir), 1_000).ok()?;
        let stood = |g: &&Generation| g.at <= at && !matches!(g.standing, Standing::RollbackFailed);
        // One that was confirmed goes on: only what was undone by then was not in force any more.
        let undone = |g: &Generation| g.standing == Standing::RolledBack && g.ended.is_some_and(|ended| ended <= at);
        let number = all.iter().rev().filter(stood).find(|g| !undone(g))?.generation;
        router.ledger.generation_at(number)
    };
    let snapshot = if let Some(dir) = &args.dir {
        source::read(dir).map_err(|error| Failure::error(dir.display(), &error))?
    } else {
        let (found, files) = generation().ok_or_else(|| {
            let text = format!(
                "which configuration was in force at {at} is not known: `patronus history --generations` lists what is\n  \
                 `--dir DIR` names a configuration to judge by"
            );
            Failure::new(Exit::Error, text)
        })?;
        Snapshot { revision: found.revision, files, commit: None }
    };
    context::activate(snapshot, settings).map_err(|error| Failure::new(Exit::Config, error.lines().join("\n")))
}

/// The paths that a flow could take.
fn in_question<'a>(model: &'a Model, site: &'a Site) -> Vec<&'a Name> {
    let Verdict::Steered(steered) = &model.verdict else { return Vec::new() };
    let rule = steered.rule.as_ref().and_then(|rule| site.rules.get(rule));
    rule.map_or_else(|| steered.path.iter().collect(), |rule| rule.members.iter().collect())
}

/// The last change of a rule's path up to a moment.
fn recorded(settings: &Settings, rule: &Name, at: Wall) -> Result<Option<TransitionRecord>, Failure> {
    let wanted = Wanted { since: None, until: Some(at), only: Some(rule.to_string()), limit: 1 };
    let found = read::transitions(&settings.state_dir, &wanted);
    found.map(|mut all| all.pop()).map_err(|error| Failure::error("cannot read the records", &error))
}

/// How the rule of a flow came to its path, as far as the records tell.
fn chosen(settings: &Settings, model: &Model, at: Wall) -> Option<Chosen> {
    let Verdict::Steered(steered) = &model.verdict else { return None };
    let rule = steered.rule.as_ref()?;
    let transition = recorded(settings, rule, at).ok()??;
    let alternatives = alternatives(settings, &transition);
    // A path that cannot carry the flow, and one of several that share, is another for that reason.
    let alone = steered.skipped.is_empty() && steered.shares.is_empty();
    let missing = steered.path.clone().filter(|path| alone && transition.to.as_ref() != Some(path));
    Some(Chosen { transition, alternatives, missing })
}

/// What each path was worth when a rule chose.
fn alternatives(settings: &Settings, transition: &TransitionRecord) -> Vec<Alternative> {
    // The event with the whole record is written down in the same breath, a moment before.
    let near = Wall::from_micros(transition.at.as_micros().saturating_sub(1_000_000));
    let wanted = Wanted { since: Some(near), until: Some(transition.at), only: None, limit: 1_000 };
    let events = read::events(&settings.state_dir, &wanted).unwrap_or_default();
    let of_rule = events.into_iter().rev().filter(|event| event.subject == transition.rule.as_str());
    let whole = of_rule.filter_map(|event| serde_json::from_value::<Transition>(event.detail).ok());
    let same = |t: &Transition| t.to == transition.to && t.reason == transition.reason;
    whole.into_iter().find(same).map(|t| t.alternatives).unwrap_or_default()
}
