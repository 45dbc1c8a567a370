//! Forgetting flows: one walk through the table of connections, for however many marks.
//!
//! Invariant: an entry is deleted only after its own mark was seen to be one of those that were asked for, and then only
//! that entry: by its tuple, its zone and its id. A flow that took over its addresses and ports meanwhile is left alone.
//!
//! Walk and deletions have a socket each and neither collects: what one datagram of the walk holds is deleted before the
//! next is read. The kernel could delete by mark itself, but goes through its whole table for each mark, twice with the
//! look that tells how many they were. Where all marks have bits in common, it leaves out what differs in these.

use std::collections::BTreeMap;

use netlink_packet_core::{DefaultNla, NetlinkSerializable as _};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage},
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    Linux,
    conntrack::{AF_INET, AF_INET6, CTA_TUPLE_ORIG, DELETE, GET, NESTED, NEW, mark},
    ended,
    socket::{Channel, PIPELINED, Refusal, Request},
    tables::HEADER,
    wire,
};
use crate::{
    kernel::{Doomed, Forgotten, KernelError},
    state::Fwmark,
    units::Family,
};

const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
/// A batch whose answers were lost is asked for so often.
const ATTEMPTS: usize = 3;

/// The sockets of one walk.
struct Sockets {
    walk: Channel,
    deletions: Channel,
}

impl Sockets {
    /// In the network namespace of the calling thread.
    fn open() -> Result<Self, KernelError> {
        let open = || Channel::open(NETLINK_NETFILTER, false);
        Ok(Self { walk: open()?, deletions: open()? })
    }
}

impl Linux {
    /// Forgets flows in one walk through the table of connections, on a thread for such work. Some microseconds for each
    /// entry that has one of the marks, and a fraction of one for each other entry.
    pub fn forget(doomed: Vec<Doomed>) -> impl Future<Output = Forgotten> + Send {
        let sockets = Sockets::open();
        let work = move || match sockets {
            Ok(sockets) => forget(&sockets, &doomed),
            Err(error) => Forgotten::failed(error),
        };
        let lost = |e: tokio::task::JoinError| Forgotten::failed(ended(&e, "forget flows"));
        async move { tokio::task::spawn_blocking(work).await.unwrap_or_else(lost) }
    }
}

/// Deletes the entries of all these flows.
fn forget(sockets: &Sockets, doomed: &[Doomed]) -> Forgotten {
    let mut batch = Batch::new(&sockets.deletions, doomed.len());
    let end = walk(&sockets.walk, doomed, &mut batch);
    let error = end.and_then(|()| batch.refused.map_or(Ok(()), Err)).err();
    let doing = || match doomed {
        [one] => format!("forget the flows with mark {}", one.flows),
        _ => format!("forget the flows with {} marks", doomed.len()),
    };
    let error = error.map(|refusal| match refusal {
        refusal if refusal.is(Errno::EOPNOTSUPP) => KernelError::Missing {
            what: "this kernel does not know connections by mark: CONFIG_NF_CONNTRACK_MARK is needed".to_owned(),
        },
        refusal => refusal.doing(doing()),
    });
    Forgotten { flows: batch.flows, error }
}

fn walk(channel: &Channel, doomed: &[Doomed], batch: &mut Batch<'_>) -> Result<(), Refusal> {
    let sought = Sought::of(doomed)?;
    let take = |kind: u16, payload: &[u8]| {
        let found = Some(payload).filter(|_| kind == NEW).and_then(|payload| sought.find(payload));
        if let Some((owner, request)) = found.and_then(|owner| Some((owner, deletion(payload)?))) {
            batch.add(owner, request);
        }
    };
    let end = channel.each(GET, &sought.filter, take);
    batch.carry_out();
    end
}

/// What is looked for.
struct Sought {
    /// By mask, mark and family: where it stands among what was asked for.
    marks: BTreeMap<u32, BTreeMap<(u32, Option<u8>), usize>>,
    /// What all of them have in common, as the kernel's filter of a dump.
    filter: Vec<u8>,
}

impl Sought {
    fn of(doomed: &[Doomed]) -> Result<Self, Refusal> {
        let mut marks: BTreeMap<u32, BTreeMap<_, _>> = BTreeMap::new();
        for (at, Doomed { flows: Fwmark { mark, mask }, family }) in doomed.iter().enumerate() {
            if mark & mask == 0 {
                let text = "without a mark this would forget the flows of everybody".to_owned();
                return Err(Refusal { errno: Errno::EINVAL as i32, text });
            }
            marks.entry(*mask).or_default().entry((mark & mask, family.map(code))).or_insert(at);
        }
        Ok(Self { marks, filter: filter(doomed) })
    }

    /// To whom an entry belongs, if to anybody.
    fn find(&self, entry: &[u8]) -> Option<usize> {
        let (mark, family) = (mark(entry), entry.first().copied());
        let by_mask = |(mask, marks): (&u32, &BTreeMap<(u32, Option<u8>), usize>)| {
            [None, family].iter().find_map(|family| marks.get(&(mark & mask, *family)).copied())
        };
        self.marks.iter().find_map(by_mask)
    }
}

