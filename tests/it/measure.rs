//! Every probe method on the real kernel: by which way its packets leave, and what counts as an answer.
//!
//! Where packets go is counted by nftables at the provider, per uplink and method; the prober has no say in it.

use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

use patronus::{
    health::Sample,
    probe::{ProbeSpec, Prober},
    units::Name,
    validate::intent::{Method, Probe, Question, Web},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use crate::support::{
    servers::{self, Identity, Servers},
    wire::{Provider, sh, with_two_uplinks},
};

const PATIENCE: Duration = Duration::from_secs(30);
const FOUR: &str = "10.50.0.1";
const SIX: &str = "2001:db8:50::1";

/// All methods with the packets that a probe of theirs begins with, as nftables sees them. The kernel itself asks from no
/// address whether its own is taken.
fn methods() -> Vec<(&'static str, Method, &'static str)> {
    vec![
        ("icmp", Method::Icmp, "meta l4proto { icmp, ipv6-icmp } @th,0,8 { 8, 128 }"),
        ("udp", Method::Udp { port: 7 }, "udp dport 7"),
        ("stamp", Method::Stamp { port: 862 }, "udp dport 862"),
        ("tcp", Method::Tcp { port: 8080 }, "tcp dport 8080 tcp flags & syn == syn"),
        ("http", Method::Http(web(false)), "tcp dport 80 tcp flags & syn == syn"),
        ("https", Method::Http(web(true)), "tcp dport 443 tcp flags & syn == syn"),
        ("dns", dns(), "udp dport 53"),
        ("gateway", Method::Gateway, "ip6 saddr != :: icmpv6 type nd-neighbor-solicit"),
    ]
}

fn web(tls: bool) -> Web {
    let port = if tls { 443 } else { 80 };
    let name = Some("www.example.org".into());
    Web { tls, port, name, path: "/".into(), status: None, body: Some("success".into()) }
}

fn dns() -> Method {
    Method::Dns(Question { port: 53, name: "www.example.org".into(), record: "A".into() })
}

/// A path over uplink `n`, named after the method.
fn spec(n: u8, name: &str, method: Method) -> ProbeSpec {
    let gateways: Vec<IpAddr> =
        vec![format!("198.51.10{n}.1").parse().unwrap(), format!("2001:db8:{n}::1").parse().unwrap()];
    let targets = if method == Method::Gateway { gateways.clone() } else { both() };
    ProbeSpec {
        path: name.parse().unwrap(),
        interface: format!("wan{n}").parse().unwrap(),
        mark: u32::from(n + 1) << 24,
        sources: vec![format!("198.51.10{n}.2").parse().unwrap(), format!("2001:db8:{n}::2").parse().unwrap()],
        gateways,
        probe: Probe {
            method,
            targets,
            interval: Duration::from_millis(300),
            timeout: Duration::from_millis(250),
            ..Probe::default()
        }
        .into(),
    }
}

fn both() -> Vec<IpAddr> {
    vec![FOUR.parse().unwrap(), SIX.parse().unwrap()]
}

/// A prober over the wire, the servers it talks to, and counters per method and uplink.
struct Bench {
    prober: Prober,
    samples: mpsc::Receiver<Sample>,
    servers: Vec<Servers>,
    _place: TempDir,
}

impl Bench {
    fn new(provider: &Provider) -> Self {
        provider.sh("ip -6 addr add 2001:db8:50::1/128 dev lo nodad");
        provider.sh(&counters());
        let place = tempfile::tempdir().unwrap();
        let identities = ["genuine", "portal"].map(|name| Identity::new(place.path(), name));
        let (done, started) = std::sync::mpsc::channel();
        provider.spawn(move || {
            let [genuine, portal] = &identities;
            done.send(both().into_iter().map(|at| servers::start(at, [genuine, portal])).collect()).unwrap();
        });
        let (sender, samples) = mpsc::channel(1024);
        let prober = Prober::with_clock(sender, true).unwrap();
        Self { prober, samples, servers: started.recv().unwrap(), _place: place }
    }

    /// Waits for a sample of a path that fits.
    async fn until(&mut self, path: &str, what: &str, fits: impl Fn(&Sample) -> bool) -> Sample {
        let mut last = None;
        let search = async {
            loop {
                let sample = self.samples.recv().await.expect("a prober");
                if sample.path.as_str() == path {
                    if fits(&sample) {
                        return sample;
                    }
                    last = Some(sample);
                }
            }
        };
        let found = timeout(PATIENCE, search).await.ok();
        found.unwrap_or_else(|| panic!("{path}: no sample with {what}; the last one: {last:?}"))
    }

    fn ail(&self, what: impl Fn(&servers::Ills) -> &std::sync::atomic::AtomicBool, now: bool) {
        self.servers.iter().for_each(|s| what(&s.ills).store(now, Ordering::Relaxed));
    }
}

fn counters() -> String {
    let (mut counters, mut rules, mut arp) = (String::new(), String::new(), String::new());
    for n in [0, 1] {
        for (name, _, packets) in methods() {
            counters += &format!("counter {name}{n} {{}}; ");
            rules += &format!("iifname isp{n} {packets} counter name {name}{n}\n");
        }
        arp += &format!("iifname isp{n} arp operation request counter name arp{n}\n");
    }
    format!(
        "nft 'table inet m {{ {counters} chain c {{ type filter hook prerouting priority -310\n{rules} }}\n}}
         table arp m {{ counter arp0 {{}}; counter arp1 {{}}; chain c {{ type filter hook input priority 0\n{arp} }}\n}}'"
    )
}

/// Packets of a method that came by an uplink.
fn seen(provider: &Provider, method: &str, n: u8) -> u64 {
    let of = |family: &str, counter: &str| {
        let listing = provider.sh(&format!("nft list counter {family} m {counter}{n}"));
        listing.split_whitespace().skip_while(|w| *w != "packets").nth(1).unwrap().parse::<u64>().unwrap()
    };
    of("inet", method) + if method == "gateway" { of("arp", "arp") } else { 0 }
}

fn answered(sample: &Sample) -> bool {
    sample.answers.iter().all(|(_, rtt)| rtt.is_some())
}

fn lost(sample: &Sample) -> bool {
    sample.answers.iter().all(|(_, rtt)| rtt.is_none())
}

/// Probes by all methods over uplink `n` until each has been answered; the methods whose packets came by the other
/// uplink, and those whose packets did not come by this one.
async fn probe_all(bench: &mut Bench, provider: &Provider, n: u8) -> [Vec<&'static str>; 2] {
    bench.prober.configure(methods().into_iter().map(|(name, method, _)| spec(n, name, method)).collect());
    for (name, _, _) in methods() {
        // The certificate is signed by nobody whom this process trusts; its packets count all the same.
        let fits = if name == "https" { lost } else { answered };
        bench.until(name, "answers by IPv4 and IPv6", fits).await;
    }
    let names = || methods().into_iter().map(|(name, _, _)| name);
    let strayed = names().filter(|m| seen(provider, m, 1 - n) > 0).collect();
    [strayed, names().filter(|m| seen(provider, m, n) < 2).collect()]
}

#[test]
fn each_probe_of_each_method_leaves_by_its_path_and_nowhere_else() {
    with_two_uplinks(|provider| async move {
        // The main table leads to wan1: only mark, device and source bring a probe out by wan0.
        let mut bench = Bench::new(&provider);
        // What the kernel itself sends by the main table, a reset say, must not have to ask for its gateway.
        let mac = provider.sh("ip -br link show isp1 | awk '{print $3}'");
        let mac = mac.trim();
        sh(&format!(
            "ip neigh replace 198.51.101.1 lladdr {mac} dev wan1 nud permanent
             ip neigh replace 2001:db8:1::1 lladdr {mac} dev wan1 nud permanent"
        ));
        let [strayed, missing] = probe_all(&mut bench, &provider, 0).await;
        assert!(strayed.is_empty(), "{strayed:?} left by the other uplink");
        assert!(missing.is_empty(), "{missing:?} did not leave by their uplink");
    });
}

#[test]
fn the_checker_sees_probes_that_leave_by_the_other_path() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(&provider);
        let _ = probe_all(&mut bench, &provider, 1).await;
        let [strayed, _] = probe_all(&mut bench, &provider, 0).await;
        assert_eq!(strayed, methods().into_iter().map(|(name, _, _)| name).collect::<Vec<_>>());
    });
}

