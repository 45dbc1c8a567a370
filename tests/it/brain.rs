//! Probing against real namespaces; health and failover stories.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use patronus::{
    clock,
    health::{Monitor, PathState, Sample},
    probe::{ProbeSpec, Prober},
    units::{Name, Ratio},
    validate::intent::{Destination, Health, Nat, Path, Probe, Site},
};
use tokio::{sync::mpsc, time::timeout};

use crate::support::wire::{self, Provider, sh, with_two_uplinks};

const PATIENCE: Duration = Duration::from_secs(20);

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

/// A path over uplink `n`, probed every 100 ms.
fn spec(n: u8, targets: &[&str]) -> ProbeSpec {
    ProbeSpec {
        path: name(if n == 0 { "fiber" } else { "lte" }),
        interface: format!("wan{n}").parse().unwrap(),
        mark: u32::from(n + 1) << 24,
        sources: vec![format!("198.51.10{n}.2").parse().unwrap(), format!("2001:db8:{n}::2").parse().unwrap()],
        gateways: vec![],
        probe: Probe {
            targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(80),
            ..Probe::default()
        }
        .into(),
    }
}

/// The same with more time for an answer.
fn patient(spec: ProbeSpec, timeout: Duration) -> ProbeSpec {
    ProbeSpec { probe: Probe { timeout, ..(*spec.probe).clone() }.into(), ..spec }
}

/// The probes of one test and their results.
struct Bench {
    prober: Prober,
    samples: mpsc::Receiver<Sample>,
}

impl Bench {
    fn new(specs: Vec<ProbeSpec>) -> Self {
        let (sender, samples) = mpsc::channel(1024);
        let prober = Prober::start(sender).unwrap();
        prober.configure(specs);
        Self { prober, samples }
    }

    async fn next(&mut self) -> Sample {
        timeout(PATIENCE, self.samples.recv()).await.expect("a sample in time").expect("a prober")
    }