/// The family that all have in common, and the bits in which their marks agree.
fn filter(doomed: &[Doomed]) -> Vec<u8> {
    let first = doomed.first();
    let family = first.and_then(|first| first.family).filter(|family| doomed.iter().all(|d| d.family == Some(*family)));
    let mark = first.map_or(0, |first| first.flows.mark);
    let agreed = doomed.iter().fold(u32::MAX, |bits, Doomed { flows, .. }| bits & flows.mask & !(flows.mark ^ mark));
    let family = match family {
        None => NetfilterProtoFamily::Unspec,
        Some(Family::V4) => NetfilterProtoFamily::IPv4,
        Some(Family::V6) => NetfilterProtoFamily::IPv6,
    };
    let masked = DefaultNla::new(CTA_MARK_MASK, agreed.to_be_bytes().to_vec());
    let attributes = vec![ConntrackAttribute::CtaMark(mark & agreed), ConntrackAttribute::Other(masked)];
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Get(attributes));
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

const fn code(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// The request that deletes this entry and none that has its tuple later.
fn deletion(entry: &[u8]) -> Option<Request> {
    let attributes = entry.get(HEADER..)?;
    let mut payload = vec![*entry.first()?, 0, 0, 0];
    for (kind, flag, needed) in [(CTA_TUPLE_ORIG, NESTED, true), (CTA_ID, 0, true), (CTA_ZONE, 0, false)] {
        match wire::find(attributes, kind) {
            Some(value) => wire::put(&mut payload, kind | flag, value),
            None if needed => return None,
            None => {}
        }
    }
    Some(Request { kind: DELETE, flags: 0, payload })
}

/// Deletions that are sent together.
struct Batch<'a> {
    channel: &'a Channel,
    requests: Vec<Request>,
    /// To whom each belongs.
    owners: Vec<usize>,
    /// Entries that were deleted, for each owner.
    flows: Vec<u64>,
    refused: Option<Refusal>,
}

impl<'a> Batch<'a> {
    fn new(channel: &'a Channel, owners: usize) -> Self {
        Self { channel, requests: Vec::new(), owners: Vec::new(), flows: vec![0; owners], refused: None }
    }

    fn add(&mut self, owner: usize, request: Request) {
        self.owners.push(owner);
        self.requests.push(request);
        if self.requests.len() >= PIPELINED {
            self.carry_out();
        }
    }

    /// Where the answers are lost (`ENOBUFS`), the deletions are not: what is asked for again has gone, and is not counted.
    fn carry_out(&mut self) {
        let lost = |refusal: &Refusal| refusal.is(Errno::ENOBUFS);
        let mut answers = self.channel.tell(&mut self.requests);
        for _ in 1..ATTEMPTS {
            if !answers.as_ref().is_err_and(lost) {
                break;
            }
            answers = self.channel.tell(&mut self.requests);
        }
        match answers {
            Ok(answers) => {
                for (owner, answer) in self.owners.iter().zip(answers) {
                    match answer {
                        Ok(()) => self.flows[*owner] += 1,
                        // It ended meanwhile; or it is in the flow table of an older kernel, which keeps it.
                        Err(refusal) if refusal.is(Errno::ENOENT) || refusal.is(Errno::EBUSY) => {}
                        Err(refusal) => self.refused = Some(refusal),
                    }
                }
            }
            Err(refusal) => self.refused = Some(refusal),
        }
        self.requests.clear();
        self.owners.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::linux::conntrack::{self, CTA_MARK, Tuple};

    const MASK: u32 = 0xff00_0000;

    fn doomed(number: u32, family: Option<Family>) -> Doomed {
        Doomed { flows: Fwmark { mark: number << 24, mask: MASK }, family }
    }

    /// What the kernel is asked to leave out: family, mark and mask.
    fn filtered(doomed: &[Doomed]) -> (u8, u32, u32) {
        let filter = filter(doomed);
        let mask = wire::find(&filter[HEADER..], CTA_MARK_MASK).and_then(wire::be32).unwrap();
        (filter[0], mark(&filter), mask)
    }

    #[test]
    fn the_kernel_leaves_out_what_differs_in_what_all_have_in_common() {
        assert_eq!(filtered(&[doomed(6, None)]), (0, 0x0600_0000, MASK));
        assert_eq!(
            filtered(&[doomed(6, Some(Family::V6)), doomed(7, Some(Family::V6))]),
            (AF_INET6, 6 << 24, 0xfe << 24)
        );
        assert_eq!(filtered(&[doomed(6, Some(Family::V6)), doomed(4, None)]), (0, 4 << 24, 0xfd << 24));
        assert_eq!(filtered(&(1..=255).map(|n| doomed(n, None)).collect::<Vec<_>>()), (0, 0, 0));
    }

    /// An entry as the kernel tells of it, as far as it matters here.
    fn entry(family: u8, mark: u32) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        wire::put(&mut bytes, CTA_TUPLE_ORIG | NESTED, &[1, 2, 3, 4]);
        wire::put(&mut bytes, CTA_MARK, &mark.to_be_bytes());
        wire::put(&mut bytes, CTA_ID, &[9; 4]);
        bytes
    }

