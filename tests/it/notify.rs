//! Notifications: an HTTP server, a mail server and programs on this machine; a daemon whose channels hang and fail.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use patronus::{
    clock::Wall,
    engine::status::Event,
    lab::Fault,
    notify::{Channel, Message, Notices, Notifier, Sender},
    settings::Settings,
    store::{Limits, Recorder},
    units::Name,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, PATIENCE, Repository, active, name};

const SITE: &str = include_str!("reconcile/site.yaml");
const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/git/tls");

fn channels(notify: &Value) -> Vec<Channel> {
    Settings::parse("settings", json!({ "notify": notify }).to_string().as_bytes()).unwrap().notify
}

fn channel(notify: &Value) -> Channel {
    channels(&json!([notify])).remove(0)
}

fn message() -> Message {
    Message::test(&name("berlin"), Wall::from_micros(0))
}

fn event(kind: &str, message: &str) -> Event {
    let (at, subject) = (Wall::from_micros(1), "critical".to_owned());
    Event { id: 0, at, kind: kind.into(), subject, message: message.into(), detail: Value::Null }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Answers each request with the next of these statuses, the last one for ever; gives the requests.
fn server(statuses: &'static [&'static str]) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().port(), serve(listener, statuses))
}

fn serve(listener: TcpListener, statuses: &'static [&'static str]) -> mpsc::Receiver<String> {
    let (told, requests) = mpsc::channel();
    thread::spawn(move || {
        let mut left = statuses.iter();
        let mut status = "";
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            status = left.next().unwrap_or(&status);
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut text, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                text += &line;
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            text += &String::from_utf8(body).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
            let _ = told.send(text);
        }
    });
    requests
}

/// A conversation of a mail server; gives all that the client said.
fn take_mail(stream: impl Read + Write) -> String {
    let mut stream = BufReader::new(stream);
    let mut said = String::new();
    let answer = |stream: &mut BufReader<_>, text: &str| {
        let inner: &mut _ = BufReader::get_mut(stream);
        Write::write_all(inner, text.as_bytes()).is_ok() && Write::flush(inner).is_ok()
    };
    answer(&mut stream, "220 sink\r\n");
    let mut data = false;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return said;
        }
        said += &line;
        let command = line.trim_end();
        let reply = match command.get(..4).unwrap_or(command).to_ascii_uppercase().as_str() {
            _ if data && command != "." => continue,
            "." => "250 taken\r\n",
            "EHLO" => "250-sink\r\n250 AUTH PLAIN\r\n",
            "AUTH" => "235 welcome\r\n",
            "DATA" => "354 go on\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        data = reply.starts_with("354");
        answer(&mut stream, reply);
    }
}

/// Takes one mail, inside TLS or not.
fn sink(tls: bool) -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let stream = listener.accept().unwrap().0;
        if !tls {
            return take_mail(stream);
        }
        let chain = CertificateDer::pem_file_iter(format!("{TLS}/good.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(format!("{TLS}/server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        take_mail(rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::new(config)).unwrap(), stream))
    };
    (port, thread::spawn(serve))
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let file = dir.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[tokio::test]
async fn a_webhook_gets_its_template_its_headers_and_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "s3cret\n").unwrap();
    let (port, requests) = server(&["204 No Content", "403 Forbidden", "503 Service Unavailable"]);
    let hook = json!({"name": "chat", "webhook": {"url": format!("http://127.0.0.1:{port}/hooks/1?x=2"),
        "token": {"file": dir.path().join("token")}, "headers": {"X-Site": "berlin"},
        "body": "{\"text\": {{ subject|json }}}"}});
    let mut sender = Sender::new(&channel(&hook));
    sender.send(&message()).await.unwrap();
    let request = requests.recv_timeout(PATIENCE).unwrap();
    for part in [
        "POST /hooks/1?x=2 HTTP/1.1",
        "authorization: Bearer s3cret",
        "content-type: application/json",
        "x-site: berlin",
        "{\"text\": \"[berlin] test: a test of the notifications: nothing has happened\"}",
    ] {
        assert!(
            request.contains(part) || request.to_ascii_lowercase().contains(&part.to_ascii_lowercase()),
            "{part}\n{request}"
        );
    }
    // What the server refuses for good is not asked again; what it cannot do now is.
    for again in [false, true] {
        let failed = sender.send(&message()).await.unwrap_err();
        assert_eq!(failed.again, again, "{failed:?}");
        assert!(!failed.why.contains("s3cret") && !failed.why.contains("hooks/1"), "{failed:?}");
    }
}