#[test]
fn what_is_answered_wrongly_is_lost_and_told() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(&provider);
        let all = ["http", "https", "dns", "tcp"];
        let specs = methods().into_iter().filter(|(name, ..)| all.contains(name));
        let mut specs: Vec<ProbeSpec> = specs.map(|(name, method, _)| spec(0, name, method)).collect();
        specs.push(spec(0, "closed", Method::Tcp { port: 9999 }));
        specs.push(spec(0, "barred", Method::Tcp { port: 9998 }));
        // A router on the way that refuses by ICMP is not the target.
        provider.sh("nft add rule inet t fault tcp dport 9998 reject with icmpx type port-unreachable");
        bench.prober.configure(specs);
        let said =
            |sample: &Sample, text: &str| lost(sample) && sample.notes.said.as_ref().is_some_and(|s| s.contains(text));
        bench.until("closed", "a reset that counts as an answer", answered).await;
        bench.until("barred", "a refusal on the way", |s| said(s, "refused by a router on the way")).await;
        bench.until("https", "a certificate of nobody", |s| said(s, "no TLS that is trusted")).await;
        bench.until("http", "an answer", answered).await;
        bench.until("dns", "an answer", answered).await;
        bench.ail(|ills| &ills.portal, true);
        bench.ail(|ills| &ills.dns, true);
        bench.until("http", "a redirect", |s| said(s, "status 302 instead of 200 to 299")).await;
        bench.until("dns", "a failure", |s| said(s, "answered: Server Failure")).await;
        bench.until("tcp", "a handshake", answered).await;
        bench.ail(|ills| &ills.portal, false);
        bench.ail(|ills| &ills.dns, false);
        bench.until("http", "an answer again", answered).await;
        bench.until("dns", "an answer again", answered).await;
    });
}

