//! The real kernel: netlink, nft, sysctl, conntrack.
//!
//! A [`Linux`] works in the network namespace of the thread that connects it. Keep using it from threads in
//! that namespace: `/proc/sys/net` and the `nft` program follow the thread, the sockets stay where they were
//! opened.

mod conntrack;
mod events;
mod forget;
mod link;
mod neighbours;
mod nft;
pub mod processes;
mod route;
mod rule;
mod socket;
mod surroundings;
mod sysctl;
mod tables;
mod trial;
mod way;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;

pub use self::{events::Changes, trial::in_empty_namespace};
use self::{
    link::Links,
    nft::Nft,
    route::malformed,
    socket::{Channel, Refusal, Request},
};
use super::{Doomed, Executed, Forgotten, Kernel, KernelError, Scope};
use crate::{
    explain::{Flow, Lookup, Origin},
    foreign::{Surroundings, programs::Touch},
    plan::Step,
    state::{Counter, Key, Observed, Ranges, RouteKey, RouteValue, RuleKey, Stamp, SysctlKey, Value, Way},
    units::{IfName, Name, pack},
};

/// Tables looked into for routes of others, beyond those in use.
const TABLES_WATCHED: u32 = 255;
/// Two equal looks in a row are believed; this many are taken at most.
const CONFIRMATIONS: usize = 4;

/// The kernel of the calling thread's network namespace.
pub struct Linux {
    route: Channel,
    netfilter: Channel,
    nft: Nft,
    /// The source rendered last with its canonical form, until it is loaded: a plan that cannot be carried out is
    /// made again and again.
    canonical: Mutex<Option<(String, String)>>,
}

impl Linux {
    /// Connects to the kernel of the calling thread's network namespace. Needs no privilege; says what is
    /// missing: `nft`, or a kernel of 4.20 or later.
    pub fn connect() -> Result<Self, KernelError> {
        Ok(Self {
            route: Channel::open(NETLINK_ROUTE, true)?,
            netfilter: Channel::open(NETLINK_NETFILTER, false)?,
            nft: Nft::find()?,
            canonical: Mutex::default(),
        })
    }

    /// The same with another `nft` program.
    #[must_use]
    pub fn using_nft(self, program: PathBuf) -> Self {
        Self { nft: Nft::new(program), ..self }
    }

    /// Subscribes to what changes in the calling thread's network namespace. Do so before the first look, and
    /// within a tokio runtime. Needs `CAP_NET_ADMIN`, for the nft table.
    pub fn subscribe(ranges: &Ranges) -> Result<Changes, KernelError> {
        Changes::open(events::BUFFER, ranges)
    }

    /// Routes, rules, tunnels, links and addresses, without nft, sysctls and foreign routes: the fast look.
    ///
    /// Cannot fail for want of privilege.
    pub fn observe_routing(&self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut last = self.look_at_routing(scope)?;
        for _ in 1..CONFIRMATIONS {
            let next = self.look_at_routing(scope)?;
            if next == last {
                break;
            }
            last = next;
        }
        Ok(last)
    }

    /// Everything that rtnetlink tells in one look.
    fn look_at_routing(&self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        let links = link::list(&self.route)?;
        let routes = route::ours(&self.route, &scope.ranges, &links.names)?;
        let rules = rule::list(&self.route, &scope.ranges)?;
        let objects = &mut Arc::make_mut(&mut observed.state).objects;
        objects.extend(links.tunnels().map(|(name, tunnel)| (Key::Link { name }, Value::Link(Box::new(tunnel)))));
        objects.extend(routes.into_iter().map(|(key, value)| (Key::Route(key), Value::Route(value))));
        objects.extend(rules.ours.into_iter().map(|key| (Key::Rule(key), Value::Rule)));
        observed.intruders = rules.intruders;
        self.add_facts(scope, &links, &mut observed)?;
        Ok(observed)
    }

    fn add_facts(&self, scope: &Scope, links: &Links, observed: &mut Observed) -> Result<(), KernelError> {
        let facts = &mut observed.facts.links;
        let wanted = |name: &IfName| scope.interfaces.is_empty() || scope.interfaces.contains(name);
        for link in links.all.iter().filter(|link| wanted(&link.name)) {
            facts.insert(link.name.clone(), links.facts(link));
        }
        pack(facts);
        for (index, family, _, gateway) in route::defaults(&self.route)? {
            if let Some(link) = links.names.get(&index).and_then(|name| facts.get_mut(name)) {
                link.gateways.entry(family).or_insert(gateway);
            }
        }
        Ok(())
    }

    /// Values of the counters `policy_<name>`, or those seen last where somebody deleted them.
    pub fn counters(&self) -> Result<BTreeMap<Name, Counter>, KernelError> {
        Ok(self.nft.highest(tables::counters(&self.netfilter)?))
    }