#[tokio::test]
async fn a_mail_arrives_and_a_password_never_crosses_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("password"), "s3cret").unwrap();
    let mail = |port: u16, tls: &str, login: bool| {
        let mut smtp = json!({"host": "localhost", "port": port, "tls": tls, "from": "Patronus <p@example.net>",
            "to": ["noc@example.net", "boss@example.net"], "ca": format!("{TLS}/ca.pem")});
        if login {
            smtp["credentials"] = json!({"username": "u", "file": dir.path().join("password")});
        }
        channel(&json!({"name": "mail", "smtp": smtp}))
    };
    let (port, said) = sink(false);
    Sender::new(&mail(port, "none", false)).send(&message()).await.unwrap();
    let said = said.join().unwrap();
    for part in [
        "RCPT TO:<boss@example.net>",
        "Subject: [berlin] test",
        "To: noc@example.net",
        "MIME-Version: 1.0",
        "Message-ID: <",
        "@example.net>",
        "Auto-Submitted: auto-generated",
        "nothing has happened",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let (port, said) = sink(true);
    Sender::new(&mail(port, "implicit", true)).send(&message()).await.unwrap();
    let said = said.join().unwrap();
    assert!(said.contains("AUTH PLAIN") && said.contains("nothing has happened"), "{said}");
    // A server without STARTTLS, or one that somebody on the way made say so, gets neither mail nor password.
    let (port, said) = sink(false);
    let failed = Sender::new(&mail(port, "starttls", true)).send(&message()).await.unwrap_err();
    let said = said.join().unwrap();
    assert!(!said.contains("AUTH") && !said.contains("MAIL"), "{failed:?}\n{said}");
}

#[tokio::test]
async fn a_program_gets_json_and_a_clean_environment_and_is_killed_with_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let run = script(
        dir.path(),
        "tell",
        &format!("cat > {0}/in; env > {0}/env; echo \"$1\" > {0}/arg", dir.path().display()),
    );
    let exec = |program: &Path, timeout: &str| {
        channel(&json!({"name": "x", "exec": {"command": [program, "two words; $HOME"], "timeout": timeout}}))
    };
    Sender::new(&exec(&run, "30s")).send(&message()).await.unwrap();
    let heard: Value = serde_json::from_str(&fs::read_to_string(place("in")).unwrap()).unwrap();
    assert_eq!((&heard["site"], &heard["events"][0]["kind"]), (&"berlin".into(), &"test".into()));
    assert_eq!(fs::read_to_string(place("arg")).unwrap(), "two words; $HOME\n");
    let environment = fs::read_to_string(place("env")).unwrap();
    let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(names.iter().all(|name| ["PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{names:?}");
    let hang = script(
        dir.path(),
        "hang",
        &format!("sleep 1000 & echo $! > {0}/pid.new; mv {0}/pid.new {0}/pid; wait", dir.path().display()),
    );
    let failed = Sender::new(&exec(&hang, "1s")).send(&message()).await.unwrap_err();
    assert!(failed.why.contains("was killed") && failed.again, "{failed:?}");
    let pid = fs::read_to_string(place("pid")).unwrap();
    wait("what it started to be gone", || !runs(pid.trim()));
    let failed = Sender::new(&exec(Path::new("/nonexistent"), "1s")).send(&message()).await.unwrap_err();
    assert!(failed.why.contains("cannot be started"), "{failed:?}");
}

/// Whether a process is there and no zombie.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn events_are_grouped_filtered_tried_again_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    let (port, requests) = server(&["503 Service Unavailable", "200 OK"]);
    let notify = json!([{"name": "chat", "webhook": {"url": format!("http://127.0.0.1:{port}/")}, "group": "200ms",
        "events": ["failover", "alarm"]}]);
    let (site, counts): (Name, _) = (name("berlin"), Arc::new(Notices::default()));
    let _notifier = Notifier::start(&site, &channels(&notify), &recorder, &counts);
    for (kind, text) in [("failover", "fiber -> lte"), ("path", "fiber is down"), ("alarm", "look")] {
        recorder.event(event(kind, text));
    }
    let bodies = tokio::task::spawn_blocking(move || {
        let body = |request: String| serde_json::from_str::<Value>(request.rsplit("\r\n\r\n").next().unwrap()).unwrap();
        [(); 2].map(|()| body(requests.recv_timeout(PATIENCE).unwrap()))
    });
    let [first, second] = bodies.await.unwrap();
    assert_eq!(first, second, "tried again");
    let texts: Vec<&str> = first["events"].as_array().unwrap().iter().filter_map(|e| e["message"].as_str()).collect();
    assert_eq!(texts, ["fiber -> lte", "look"]);
    let wanted = [("retried".to_owned(), 1), ("sent".to_owned(), 1)].into();
    counted(&counts, |results| *results == wanted).await;
    assert!(counts.alarms().is_empty());
}