    /// Waits for a sample that fits.
    async fn until(&mut self, what: &str, fits: impl Fn(&Sample) -> bool) -> Sample {
        let search = async {
            loop {
                let sample = self.next().await;
                if fits(&sample) {
                    return sample;
                }
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no sample with {what}"))
    }

    async fn take(&mut self, n: usize) -> Vec<Sample> {
        let mut all = Vec::new();
        while all.len() < n {
            all.push(self.next().await);
        }
        all
    }
}

fn answered(sample: &Sample) -> bool {
    sample.answers.iter().all(|(_, rtt)| rtt.is_some())
}

fn lost(sample: &Sample) -> bool {
    sample.answers.iter().all(|(_, rtt)| rtt.is_none())
}

const BOTH: [&str; 2] = ["10.50.0.1", "2001:db8:50::1"];

#[test]
fn each_probe_leaves_by_its_own_path_and_nowhere_else() {
    with_two_uplinks(|provider| async move {
        // The main table leads to wan1: only mark, device and source bring a probe of `fiber` out by wan0.
        let mut bench = Bench::new(vec![spec(0, &BOTH)]);
        bench.until("answers by IPv4 and IPv6", answered).await;
        let samples = bench.take(10).await;
        assert!(samples.iter().filter(|s| answered(s)).count() >= 8, "{samples:?}");
        assert!(
            samples.iter().flat_map(|s| &s.answers).all(|(_, rtt)| rtt.is_none_or(|r| r < Duration::from_millis(80)))
        );
        assert!(provider.count("in0") >= 20);
        assert_eq!(provider.count("in1"), 0, "nothing leaked to the other uplink");
        let fiber = provider.count("in0");
        bench.prober.configure(vec![spec(1, &BOTH)]);
        bench.until("answers over wan1", |s| s.path == name("lte") && answered(s)).await;
        assert!(provider.count("in1") > 0);
        assert!(provider.count("in0") <= fiber + 4, "a path that is gone is not probed");
    });
}

#[test]
fn two_paths_to_one_target_are_kept_apart() {
    with_two_uplinks(|provider| async move {
        let mut bench = Bench::new(vec![spec(0, &BOTH), spec(1, &BOTH)]);
        bench.until("an answer over fiber", |s| s.path == name("fiber") && answered(s)).await;
        bench.until("an answer over lte", |s| s.path == name("lte") && answered(s)).await;
        provider.sh("nft add rule inet t fault iifname isp0 drop");
        bench.until("loss over fiber", |s| s.path == name("fiber") && lost(s)).await;
        let samples = bench.take(10).await;
        assert!(samples.iter().filter(|s| s.path == name("fiber")).all(lost), "{samples:?}");
        assert!(samples.iter().filter(|s| s.path == name("lte")).any(answered), "{samples:?}");
    });
}

#[test]
fn rounds_come_every_100_ms_and_are_numbered() {
    with_two_uplinks(|_provider| async move {
        let mut bench = Bench::new(vec![spec(0, &["10.50.0.1"])]);
        let samples = bench.take(21).await;
        let mut off: Vec<u128> =
            samples.windows(2).map(|w| w[1].sent.since(w[0].sent).as_micros().abs_diff(100_000)).collect();
        off.sort_unstable();
        assert!(off[10] <= 5_000, "median deviation {} us", off[10]);
        assert!(samples.windows(2).all(|w| w[1].round == w[0].round + 1));
        assert!(samples.iter().all(|s| s.done >= s.sent));
    });
}

#[test]
fn unchanged_paths_are_not_disturbed_by_a_new_configuration() {
    with_two_uplinks(|_provider| async move {
        let mut bench = Bench::new(vec![spec(0, &["10.50.0.1"])]);
        let first = bench.next().await;
        for _ in 0..50 {
            bench.prober.configure(vec![spec(0, &["10.50.0.1"]), spec(1, &["10.50.0.1"])]);
            bench.prober.configure(vec![spec(0, &["10.50.0.1"])]);
        }
        let next = bench.until("fiber", |s| s.path == name("fiber")).await;
        assert_eq!(next.round, first.round + 1);
    });
}

#[test]
fn an_answer_over_another_path_does_not_count() {
    with_two_uplinks(|provider| async move {
        sh("nft 'table inet t { counter back1 {}; chain c { type filter hook prerouting priority -300;
              icmp type echo-reply iifname wan1 counter name back1; }; }'");
        let mut bench = Bench::new(vec![spec(0, &["10.50.0.1"])]);
        bench.until("an answer", answered).await;
        provider.sh("ip route add 198.51.100.2/32 via 198.51.101.2 dev isp1");
        bench.until("no answer", lost).await;
        assert!(bench.take(5).await.iter().all(lost));
        assert!(wire::count("back1") >= 5, "the answers do reach the router, by the other uplink");
    });
}

/// Answers echo requests to 10.50.0.1 from user space, with the nonce changed by `forge`, after as many milliseconds
/// as `delay` says at the time.
fn responder(provider: &Provider, forge: u8, delay: &Arc<AtomicU64>) {
    use socket2::{Domain, Protocol, Socket, Type};
    use std::{io::Read, net::SocketAddr};
    provider.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1");
    let delay = Arc::clone(delay);
    provider.spawn(move || {
        let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket.bind(&SocketAddr::from(([10, 50, 0, 1], 0)).into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut packet = [0; 256];
        while let Ok(length) = socket.read(&mut packet) {
            if length < 36 || packet[20] != 8 {
                continue;
            }
            let reply = &mut packet[20..length];
            reply[0] = 0;
            reply[8] ^= forge;
            let (reply, out) = (reply.to_vec(), socket.try_clone().unwrap());
            let wait = Duration::from_millis(delay.load(Ordering::Relaxed));
            thread::spawn(move || {
                thread::sleep(wait);
                // The test may be over.
                let _ = out.send_to(&reply, &SocketAddr::from(([198, 51, 100, 2], 0)).into());
            });
        }
    });
}

#[test]
fn a_reply_with_a_wrong_nonce_does_not_count() {
    with_two_uplinks(|provider| async move {
        sh("nft 'table inet t { counter back0 {}; chain c { type filter hook prerouting priority -300;
              icmp type echo-reply iifname wan0 counter name back0; }; }'");
        responder(&provider, 0x01, &Arc::default());
        let mut bench = Bench::new(vec![spec(0, &["10.50.0.1"])]);
        assert!(bench.take(10).await.iter().all(lost));
        assert!(wire::count("back0") >= 5, "the forged answers do arrive");
    });
}

/// The twin of the test above: the same responder without the forgery is believed.
#[test]
fn a_reply_with_the_right_nonce_counts() {
    with_two_uplinks(|provider| async move {
        responder(&provider, 0, &Arc::default());
        let mut bench = Bench::new(vec![spec(0, &["10.50.0.1"])]);
        bench.until("an answer", answered).await;
    });
}

#[test]
fn a_path_without_its_interface_is_lost_at_once_and_comes_back_with_it() {
    with_two_uplinks(|provider| async move {
        let slow = patient(spec(0, &BOTH), Duration::from_secs(5));
        let mut bench = Bench::new(vec![slow]);
        bench.until("answers", answered).await;
        sh("ip link set wan0 down");
        bench.until("loss", lost).await;
        sh("ip link del wan0");
        let gone = bench.take(3).await.pop().unwrap();
        assert!(lost(&gone) && gone.done.since(gone.sent) < Duration::from_secs(1), "{gone:?}");
        wire::plug(&provider, 0);
        bench.until("answers over the new interface", answered).await;
    });
}

#[test]
fn a_source_address_that_is_gone_is_lost_at_once() {
    with_two_uplinks(|_provider| async move {
        let slow = patient(spec(0, &BOTH), Duration::from_secs(5));
        let mut bench = Bench::new(vec![slow]);
        bench.until("answers", answered).await;
        sh("ip addr flush dev wan0");
        let gone = bench.until("loss", lost).await;
        assert!(gone.done.since(gone.sent) < Duration::from_secs(1), "{gone:?}");
    });
}

fn site(spec: &ProbeSpec) -> Site {
    let path = Path {
        name: spec.path.clone(),
        from: name("fiber"),
        to: Destination::Internet,
        interface: spec.interface.clone(),
        nat: Nat::None,
        mtu: None,
        probe: spec.probe.clone(),
        health: Health {
            latency: Duration::from_millis(150),
            loss: Ratio::from_ppm(50_000).unwrap(),
            jitter: Duration::from_millis(30),
            recover: None,
        },
    };
    Site {
        name: name("berlin"),
        labels: std::iter::empty().collect(),
        lan: vec![],
        endpoints: std::iter::empty().collect(),
        paths: [(spec.path.clone(), path.into())].into_iter().collect(),
        rules: std::iter::empty().collect(),
        policies: vec![],
        beyond: std::iter::empty().collect(),
    }
}

/// Feeds samples to the monitor until the path is in a state; how long that took.
async fn until_state(bench: &mut Bench, monitor: &mut Monitor, state: PathState) -> Duration {
    let began = clock::now();
    let path = name("fiber");
    let wait = async {
        while monitor.healths()[&path].state != state {
            let sample = bench.next().await;
            monitor.handle_sample(&sample, clock::now());
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not {state}: {:?}", monitor.healths()));
    clock::now().since(began)
}

#[test]
fn faults_are_found_in_time_and_the_path_recovers() {
    with_two_uplinks(|provider| async move {
        let spec = spec(0, &["10.50.0.1", "10.50.0.2", "2001:db8:50::1"]);
        let mut monitor = Monitor::new(&site(&spec), clock::now());
        let mut bench = Bench::new(vec![spec]);
        until_state(&mut bench, &mut monitor, PathState::Up).await;
        for (fault, reason, limit) in [
            ("iifname isp0 drop", "3 rounds lost in a row", 700),
            ("iifname isp0 numgen random mod 100 lt 40 drop", "loss", 5_000),
        ] {
            provider.sh(&format!("nft add rule inet t fault {fault}"));
            let took = until_state(&mut bench, &mut monitor, PathState::Down).await;
            let health = &monitor.healths()["fiber"];
            println!("{fault}: down after {took:?}: {}", health.reason);
            assert!(took < Duration::from_millis(limit), "{fault}: {took:?}");
            assert!(health.reason.contains(reason) || reason == "loss", "{}", health.reason);
            provider.sh("nft flush chain inet t fault");
            until_state(&mut bench, &mut monitor, PathState::Up).await;
        }
    });
}

#[test]
fn two_hundred_milliseconds_more_are_found_in_half_a_second() {
    with_two_uplinks(|provider| async move {
        let delay = Arc::new(AtomicU64::new(0));
        responder(&provider, 0, &delay);
        // The timeout spans several rounds, so that late ones are measured and not lost.
        let spec = patient(spec(0, &["10.50.0.1"]), Duration::from_millis(500));
        let mut site = site(&spec);
        Arc::make_mut(site.paths.get_mut("fiber").unwrap()).health.latency = Duration::from_millis(100);
        let mut monitor = Monitor::new(&site, clock::now());
        let mut bench = Bench::new(vec![spec]);
        until_state(&mut bench, &mut monitor, PathState::Up).await;
        bench.until("a quick answer", answered).await;
        delay.store(200, Ordering::Relaxed);
        let took = until_state(&mut bench, &mut monitor, PathState::Down).await;
        let reason = &monitor.healths()["fiber"].reason;
        println!("200 ms more: down after {took:?}: {reason}");
        assert!(reason.starts_with("latency 20"), "{reason}");
        assert!(took < Duration::from_millis(700), "{took:?}");
    });
}

#[test]
fn a_long_pass_holds_up_no_probe_and_changes_no_path() {
    with_two_uplinks(|_| async move {
        let spec = spec(0, &["10.50.0.1"]);
        let mut monitor = Monitor::new(&site(&spec), clock::now());
        let mut bench = Bench::new(vec![spec]);
        until_state(&mut bench, &mut monitor, PathState::Up).await;
        // What an engine does that is busy: nothing of its runtime runs, and nothing is taken in.
        let (before, limit) = (bench.samples.len(), clock::now() + PATIENCE);
        while bench.samples.len() < before + 30 {
            assert!(clock::now() < limit, "nothing was probed meanwhile");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut waiting = Vec::new();
        while let Ok(sample) = bench.samples.try_recv() {
            waiting.push(sample);
        }
        assert!(waiting.iter().filter(|s| lost(s)).count() < 3, "{waiting:?}");
        for sample in &waiting {
            monitor.handle_sample(sample, clock::now());
        }
        assert_eq!(monitor.healths()["fiber"].state, PathState::Up, "{:?}", monitor.healths());
    });
}