    /// Bytes that an interface has received and sent; none if it is not there. About 20 microseconds.
    pub fn link_bytes(&self, interface: &IfName) -> Result<Option<(u64, u64)>, KernelError> {
        link::bytes(&self.route, interface).map_err(|r| r.doing(format!("read the counters of {interface}")))
    }

    /// What others have in the kernel around our objects. Some milliseconds for thousands of rules of nftables.
    pub fn surroundings(&self, ranges: &Ranges) -> Result<Surroundings, KernelError> {
        Ok(Surroundings {
            rules: rule::foreign(&self.route, ranges)?,
            chains: surroundings::chains(&self.netfilter)?,
            flowtables: surroundings::flowtables(&self.netfilter)?,
        })
    }

    /// Neighbours on the links: whether the kernel believes that they are there.
    pub fn neighbours(&self) -> Result<BTreeMap<(IfName, IpAddr), bool>, KernelError> {
        neighbours::list(&self.route, &link::list(&self.route)?.names)
    }

    /// What `nft --version` says.
    #[must_use]
    pub fn nft_version(&self) -> Option<String> {
        self.nft.version()
    }

    /// Whether this process did what a notification tells of.
    #[must_use]
    pub fn is_own(&self, touch: &Touch) -> bool {
        if touch.kind == "nft" { self.nft.started(touch.pid) } else { self.route.port() == Some(touch.pid) }
    }

    /// Whether the kernel announces that a sysctl was changed. Of some, such as `src_valid_mark`, it does not.
    #[must_use]
    pub fn announces(&self, key: &SysctlKey) -> bool {
        sysctl::is_announced(&key.path)
    }

    /// The value of a sysctl, if it is there; about 3 microseconds.
    pub fn sysctl(&self, key: &SysctlKey) -> Result<Option<Value>, KernelError> {
        sysctl::read_one(&key.path)
    }

