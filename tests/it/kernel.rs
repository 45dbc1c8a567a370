//! The kernel port against a real kernel in namespaces.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use patronus::{
    kernel::{
        Kernel, KernelError, KernelEvent, Scope,
        linux::{Changes, Linux},
        lock::{Lock, LockError},
    },
    plan::Step,
    state::{
        Counter, Fwmark, Gateway, Key, NftTable, Observed, Ranges, RouteKey, RouteValue, RuleKey, Stamp, SysctlKey,
        Target, Tunnel, Value,
    },
    units::{Family, IfName},
};

use crate::support::netns::{address6, in_netns, ip, ip_batch, nft, run, veth};

const RULESET: &str = r#"table inet patronus {
	set stamp {
		type mark
		elements = { 0x00000001 comment "generation 0 plan 00000000-0000-0000-0000-000000000000" }
	}
	set targets {
		type mark
		elements = { 0x01000000 comment "failover/critical", 0x02000000 comment "path/fiber" }
	}
	set policies {
		type mark
		elements = { 0x00000001 comment "voice" }
	}
	counter policy_voice { packets 0 bytes 0 }
	chain c_voice {
		counter name "policy_voice"
		meta mark set meta mark & 0x00ffffff | 0x01000000
	}
	chain output {
		type filter hook output priority mangle; policy accept;
		ip daddr . meta l4proto . th dport vmap { 127.0.0.0/8 . udp . 10000-20000 : jump c_voice }
	}
}
"#;

fn scope() -> Scope {
    Scope { ranges: Ranges::default(), sysctls: Vec::new(), interfaces: Vec::new() }
}

fn stamp(generation: u64) -> Stamp {
    Stamp { generation, plan: uuid::Uuid::from_u128(u128::from(generation) << 64 | 7) }
}

fn name(name: &str) -> IfName {
    name.parse().unwrap()
}

fn set(key: Key, before: Option<Value>, after: Option<Value>) -> Step {
    Step::Set { key, before, after, reason: "test".to_owned() }
}

async fn execute(kernel: &Linux, step: &Step) {
    kernel.execute(step, &Ranges::default(), &stamp(1)).await.unwrap();
}

async fn observe(kernel: &Linux) -> Observed {
    kernel.observe(&scope()).await.unwrap()
}

/// Adds, adds again, observes, deletes, deletes again, observes.
async fn round_trip(kernel: &Linux, key: Key, value: Value) {
    let add = set(key.clone(), None, Some(value.clone()));
    execute(kernel, &add).await;
    execute(kernel, &add).await;
    let observed = observe(kernel).await;
    assert_eq!(observed.state.objects.get(&key), Some(&value), "{observed:#?}");
    assert_eq!(observed.intruders, Vec::<String>::new());
    let remove = set(key.clone(), Some(value), None);
    execute(kernel, &remove).await;
    execute(kernel, &remove).await;
    assert!(!observe(kernel).await.state.objects.contains_key(&key));
}

fn route_key(family: Family, table: u32, metric: u32) -> RouteKey {
    let destination = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    RouteKey { table, family, destination: destination.parse().unwrap(), metric }
}

fn via(gateway: Option<&str>, interface: &str, mtu: Option<u32>) -> Value {
    let gateway = gateway.map(|g| g.parse().unwrap());
    Value::Route(RouteValue::Via { gateway, interface: name(interface), mtu })
}

fn rule_key(family: Family, number: u32) -> RuleKey {
    let ranges = Ranges::default();
    let fwmark = Fwmark { mark: ranges.target_mask.mark(number), mask: ranges.target_mask.bits() };
    let (priority, table) = (ranges.priority(number), ranges.table(number));
    RuleKey { priority, family, fwmark: Some(fwmark), table, suppress_prefixlength: None }
}

fn cables() {
    veth("wan0", "isp0", "192.0.2.2/24");
    address6("wan0", "2001:db8::2/64");
    veth("wan1", "isp1", "198.51.100.2/24");
    address6("wan1", "2001:db8:1::2/64");
}

#[test]
fn routes_of_both_families_come_back_as_they_were_set() {
    in_netns(|| async {
        cables();
        let kernel = Linux::connect().unwrap();
        for (family, gateway, other) in
            [(Family::V4, "192.0.2.1", "203.0.113.9"), (Family::V6, "2001:db8::1", "fe80::1")]
        {
            let values = [
                via(Some(gateway), "wan0", None),
                via(Some(other), "wan0", Some(1400)),
                via(None, "wan0", None),
                Value::Route(RouteValue::Unreachable),
            ];
            for value in values.clone() {
                round_trip(&kernel, Key::Route(route_key(family, 20_001, 10)), value).await;
            }
            let key = Key::Route(route_key(family, 20_001, 10));
            // Every value replaced by every other one leaves exactly that one.
            let mut before: Option<Value> = None;
            for from in &values {
                for to in &values {
                    for value in [from, to] {
                        execute(&kernel, &set(key.clone(), before.clone(), Some(value.clone()))).await;
                        let observed = observe(&kernel).await;
                        assert_eq!(observed.state.objects, BTreeMap::from([(key.clone(), value.clone())]));
                        before = Some(value.clone());
                    }
                }
            }
            execute(&kernel, &set(key, before, None)).await;
        }
    });
}

#[test]
fn rules_of_both_families_come_back_as_they_were_set() {
    in_netns(|| async {
        let kernel = Linux::connect().unwrap();
        for family in Family::ALL {
            round_trip(&kernel, Key::Rule(rule_key(family, 3)), Value::Rule).await;
            let main = RuleKey { priority: 19_990, family, fwmark: None, table: 254, suppress_prefixlength: Some(0) };
            round_trip(&kernel, Key::Rule(main), Value::Rule).await;
        }
    });
}

#[test]
fn the_nft_table_comes_back_canonical_with_its_stamp_numbers_and_counters() {
    in_netns(|| async {
        let kernel = Linux::connect().unwrap();
        let canonical = kernel.canonical(RULESET).await.unwrap();
        let table = |source: &str| Value::Nft(NftTable { canonical: canonical.clone(), source: source.to_owned() });
        kernel.execute(&set(Key::Nft, None, Some(table(RULESET))), &Ranges::default(), &stamp(5)).await.unwrap();
        let observed = observe(&kernel).await;
        let Some(Value::Nft(found)) = observed.state.objects.get(&Key::Nft) else { panic!("{observed:#?}") };
        assert_eq!(found.canonical, canonical);
        assert_eq!(observed.stamp, Some(stamp(5)));
        let targets: Vec<_> = observed.allocations.targets.iter().map(|(t, n)| (t.to_string(), *n)).collect();
        assert_eq!(targets, [("path/fiber".to_owned(), 2), ("failover/critical".to_owned(), 1)]);
        assert_eq!(observed.allocations.policies, BTreeMap::from([("voice".parse().unwrap(), 1)]));
        assert_eq!(observed.counters, BTreeMap::from([("voice".parse().unwrap(), Counter::default())]));
    });
}