/// Waits on the runtime until the channel's results are as they should be.
async fn counted(counts: &Notices, holds: impl Fn(&std::collections::BTreeMap<String, u64>) -> bool) {
    until(counts, || counts.results().get(&name("chat")).is_some_and(&holds)).await;
}

async fn until(counts: &Notices, holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A router that can tell nobody while `events` happen, and is restarted meanwhile; what its receiver hears when it is
/// there, and whether anything waits after that. `meddle` happens between the two processes.
async fn cut_off(events: u32, meddle: impl FnOnce(&Path)) -> (Option<Value>, bool) {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens yet, and nobody else can take the port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let notify = json!([{"name": "chat", "webhook": {"url": format!("http://127.0.0.1:{port}/")}, "group": "50ms"}]);
    let (site, channels) = (name("berlin"), channels(&notify));
    {
        let (recorder, counts) = (Recorder::start(dir.path(), Limits::default()), Arc::new(Notices::default()));
        let notifier = Notifier::start(&site, &channels, &recorder, &counts);
        for n in 0..events {
            recorder.event(Event { at: patronus::clock::wall(), ..event("exhausted", &format!("no path is up: {n}")) });
        }
        let waits = format!("told when it works again: {events} event");
        until(&counts, || counts.alarms().iter().any(|alarm| alarm.contains(&waits))).await;
        // The last words: no channel hears of this one before the end.
        recorder.event(Event { at: patronus::clock::wall(), ..event("exhausted", "the last words") });
        drop(notifier);
        assert!(recorder.flush(PATIENCE));
    }
    meddle(dir.path());
    let (recorder, counts) = (Recorder::start(dir.path(), Limits::default()), Arc::new(Notices::default()));
    socket.listen(8).unwrap();
    let (chat, requests) = (name("chat"), serve(socket.into(), &["200 OK"]));
    let _notifier = Notifier::start(&site, &channels, &recorder, &counts);
    // Whatever waits goes first, and this with it.
    recorder.event(event("failback", "lte -> fiber"));
    let heard = tokio::task::spawn_blocking(move || requests.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    counted(&counts, |results| results.get("sent") == Some(&1)).await;
    assert!(recorder.flush(PATIENCE));
    let waits = !patronus::store::read::untold(dir.path(), &chat, i64::MAX, 1).unwrap().0.is_empty();
    let message = serde_json::from_str::<Value>(heard.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    let about = |event: &Value| event["kind"] == "exhausted";
    (message["events"].as_array().unwrap().iter().any(about).then_some(message), waits)
}

#[tokio::test]
async fn a_router_that_was_cut_off_tells_of_it_in_one_message_when_it_is_back_also_after_a_restart() {
    let (message, waits) = cut_off(137, |_| ()).await;
    let message = message.expect("it tells of what was before the restart");
    let events = message["events"].as_array().unwrap();
    assert_eq!((events.len(), &message["more"], waits), (100, &39.into(), false), "{message:#}");
    assert_eq!(events[97]["message"], "no path is up: 136");
    assert_eq!(events[98]["message"], "the last words");
    assert_eq!(events[99]["message"], "lte -> fiber");
    assert!(message["text"].as_str().unwrap().starts_with("39 older events left out\n"), "{message:#}");
}

#[tokio::test]
async fn the_checker_sees_a_channel_that_forgets_what_it_could_not_tell() {
    let forget = |dir: &Path| {
        let records = rusqlite::Connection::open(dir.join("records.db")).unwrap();
        assert_eq!(records.execute("DELETE FROM untold", []).unwrap(), 3);
    };
    assert_eq!(cut_off(2, forget).await, (None, false));
}

#[test]
fn a_channel_that_hangs_delays_no_failover_and_its_failure_is_an_alarm_and_no_event() {
    let repository = Repository::new(&[("berlin.yaml", SITE)]);
    let lab = repository.lab();
    let dir = tempfile::Builder::new().prefix("patronus-it-").tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let here = dir.path().display();
    let stuck = script(
        dir.path(),
        "stuck",
        &format!("echo $$ > {here}/pid.new; mv {here}/pid.new {here}/pid; exec sleep 1000"),
    );
    let told = script(dir.path(), "told.sh", &format!("cat > {here}/told.new; mv {here}/told.new {here}/told"));
    let notify = json!([
        {"name": "stuck", "exec": {"command": [stuck], "timeout": "10m"}, "events": ["daemon", "failover"], "group": "1ms"},
        {"name": "broken", "webhook": {"url": "http://127.0.0.1:9/"}, "events": ["daemon", "failover", "alarm"], "group": "1ms"},
        {"name": "told", "exec": {"command": [told]}, "events": ["failover"], "group": "1ms"},
    ]);
    let mut daemon = Daemon::start_with(&lab, &repository, "berlin", json!({ "notify": notify }));
    daemon.wait_active("critical", "fiber");
    wait("a program that hangs", || place("pid").exists());
    let alarm =
        |line: &String| line.starts_with("notifications by broken do not arrive: cannot connect to 127.0.0.1:9");
    daemon.wait("the alarm", |s| s.alarms.iter().any(alarm));
    lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    daemon.wait_active("critical", "lte");
    wait("the others to be told", || place("told").exists());
    let pid = fs::read_to_string(place("pid")).unwrap();
    assert!(runs(pid.trim()), "it hung all the while");
    let message: Value = serde_json::from_str(&fs::read_to_string(place("told")).unwrap()).unwrap();
    assert!(
        message["subject"].as_str().unwrap().starts_with("[berlin] failover: critical: fiber -> lte"),
        "{message:#}"
    );
    daemon.wait("the count", |s| s.totals.notifications.get(&name("told")).is_some_and(|r| r.get("sent") == Some(&1)));
    assert_eq!(active(&daemon.status(), "critical"), Some("lte"));
    let about = |event: &Event| event.message.contains("notifications by") || event.message.contains("127.0.0.1:9");
    assert!(!daemon.events(None).iter().any(about), "a failure to tell is not told of");
    let metrics = daemon.metrics();
    assert!(
        metrics.keys().any(|key| key.starts_with("patronus_notifications_total") && key.contains("channel=\"told\""))
    );
    daemon.terminate();
    wait("the program to end with the daemon", || !runs(pid.trim()));
}

#[test]
fn each_channel_can_be_tried_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("patronus.yaml");
    let run = || {
        let output = std::process::Command::new(crate::support::daemon::PATRONUS)
            .args(["notify", "test", "--config"])
            .arg(&settings)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    fs::write(&settings, "site: berlin\n").unwrap();
    assert_eq!(run(), (Some(78), "patronus: the settings have no `notify`: nobody is told of anything\n".into()));
    let notify = json!({"site": "berlin", "notify": [
        {"name": "good", "exec": {"command": ["/bin/true"]}}, {"name": "bad", "exec": {"command": ["/bin/false"]}}]});
    fs::write(&settings, notify.to_string()).unwrap();
    assert_eq!(run(), (Some(1), "good: sent\nbad: NOT SENT: /bin/false ended with exit status: 1\n".into()));
}
