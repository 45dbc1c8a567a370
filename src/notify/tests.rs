//! What goes into a message and when, and what the settings refuse.

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
    assert_eq!(gather.ready(at(105)).unwrap().0.len(), 2);
    gather.take(event("c"), at(106));
    assert_eq!(gather.ready(at(111)).unwrap().0.len(), 1);
    // Both tokens are gone: the next comes 60 s after the first went.
    gather.take(event("d"), at(112));
    (0..150).for_each(|_| gather.take(event("e"), at(130)));
    assert_eq!((gather.due(), gather.ready(at(164))), (Some(at(165)), None));
    let (events, more) = gather.ready(at(165)).unwrap();
    assert_eq!((events.len(), more), (100, 51));
    assert_eq!(gather.due(), None);
    // And after a calm hour there are two again, not sixty.
    for (now, goes) in [(4_000, true), (4_010, true), (4_020, false)] {
        gather.take(event("f"), at(now));
        assert_eq!(gather.ready(at(now + 5)).is_some(), goes, "{now}");
    }
}

#[test]
fn a_message_is_one_line_an_event_and_a_template_makes_what_it_says() {
    let message = Message::new(&site(), vec![event("fiber -> \"lte\"\r\nBcc: x@example.net"), event("b")], 3);
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
