//! What goes into a message and when, and what the settings refuse.

use std::time::Duration;

use super::*;
use crate::{
    clock::{Instant, Wall},
    engine::status::Event,
    settings::{Settings, SettingsError},
};

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn event(message: &str) -> Event {
    let (kind, subject, detail) = ("failover".to_owned(), "critical".to_owned(), serde_json::Value::Null);
    Event { id: 0, at: Wall::from_micros(0), kind, subject, message: message.into(), detail }
}

fn site() -> Name {
    "berlin".parse().unwrap()
}

#[test]
fn what_comes_together_is_one_message_and_what_finds_no_token_joins_the_next() {
    let limit = Limit { burst: 2, every: Duration::from_secs(60) };
    let mut gather = Gather::new(Duration::from_secs(5), limit);
    assert_eq!(gather.due(), None);
    gather.take(event("a"), at(100));
    gather.take(event("b"), at(104));
    assert_eq!((gather.due(), gather.ready(at(104))), (Some(at(105)), None));
    assert_eq!(gather.ready(at(105)).unwrap().events().len(), 2);
    gather.take(event("c"), at(106));
    assert_eq!(gather.ready(at(111)).unwrap().events().len(), 1);
    // Both tokens are gone: the next comes 60 s after the first went.
    gather.take(event("d"), at(112));
    (0..150).for_each(|_| gather.take(event("e"), at(130)));
    assert_eq!((gather.due(), gather.ready(at(164))), (Some(at(165)), None));
    let parcel = gather.ready(at(165)).unwrap();
    assert_eq!((parcel.events().len(), parcel.more, parcel.late), (100, 51, false));
    assert!(parcel.events().iter().all(|event| event.message == "e"), "the newest are told");
    assert_eq!(gather.due(), None);
    // And after a calm hour there are two again, not sixty.
    for (now, goes) in [(4_000, true), (4_010, true), (4_020, false)] {
        gather.take(event("f"), at(now));
        assert_eq!(gather.ready(at(now + 5)).is_some(), goes, "{now}");
    }
}

/// Lets all attempts fail; when they were, in seconds, and what is told in the end.
fn fails_until(gather: &mut Gather, first: u64, end: u64) -> (Vec<u64>, Parcel) {
    let (mut now, mut attempts) = (first, Vec::new());
    loop {
        now = now.max(gather.due().unwrap().as_nanos().div_ceil(1_000_000_000));
        let parcel = gather.ready(at(now)).unwrap();
        if now >= end {
            return (attempts, parcel);
        }
        attempts.push(now);
        gather.back(parcel, at(now));
    }
}

#[test]
fn what_does_not_arrive_is_tried_again_ever_more_seldom_and_joined_by_what_comes() {
    // One token: attempts that fail cost none.
    let mut gather = Gather::new(Duration::ZERO, Limit { burst: 1, every: Duration::from_secs(3_600) });
    gather.take(event("gone"), at(10_000));
    let (attempts, parcel) = fails_until(&mut gather, 10_000, 11_000);
    assert_eq!(attempts, [10_000, 10_001, 10_006, 10_031, 10_151, 10_451, 10_751]);
    assert!(parcel.late, "it is told an hour after it was");
    gather.back(parcel, at(11_051));
    gather.take(event("back"), at(11_060));
    assert_eq!(gather.due(), Some(at(11_351)), "no event by itself brings an attempt");
    gather.hasten(at(11_060));
    assert_eq!(
        gather.due(),
        Some(at(11_081)),
        "something happens, so the way may be back: 30 s after the last attempt"
    );
    let parcel = gather.ready(at(11_081)).unwrap();
    let texts: Vec<String> = parcel.events().into_iter().map(|event| event.message).collect();
    assert_eq!((texts, parcel.more, gather.waiting()), (vec!["gone".to_owned(), "back".to_owned()], 0, 0));
    gather.done();
    gather.take(event("later"), at(11_090));
    assert_eq!(gather.due(), Some(at(11_081 + 3_600)), "the one that arrived cost its token");
}

#[test]
fn an_outage_costs_a_bounded_queue_and_a_day_is_the_end_of_it() {
    let limit = Limit { burst: 5, every: Duration::from_secs(60) };
    let mut gather = Gather::new(Duration::ZERO, limit);
    let numbered = |n: u64| Event { id: i64::try_from(n).unwrap(), ..event("e") };
    for n in 0..137 {
        gather.take(numbered(n), at(10_000 + n));
    }
    let (_, parcel) = fails_until(&mut gather, 10_200, 13_000);
    assert_eq!((parcel.events().len(), parcel.more, parcel.newest()), (100, 37, Some(136)));
    assert_eq!(parcel.events()[0].id, 37, "the newest, oldest first");
    let message = Message::new(&site(), &parcel);
    assert!(message.subject.starts_with("[berlin] late, of 1970-01-01T00:00:00Z: failover: e (and 136 more)"));
    assert!(message.text.starts_with("37 older events left out\n"), "{}", message.text);
    gather.back(parcel, at(13_000));
    // Of what is older than a day only the number is told, with what came since.
    gather.take(numbered(137), at(10_000 + 86_400));
    let parcel = gather.ready(at(10_120 + 86_400)).unwrap();
    assert_eq!(gather.back(parcel, at(10_120 + 86_400)), 82);
    let parcel = gather.ready(at(20_000 + 86_400)).unwrap();
    assert_eq!((parcel.events().len(), parcel.more), (18, 120));
    // What an earlier process could not tell is as old as it is, not as old as this process.
    let wall = |seconds: i64| Wall::from_micros(seconds * 1_000_000);
    let old = |seconds: i64| Event { at: wall(seconds), ..event("e") };
    let mut gather = Gather::new(Duration::ZERO, limit);
    assert_eq!(gather.restore(vec![old(0), old(86_000), old(90_000)], 3, (at(7), wall(90_000))), 1);
    let parcel = gather.ready(at(7)).unwrap();
    assert_eq!((parcel.events().len(), parcel.more, parcel.late), (2, 4, true));
}