    /// How this machine's own packets reach each of these networks; those that it cannot reach are left out.
    pub fn ways<'a>(&self, nets: impl IntoIterator<Item = &'a IpNet>) -> Result<BTreeMap<IpNet, Way>, KernelError> {
        let names = link::list(&self.route)?.names;
        let mut ways = BTreeMap::new();
        for net in nets {
            let found = way::to(&self.route, net, &names).map_err(|r| r.doing(format!("look up the way to {net}")))?;
            ways.extend(found.map(|way| (*net, way)));
        }
        Ok(ways)
    }

    /// The route that the kernel takes for the first packet of a flow with this mark. No packet is sent, and nothing
    /// but reading is needed.
    pub fn look_up(&self, flow: &Flow, origin: &Origin, mark: u32) -> Result<Lookup, KernelError> {
        let names = link::list(&self.route)?.names;
        let index = |name: &IfName| names.iter().find(|(_, n)| *n == name).map(|(index, _)| *index);
        let input = match origin.interface().map(|name| index(name).ok_or(name)) {
            None => None,
            Some(Ok(index)) => Some(index),
            Some(Err(name)) => return Ok(Lookup::Refused { why: format!("there is no interface {name}") }),
        };
        Ok(way::lookup(
            &self.route,
            way::Packet {
                source: flow.source,
                destination: flow.destination,
                mark,
                input,
                transport: (flow.protocol.0, flow.source_port(), flow.destination_port),
                names: &names,
            },
        ))
    }

    /// The entry of a flow in connection tracking: its mark, and what its source address became. Of TCP and UDP, and
    /// only where both ports and the source are given. Needs `CAP_NET_ADMIN`.
    pub fn tracked(&self, flow: &Flow) -> Result<Option<(u32, Option<IpAddr>)>, KernelError> {
        let known = (flow.source, flow.given_port, flow.destination_port);
        let (Some(source), Some(from), Some(to)) = known else { return Ok(None) };
        let protocol = flow.protocol.0;
        if ![6, 17].contains(&protocol) {
            return Ok(None);
        }
        let tuple = conntrack::Tuple { protocol, source, destination: flow.destination, ports: [from, to] };
        conntrack::find(&self.netfilter, &tuple)
    }

    /// Active flows by policy number, as the connection marks say. The kernel cannot count by a part of the
    /// mark: this reads its whole table of connections, on a thread for such work.
    pub fn flows_by_policy(
        &self,
        ranges: &Ranges,
    ) -> impl Future<Output = Result<BTreeMap<u32, u64>, KernelError>> + Send + use<> {
        let (ranges, channel) = (*ranges, Channel::open(NETLINK_NETFILTER, false));
        let work = move || conntrack::by_policy(&channel?, &ranges);
        async { tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(ended(&e, "count flows"))) }
    }

    /// Carries out steps that set routes, all in one go: one result for each, in order. A step of another
    /// kind is refused.
    pub fn switch_routes(&self, steps: &[Step], ranges: &Ranges) -> Vec<Result<(), KernelError>> {
        let mut indices = BTreeMap::new();
        let prepared: Vec<_> = steps.iter().map(|step| self.prepare(step, ranges, &mut indices)).collect();
        let requests = prepared.iter().filter_map(|p| p.as_ref().ok().cloned()).collect();
        let mut answers = self.route.ask_all(requests).into_iter();
        let finish = |(step, prepared): (&Step, Result<Request, KernelError>)| {
            prepared?;
            self.settle(step, ranges, answers.next().unwrap_or(Ok(())))
        };
        steps.iter().zip(prepared).map(finish).collect()
    }

    fn prepare(
        &self,
        step: &Step,
        ranges: &Ranges,
        indices: &mut BTreeMap<IfName, u32>,
    ) -> Result<Request, KernelError> {
        let (key, before, after) = route_step(step)?;
        let Some(after) = after else { return Ok(route::unset(key, ranges)) };
        let index = match after {
            RouteValue::Via { interface, .. } => Some(self.index(interface, key, indices)?),
            _ => None,
        };
        route::set(key, after, index, ranges, before.is_some())
    }

    fn index(
        &self,
        interface: &IfName,
        key: &RouteKey,
        indices: &mut BTreeMap<IfName, u32>,
    ) -> Result<u32, KernelError> {
        if let Some(index) = indices.get(interface) {
            return Ok(*index);
        }
        let index = link::index(&self.route, interface).map_err(|r| r.doing(doing("set", key)))?;
        indices.insert(interface.clone(), index);
        Ok(index)
    }

    /// What the kernel's answer to a route request means.
    fn settle(&self, step: &Step, ranges: &Ranges, answer: Result<(), Refusal>) -> Result<(), KernelError> {
        let Err(refusal) = answer else { return Ok(()) };
        let (key, before, after) = route_step(step)?;
        match after {
            None if refusal.is(Errno::ESRCH) || refusal.is(Errno::ENOENT) => Ok(()),
            None => Err(refusal.doing(doing("delete", key))),
            Some(_) if before.is_none() && refusal.is(Errno::EEXIST) => self.add_over(step, key, ranges, &refusal),
            Some(_) => Err(refusal.doing(doing("set", key))),
        }
    }

    /// The key is taken: by ourselves, then it is replaced; by somebody else, then it is an error.
    fn add_over(&self, step: &Step, key: &RouteKey, ranges: &Ranges, refusal: &Refusal) -> Result<(), KernelError> {
        if !route::holds(&self.route, key, ranges).map_err(|r| r.doing(doing("look for", key)))? {
            let text = format!("{}: a route of another protocol has this key", refusal.text);
            return Err(Refusal { text, errno: refusal.errno }.doing(doing("add", key)));
        }
        let mut request = self.prepare(step, ranges, &mut BTreeMap::new())?;
        request.flags = wire::CREATE | wire::REPLACE;
        self.route.ask(request).map_err(|r| r.doing(doing("set", key)))
    }

    fn set_route(&self, step: &Step, ranges: &Ranges) -> Result<(), KernelError> {
        // The kernel replaces an IPv6 multipath route member by member; what is not ours in form goes first.
        if let (key, Some(RouteValue::Other { .. }), Some(_)) = route_step(step)? {
            let answer = self.route.ask(route::unset(key, ranges));
            answer.or_else(|r| if r.is(Errno::ESRCH) { Ok(()) } else { Err(r.doing(doing("delete", key))) })?;
        }
        self.switch_routes(std::slice::from_ref(step), ranges).into_iter().next().unwrap_or(Ok(()))
    }

    fn set_rule(&self, key: &RuleKey, add: bool, ranges: &Ranges) -> Result<(), KernelError> {
        let (verb, request, settled) = if add {
            ("add", rule::add(key, ranges), [Errno::EEXIST, Errno::EEXIST])
        } else {
            ("delete", rule::delete(key, ranges), [Errno::ENOENT, Errno::ESRCH])
        };
        match self.route.ask(request) {
            Err(refusal) if !settled.iter().any(|errno| refusal.is(*errno)) => {
                Err(refusal.doing(format!("{verb} the {} rule with priority {}", key.family, key.priority)))
            }
            _ => Ok(()),
        }
    }

    async fn set_nft(&self, after: Option<&Value>, stamp: &Stamp) -> Result<(), KernelError> {
        match after {
            None => self.nft.delete().await,
            Some(Value::Nft(table)) => {
                self.nft.load(&self.netfilter, table, stamp).await?;
                *self.canonical.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(())
            }
            Some(_) => Err(malformed("the value of the nft table")),
        }
    }

    async fn set(&self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<(), KernelError> {
        let Step::Set { key, after, .. } = step else { return Err(malformed("a step")) };
        let after = after.as_ref();
        match key {
            Key::Sysctl(key) => sysctl::set(&key.path, after),
            Key::Link { name } => link::set(&self.route, name, link::wanted(after)?),
            Key::Route(_) => self.set_route(step, ranges),
            Key::Rule(key) => self.set_rule(key, after.is_some(), ranges),
            Key::Nft => self.set_nft(after, stamp).await,
        }
    }

    /// Tables in which routes of others matter: those in use, and the first ones of the range.
    fn watched_tables(ranges: &Ranges, observed: &Observed) -> Vec<u32> {
        let used = observed.state.objects.keys().filter_map(|key| match key {
            Key::Route(key) => Some(key.table),
            Key::Rule(key) => Some(key.table),
            _ => None,
        });
        let first = (1..=ranges.target_mask.max_number().min(TABLES_WATCHED)).map(|n| ranges.table(n));
        let all: BTreeSet<u32> = used.filter(|table| ranges.owns_table(*table)).chain(first).collect();
        all.into_iter().collect()
    }

    fn remembered(&self, source: &str) -> Option<String> {
        let kept = self.canonical.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(known, _)| known == source).map(|(_, form)| form.clone())
    }
}