#[test]
fn stamp_tells_the_delay_of_each_direction_when_both_clocks_are_synchronised() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(&provider);
        bench.prober.configure(vec![spec(0, "stamp", Method::Stamp { port: 862 })]);
        let sample = bench.until("stamp", "delays of one way", |s| answered(s) && s.notes.one_way.is_some()).await;
        let way = sample.notes.one_way.unwrap();
        let near = |d: Duration| d < Duration::from_millis(250);
        assert!(near(way.there) && near(way.back), "{way:?}");
        // The same reflector, asked by an end that does not know its own clock.
        let (sender, samples) = mpsc::channel(1024);
        bench.prober = Prober::start(sender).unwrap();
        bench.samples = samples;
        bench.prober.configure(vec![spec(0, "stamp", Method::Stamp { port: 862 })]);
        assert_eq!(bench.until("stamp", "an answer", answered).await.notes.one_way, None);
    });
}

#[test]
fn probes_carry_their_dscp() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(&provider);
        let with = |name: &str, method| {
            let plain = spec(0, name, method);
            ProbeSpec { probe: Probe { dscp: Some("ef".parse().unwrap()), ..(*plain.probe).clone() }.into(), ..plain }
        };
        let marked = methods().into_iter().filter(|(name, ..)| *name != "gateway");
        let specs: Vec<ProbeSpec> = marked.map(|(name, method, _)| with(name, method)).collect();
        let names: Vec<Name> = specs.iter().map(|s| s.path.clone()).collect();
        provider.sh("nft 'table inet q { counter plain {}; chain c { type filter hook prerouting priority -320;
               iifname isp0 meta l4proto { tcp, udp } ip dscp != ef counter name plain
               iifname isp0 meta l4proto { tcp, udp } ip6 dscp != ef counter name plain
               iifname isp0 meta l4proto { icmp, ipv6-icmp } @th,0,8 { 8, 128 } ip dscp != ef counter name plain
             }
             }'");
        bench.prober.configure(specs);
        for name in &names {
            let fits = if name.as_str() == "https" { lost } else { answered };
            bench.until(name.as_str(), "answers", fits).await;
        }
        let plain = provider.sh("nft list counter inet q plain");
        assert!(plain.contains("packets 0 "), "{plain}");
    });
}

#[test]
fn a_gateway_that_does_not_answer_is_lost_though_the_link_is_up() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(&provider);
        let found = spec(0, "gateway", Method::Gateway);
        let probe = Probe { targets: vec![[0, 0, 0, 0].into()], ..(*found.probe).clone() }.into();
        bench.prober.configure(vec![ProbeSpec { probe, ..found }]);
        bench.until("gateway", "the gateway that the kernel told", answered).await;
        provider.sh("ip addr flush dev isp0");
        bench.until("gateway", "silence", lost).await;
        assert!(sh("cat /sys/class/net/wan0/carrier 2>/dev/null || echo 1").contains('1'));
        provider.sh("ip addr add 198.51.100.1/24 dev isp0");
        bench.until("gateway", "an answer again", answered).await;
    });
}