    #[test]
    fn an_entry_belongs_to_who_asked_for_its_mark_and_family_and_else_to_nobody() {
        let sought = Sought::of(&[doomed(1, None), doomed(2, Some(Family::V6)), doomed(1, None)]).ok().unwrap();
        let found = |family, number: u32| sought.find(&entry(family, number << 24 | 7));
        assert_eq!([(AF_INET, 1), (AF_INET6, 1)].map(|(f, n)| found(f, n)), [Some(0); 2]);
        assert_eq!([found(AF_INET, 2), found(AF_INET6, 2)], [None, Some(1)]);
        assert_eq!([found(AF_INET, 0), found(AF_INET, 3)], [None; 2]);
        assert!(Sought::of(&[doomed(1, None), doomed(0, None)]).is_err(), "everybody's");
    }

    #[test]
    fn a_deletion_names_tuple_id_and_zone_and_there_is_none_without_an_id() {
        let mut known = entry(AF_INET, 1);
        wire::put(&mut known, CTA_ZONE, &[0, 3]);
        let request = deletion(&known).unwrap();
        let kinds: Vec<u16> = wire::attributes(&request.payload[HEADER..]).map(|(kind, _)| kind).collect();
        assert_eq!((request.kind, kinds), (DELETE, vec![CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE]));
        assert!(deletion(&known[..known.len() - 16]).is_none());
    }

    /// A flow from this port, as connection tracking is told of one.
    fn tuple(port: u16) -> Tuple {
        let [source, destination] = ["192.0.2.1", "198.51.100.1"].map(|address| address.parse().unwrap());
        Tuple { protocol: 17, source, destination, ports: [port, 443] }
    }

    fn begin(channel: &Channel, port: u16, mark: u32) {
        const CTA_TUPLE_REPLY: u16 = 2;
        const CTA_TIMEOUT: u16 = 7;
        let there = tuple(port);
        let back = Tuple { source: there.destination, destination: there.source, ports: [443, port], ..there };
        let mut payload = there.question();
        let answers = back.question();
        wire::put(&mut payload, CTA_TUPLE_REPLY | NESTED, wire::find(&answers[HEADER..], CTA_TUPLE_ORIG).unwrap());
        wire::put(&mut payload, CTA_TIMEOUT, &600_u32.to_be_bytes());
        wire::put(&mut payload, CTA_MARK, &mark.to_be_bytes());
        channel.ask(Request { kind: NEW, flags: wire::CREATE | wire::EXCLUSIVE, payload }).unwrap();
    }

    fn mark_of(channel: &Channel, port: u16) -> Option<u32> {
        conntrack::find(channel, &tuple(port)).unwrap().map(|(mark, _)| mark)
    }

    fn in_a_namespace(work: impl FnOnce(&Channel) + Send + 'static) {
        let inside = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            work(&Channel::open(NETLINK_NETFILTER, false).unwrap());
        };
        std::thread::spawn(inside).join().unwrap();
    }

    /// The deletion of a flow that was seen, has ended, and whose addresses and ports another rule's flow has now.
    fn late_deletion(channel: &Channel) -> Request {
        let seen = |port| channel.get(GET, tuple(port).question()).unwrap();
        let id = |entry: &[u8]| wire::find(&entry[HEADER..], CTA_ID).map(<[u8]>::to_vec);
        begin(channel, 1, 1 << 24);
        let old = seen(1);
        channel.ask(deletion(&old).unwrap()).unwrap();
        // The id is made of the tuple and of the entry's place in memory, which should not be had at once again.
        for port in 1000..2000 {
            begin(channel, port, 9 << 24);
            begin(channel, 1, 2 << 24);
            if id(&seen(1)) != id(&old) {
                return deletion(&old).unwrap();
            }
            channel.ask(deletion(&seen(1)).unwrap()).unwrap();
        }
        panic!("the place in memory never changes");
    }

    #[test]
    fn a_flow_that_took_over_the_ports_of_a_forgotten_one_is_left_alone() {
        in_a_namespace(|channel| {
            let refusal = channel.ask(late_deletion(channel)).unwrap_err();
            assert!(refusal.is(Errno::ENOENT), "{refusal:?}");
            assert_eq!(mark_of(channel, 1), Some(2 << 24));
        });
    }

    #[test]
    fn the_checker_sees_a_deletion_by_ports_alone() {
        in_a_namespace(|channel| {
            let mut late = late_deletion(channel);
            let tuple = wire::find(&late.payload[HEADER..], CTA_TUPLE_ORIG).unwrap().to_vec();
            late.payload.truncate(HEADER);
            wire::put(&mut late.payload, CTA_TUPLE_ORIG | NESTED, &tuple);
            channel.ask(late).unwrap();
            assert_eq!(mark_of(channel, 1), None, "the other rule's flow is gone");
        });
    }
}