#[test]
fn a_message_is_one_line_an_event_and_a_template_makes_what_it_says() {
    let message = Message::of(&site(), vec![event("fiber -> \"lte\"\r\nBcc: x@example.net"), event("b")], 3, false);
    assert_eq!(message.subject, "[berlin] failover: fiber -> \"lte\"  Bcc: x@example.net (and 4 more)");
    assert_eq!(message.text.lines().count(), 3);
    let body = render("{\"text\": {{ subject|json }}, \"n\": {{ events|length }}}", &message).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&parsed["text"], &parsed["n"]), (&message.subject.clone().into(), &2.into()));
    let each = render("{% for e in events %}{{ e.kind }} {{ e.subject }};{% endfor %}", &message);
    assert_eq!(each.unwrap(), "failover critical;failover critical;");
    assert!(render("{{ sbject }}", &message).unwrap_err().contains("line 1 of the template"));
    let json: serde_json::Value = serde_json::from_str(&message.json()).unwrap();
    assert_eq!(
        (&json["format_version"], &json["more"], &json["events"][1]["message"]),
        (&1.into(), &3.into(), &"b".into())
    );
}

#[test]
fn channels_that_cannot_work_are_refused_with_what_to_write() {
    let good = "notify:
- {name: a, webhook: {url: 'https://hooks.example.net/x', token: {file: /etc/patronus/token}}}
- {name: b, smtp: {host: mail.example.net, from: 'Patronus <p@example.net>', to: [noc@example.net]}, events: [alarm]}
- {name: c, exec: {command: [/usr/bin/logger, -t, patronus]}, group: 1m, limit: {burst: 1, every: 10m}}
";
    let settings = Settings::parse("s", good.as_bytes()).unwrap();
    assert_eq!(settings.notify.len(), 3);
    assert!(settings.notify[0].wants("failover") && !settings.notify[0].wants("daemon"));
    assert!(settings.notify[1].wants("alarm") && !settings.notify[1].wants("failover"));
    let smtp = "host: h, from: p@example.net";
    for (channel, says) in [
        ("{name: a}".to_owned(), "exactly one of `webhook`, `smtp` and `exec`"),
        ("{name: a, exec: {command: [logger]}}".to_owned(), "the whole path of a program"),
        ("{name: a, exec: {command: []}}".to_owned(), "which program is not clear"),
        ("{name: a, webhook: {}}".to_owned(), "exactly one of `url` and `urlFrom`"),
        ("{name: a, webhook: {url: 'https://u:p@example.net/'}}".to_owned(), "give secrets by reference"),
        ("{name: a, webhook: {url: 'https://e.net/', token: {}}}".to_owned(), "where the secret stands"),
        ("{name: a, webhook: {url: 'https://e.net/', headers: {Authorization: x}}}".to_owned(), "`token` names it"),
        ("{name: a, webhook: {url: 'https://e.net/', body: '{{ nothing }}'}}".to_owned(), "the template does not work"),
        ("{name: a, webhook: {url: 'https://e.net/', body: '{\"t\": {{ text }}}'}}".to_owned(), "makes no JSON"),
        (format!("{{name: a, smtp: {{{smtp}, to: []}}}}"), "goes to nobody"),
        (format!("{{name: a, smtp: {{{smtp}, to: [nobody]}}}}"), "not an address of mail"),
        (
            format!("{{name: a, smtp: {{{smtp}, to: [x@e.net], tls: none, credentials: {{username: u, file: /f}}}}}}"),
            "in the clear",
        ),
        ("{name: a, exec: {command: [/bin/true]}, events: [failovr]}".to_owned(), "failovr"),
        ("{name: a, exec: {command: [/bin/true]}}\n- {name: a, exec: {command: [/bin/true]}}".to_owned(), "used twice"),
    ] {
        match Settings::parse("s", format!("notify:\n- {channel}\n").as_bytes()) {
            Err(SettingsError::Invalid { rendered, .. }) => assert!(rendered.contains(says), "{channel}:\n{rendered}"),
            other => panic!("{channel}: {other:?}"),
        }
    }
}

#[test]
fn a_channel_that_fails_is_an_alarm_until_it_works_again() {
    let (counts, name) = (Notices::default(), site());
    counts.count(&name, "failed", 1);
    counts.failing(&name, Some("nobody listens".into()));
    assert_eq!(counts.alarms(), ["notifications by berlin do not arrive: nobody listens"]);
    counts.count(&name, "sent", 2);
    counts.failing(&name, None);
    assert!(counts.alarms().is_empty());
    assert_eq!(counts.results()[&name], [("failed".to_owned(), 1), ("sent".to_owned(), 2)].into());
}