impl Kernel for Linux {
    async fn observe(&self, scope: &Scope) -> Result<Observed, KernelError> {
        let found = self.nft.observe(&self.netfilter, &scope.ranges).await?;
        let mut observed = self.observe_routing(scope)?;
        let tables = Self::watched_tables(&scope.ranges, &observed);
        observed.intruders.extend(route::intruders(&self.route, &scope.ranges, &tables)?);
        let objects = &mut Arc::make_mut(&mut observed.state).objects;
        objects.extend(sysctl::read(&scope.sysctls)?);
        objects.extend(found.table.map(|table| (Key::Nft, Value::Nft(table))));
        observed.stamp = found.stamp;
        observed.allocations = found.allocations;
        observed.counters = found.counters;
        Ok(observed)
    }

    async fn execute(&self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        match step {
            Step::Set { .. } => self.set(step, ranges, stamp).await.map(|()| Executed::default()),
            Step::Forget { .. } => self.forget_all(std::slice::from_ref(step), ranges, stamp).await,
        }
    }

    async fn forget_all(&self, steps: &[Step], _: &Ranges, _: &Stamp) -> Result<Executed, KernelError> {
        let doomed = steps.iter().map(|step| match step {
            Step::Forget { flows, family, .. } => Ok(Doomed { flows: *flows, family: *family }),
            Step::Set { .. } => Err(malformed("a step that forgets flows")),
        });
        let Forgotten { flows, error } = Self::forget(doomed.collect::<Result<_, _>>()?).await;
        error.map_or_else(|| Ok(Executed { flows: flows.iter().sum() }), Err)
    }

    async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        if let Some(form) = self.remembered(source) {
            return Ok(form);
        }
        let form = self.nft.canonical(source).await?;
        *self.canonical.lock().unwrap_or_else(PoisonError::into_inner) = Some((source.to_owned(), form.clone()));
        Ok(form)
    }

    fn canonical_by(&self) -> Option<String> {
        self.nft.identity()
    }
}

/// Whether this process may change the network: `CAP_NET_ADMIN` is in its effective set (capabilities(7)).
#[must_use]
pub fn has_net_admin() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    capabilities() & (1 << CAP_NET_ADMIN) != 0
}

/// The effective capabilities of this process, as bits.
#[must_use]
pub fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

/// Work on a thread of its own that did not come to its end.
fn ended(error: &tokio::task::JoinError, doing: &str) -> KernelError {
    Refusal::text(error.to_string()).doing(doing)
}

fn privilege(doing: &str) -> KernelError {
    let what = format!(
        "cannot {doing}: that needs the capability CAP_NET_ADMIN; run as root, or as a service with `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`"
    );
    KernelError::Privilege { what }
}

fn route_step(step: &Step) -> Result<(&RouteKey, Option<&RouteValue>, Option<&RouteValue>), KernelError> {
    let value = |value: &'_ Option<Value>| !matches!(value, None | Some(Value::Route(_)));
    match step {
        Step::Set { key: Key::Route(key), before, after, .. } if !value(before) && !value(after) => {
            Ok((key, as_route(before.as_ref()), as_route(after.as_ref())))
        }
        _ => Err(malformed("a step for a route")),
    }
}

const fn as_route(value: Option<&Value>) -> Option<&RouteValue> {
    match value {
        Some(Value::Route(value)) => Some(value),
        _ => None,
    }
}

fn doing(verb: &str, key: &RouteKey) -> String {
    format!("{verb} the route {} metric {} in table {}", key.destination, key.metric, key.table)
}
