//! The machine told as stories, and under any order of events.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Wall {
    Wall::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

fn commit(id: &str, lineage: Lineage) -> Commit {
    Commit {
        id: id.into(),
        author: "A <a@example.net>".into(),
        at: at(0),
        subject: "change".into(),
        trailers: Vec::new(),
        signature: Signature::Off,
        lineage,
    }
}

/// The machine with the engine's part played beside it: what it works with, and what it goes back to.
#[derive(Debug, Default, Clone)]
struct Router {
    revisions: Revisions,
    active: Option<String>,
    fallback: Option<String>,
    told: Vec<Note>,
    clock: i64,
}

impl Router {
    fn now(&mut self) -> Wall {
        self.clock += 1;
        at(self.clock)
    }

    /// The source holds this commit, which means `content` for this site; true: it is tried.
    fn sees(&mut self, commit: &Commit, content: Result<&str, &str>) -> bool {
        let now = self.now();
        let current = self.active.clone();
        let (triage, notes) = self.revisions.arrived(&commit.id, Some(commit), current.as_deref(), now);
        self.told.extend(notes);
        if triage != Triage::Check {
            return false;
        }
        let (adopt, notes) = match content {
            Ok(content) => self.revisions.offer(content, current.as_deref(), now),
            Err(error) => (false, self.revisions.refused("", vec![error.into()], now)),
        };
        self.told.extend(notes);
        if adopt {
            let trying = self.active.as_ref().is_some_and(|a| self.fallback.is_none() && *a != commit.id);
            if trying {
                self.fallback.clone_from(&self.active);
            }
            self.active = Some(commit.id.clone());
        }
        adopt
    }

    fn passes(&mut self) {
        let (active, now) = (self.active.clone(), self.now());
        if let Some(active) = active {
            self.revisions.in_force(&active, now);
            self.fallback = None;
        }
    }

    fn fails(&mut self, reason: &str) {
        self.fails_of(reason, Fault::Own);
    }

    fn fails_of(&mut self, reason: &str, fault: Fault) {
        let now = self.now();
        let fallback = self.fallback.is_some();
        let notes = self.revisions.failed(AttemptOutcome::RolledBack, reason, fault, fallback, now);
        self.told.extend(notes);
        if let Some(fallback) = self.fallback.take() {
            self.active = Some(fallback);
        }
    }

    fn restarts(&mut self) {
        let now = self.now();
        let memory = self.revisions.memory();
        let applied = self.revisions.memory.applied.as_ref().map(|a| a.revision.clone());
        (self.revisions, self.told) = Revisions::remembered(Some(&memory), now);
        self.active = applied;
        self.fallback = None;
    }

    fn condition(&mut self, kind: ConditionType) -> Condition {
        let now = self.now();
        let all = self.revisions.conditions(View::default(), now);
        all.into_iter().find(|c| c.kind == kind).unwrap()
    }

    fn stalled(&mut self) -> (Truth, String) {
        let stalled = self.condition(ConditionType::Stalled);
        (stalled.status, stalled.reason)
    }

    fn applied(&self) -> Option<&str> {
        self.revisions.applied().map(|seen| seen.revision.as_str())
    }
}

fn in_force(id: &str) -> Router {
    let mut router = Router::default();
    assert!(router.sees(&commit(id, Lineage::First), Ok(id)));
    router.passes();
    router.told.clear();
    router
}

#[test]
fn a_good_commit_is_wanted_then_tried_then_in_force() {
    let mut router = Router::default();
    assert_eq!(router.condition(ConditionType::Ready).status, Truth::Unknown);
    assert!(router.sees(&commit("aaaaaaaa", Lineage::First), Ok("1")));
    assert_eq!(router.revisions.attempt().map(|a| a.outcome), Some(AttemptOutcome::Pending));
    assert_eq!(router.condition(ConditionType::Reconciling).reason, "Progressing");
    assert_eq!(router.applied(), None);
    router.passes();
    assert_eq!((router.applied(), router.revisions.highest()), (Some("aaaaaaaa"), Some("aaaaaaaa")));
    let ready = router.condition(ConditionType::Ready);
    assert_eq!((ready.status, ready.reason.as_str()), (Truth::True, "Applied"));
    assert_eq!(router.condition(ConditionType::Ready).since, ready.since, "it goes on being true");
}

#[test]
fn what_a_person_tried_and_did_not_confirm_is_not_tried_by_the_daemon_either() {
    let mut router = in_force("aaaaaaaa");
    let tried = commit("bbbbbbbb", Lineage::Descends);
    // Another revision than the one that the source holds is no reason to refuse anything.
    let now = router.now();
    assert_eq!(router.revisions.unconfirmed("cccccccc", "other", "nobody confirmed it in time", now), []);
    let now = router.now();
    let (triage, _) = router.revisions.arrived(&tried.id, Some(&tried), Some("aaaaaaaa"), now);
    assert_eq!(triage, Triage::Check);
    let now = router.now();
    let notes = router.revisions.unconfirmed(&tried.id, "tried", "nobody confirmed it in time", now);
    assert!(notes.len() == 1 && notes[0].text.contains("quarantined: nobody confirmed it in time"), "{notes:?}");
    assert!(!router.sees(&tried, Ok("tried")));
    router.restarts();
    assert!(!router.sees(&tried, Ok("tried")), "nor after a restart");
    assert!(!router.sees(&commit("dddddddd", Lineage::Descends), Ok("tried")), "nor with the same content");
    assert!(router.sees(&commit("eeeeeeee", Lineage::Descends), Ok("mended")));
}

#[test]
fn a_commit_that_was_rolled_back_is_tried_again_only_with_another_content_or_by_hand() {
    let mut router = in_force("aaaaaaaa");
    let bad = commit("bbbbbbbb", Lineage::Descends);
    assert!(router.sees(&bad, Ok("bad")));
    router.fails("the management network is cut off");
    assert_eq!(router.active.as_deref(), Some("aaaaaaaa"));
    assert!(!router.sees(&bad, Ok("bad")));
    assert_eq!(router.stalled(), (Truth::True, "Quarantined".into()));
    assert_eq!(router.applied(), Some("aaaaaaaa"), "what is in force is still in force");
    assert!(router.told.last().unwrap().text.contains("the management network is cut off"), "{:?}", router.told);

    let same = commit("cccccccc", Lineage::Descends);
    assert!(!router.sees(&same, Ok("bad")), "another commit with the same content for this site");
    assert!(router.told.last().unwrap().text.contains("nothing changed for this site"), "{:?}", router.told);
    router.restarts();
    assert!(!router.sees(&same, Ok("bad")), "a restart is no reason to try again");

    assert!(router.revisions.retry("root").is_some());
    assert!(router.sees(&same, Ok("bad")));
    router.fails("again");
    assert!(router.sees(&commit("dddddddd", Lineage::Descends), Ok("mended")));
    router.passes();
    assert_eq!(router.applied(), Some("dddddddd"));
    assert_eq!(router.stalled().0, Truth::False);
}

#[test]
fn content_that_was_too_large_is_tried_again_when_its_commit_says_that_it_is_meant_and_no_other() {
    let mut router = in_force("aaaaaaaa");
    assert!(router.sees(&commit("bbbbbbbb", Lineage::Descends), Ok("bad")));
    router.fails_of("it deletes more than half", Fault::TooLarge);
    assert!(!router.sees(&commit("bbbbbbbc", Lineage::Descends), Ok("bad")), "nobody says that it is meant");
    let trailers = vec![("Patronus-Allow-Large".to_owned(), "yes".to_owned())];
    let meant = Commit { trailers, ..commit("cccccccc", Lineage::Descends) };
    assert!(router.sees(&meant, Ok("bad")));
    router.fails("it cuts the router off");
    assert!(!router.sees(&meant, Ok("bad")), "once");
    let again = Commit { id: "dddddddd".into(), ..meant };
    assert!(!router.sees(&again, Ok("bad")), "a trailer about its size says nothing about a router that is cut off");
    assert!(router.sees(&Commit { id: "eeeeeeee".into(), ..again }, Ok("mended")));
}

#[test]
fn what_was_undone_for_paths_that_are_silent_without_it_is_tried_again_when_they_answer_and_at_most_twice() {
    let mut router = in_force("aaaaaaaa");
    let good = commit("bbbbbbbb", Lineage::Descends);
    for round in 0..3 {
        assert!(router.sees(&good, Ok("good")), "round {round}");
        router.fails("path fiber was up before and does not answer now");
        assert_eq!(router.stalled(), (Truth::True, "Quarantined".into()), "nothing is known yet of the cause");
        let awaited = Awaited { paths: ["fiber".parse().unwrap()].into(), ..Awaited::default() };
        let note = router.revisions.acquit("bbbbbbbb", awaited).unwrap();
        assert!(note.text.contains("without it there is no answer either"), "{}", note.text);
        assert!(router.revisions.silence_ended(|_| false, |_| true).is_none() && !router.sees(&good, Ok("good")));
        router.restarts();
        assert!(!router.sees(&good, Ok("good")), "a restart is no answer");
        if round < 2 {
            assert_eq!(router.condition(ConditionType::Reconciling).reason, "AwaitingPaths");
            assert!(router.revisions.silence_ended(|part| part.to_string() == "path fiber", |_| false).is_some());
        }
    }
    assert!(router.revisions.silence_ended(|_| true, |_| true).is_none(), "that was often enough");
    assert_eq!(router.stalled(), (Truth::True, "Quarantined".into()));
    router.revisions.retry("root").unwrap();
    assert!(router.sees(&good, Ok("good")));
    router.passes();
    assert_eq!(router.applied(), Some("bbbbbbbb"));
}

#[test]
fn what_was_undone_for_a_service_that_is_silent_without_it_is_tried_again_when_it_answers_and_at_most_twice() {
    let mut router = in_force("aaaaaaaa");
    let good = commit("bbbbbbbb", Lineage::Descends);
    let remote = "192.0.2.9:22";
    for round in 0..3 {
        assert!(router.sees(&good, Ok("good")), "round {round}");
        router.fails("192.0.2.9:22 answered before and does not now");
        assert!(router.revisions.convict("cccccccc", remote, false).is_none(), "another one");
        let told = |late| router.revisions.convict("bbbbbbbb", remote, late).unwrap().text;
        assert!(told(false).ends_with("192.0.2.9:22 answers without it"), "{}", told(false));
        assert!(told(true).contains("though not at once: if it came back by itself, `patronus source retry`"));
        assert!(router.revisions.silence_ended(|_| true, |_| true).is_none(), "who is guilty is not tried again");
        let awaited = Awaited { services: [remote.to_owned()].into(), paths: ["fiber".parse().unwrap()].into() };
        router.revisions.acquit("bbbbbbbb", awaited).unwrap();
        router.restarts();
        assert!(!router.sees(&good, Ok("good")), "a restart is no answer");
        if round < 2 {
            let condition = router.condition(ConditionType::Reconciling);
            assert_eq!(condition.reason, "AwaitingServices");
            assert!(
                condition.message.ends_with("once these answer: path fiber, 192.0.2.9:22"),
                "{}",
                condition.message
            );
            assert_eq!(router.revisions.awaited_services(), Some(&[remote.to_owned()].into()));
            assert!(router.revisions.silence_ended(|_| true, |_| false).is_none(), "the service is silent");
            assert!(router.revisions.silence_ended(|_| false, |_| true).is_none(), "the path is silent");
            assert!(
                router.revisions.silence_ended(|part| part.to_string() == "path fiber", |at| at == remote).is_some()
            );
        }
    }
    assert!(router.revisions.silence_ended(|_| true, |_| true).is_none(), "that was often enough");
    assert_eq!(router.stalled(), (Truth::True, "Quarantined".into()));
}

#[test]
fn after_a_restart_during_a_trial_what_was_in_force_before_it_is_named() {
    let mut router = in_force("aaaaaaaa");
    router.restarts();
    assert_eq!(router.applied(), None, "the kernel was not looked at yet");
    router.revisions.resumes("aaaaaaaa", at(9));
    assert_eq!(router.applied(), Some("aaaaaaaa"));
    router.revisions.resumes("applied by hand", at(9));
    assert_eq!(router.applied(), Some("applied by hand"));
}

#[test]
fn what_could_not_be_undone_is_in_force_and_an_alarm_until_another_comes_or_a_person_lets_it_stand() {
    for by_hand in [false, true] {
        let mut router = in_force("aaaaaaaa");
        let bad = commit("bbbbbbbb", Lineage::Descends);
        assert!(router.sees(&bad, Ok("bad")));
        router.revisions.confirming(at(40));
        router.revisions.stays("bbbbbbbb", "aaaaaaaa cannot be used any more", at(41));
        router.passes();
        router.restarts();
        assert!(!router.sees(&bad, Ok("bad")));
        router.passes();
        assert_eq!(router.applied(), Some("bbbbbbbb"), "the kernel has it");
        assert_eq!(router.revisions.attempt().unwrap().outcome, AttemptOutcome::RollbackFailed);
        assert_eq!(router.stalled(), (Truth::True, "RollbackFailed".into()));
        router.revisions.left(Some("bbbbbbbb"));
        assert!(router.revisions.alarms(at(50))[0].contains("aaaaaaaa cannot be used any more"));
        let mut undone = router.revisions.clone();
        undone.left(Some("aaaaaaaa"));
        assert!(undone.stuck().is_none(), "the way back worked after all");
        if by_hand {
            router.revisions.accept("bbbbbbbb", "root").unwrap();
        } else {
            assert!(router.sees(&commit("cccccccc", Lineage::Descends), Ok("mended")));
        }
        router.passes();
        assert!(router.revisions.stuck().is_none() && router.revisions.alarms(at(60)).is_empty());
        assert_eq!(router.condition(ConditionType::Ready).status, Truth::True);
    }
}

#[test]
fn without_anything_to_go_back_to_nothing_is_quarantined() {
    let mut router = Router::default();
    assert!(router.sees(&commit("aaaaaaaa", Lineage::First), Ok("1")));
    router.fails("no such device");
    assert!(router.revisions.quarantined().is_empty());
    assert_eq!(router.revisions.attempt().unwrap().outcome, AttemptOutcome::RolledBack);
    router.passes();
    assert_eq!(router.applied(), Some("aaaaaaaa"));
}

#[test]
fn history_written_anew_is_held_until_a_person_accepts_the_very_commit() {
    let mut router = in_force("aaaaaaaa");
    let anew = commit("bbbbbbbb", Lineage::Diverged);
    assert!(!router.sees(&anew, Ok("2")));
    assert_eq!(router.stalled(), (Truth::True, "Held".into()));
    let text = router.told.last().unwrap().text.clone();
    assert!(text.contains("source accept bbbbbbbb") && text.contains("aaaaaaaa stays in force"), "{text}");

    assert_eq!(router.revisions.accept("bbb", "root"), Err(Refusal::TooShort(7)));
    assert!(matches!(router.revisions.accept("ccccccc", "root"), Err(Refusal::NotNewest { .. })));
    router.revisions.accept("bbbbbbb", "root").unwrap();
    assert!(!router.sees(&commit("cccccccc", Lineage::Behind), Ok("2")), "what was accepted is one commit");
    router.restarts();
    assert!(router.sees(&anew, Ok("2")), "the acceptance survives a restart");
    router.passes();
    assert_eq!(router.revisions.highest(), Some("bbbbbbbb"));
    assert!(!router.sees(&commit("aaaaaaaa", Lineage::Behind), Ok("1")), "and is used up");
}

#[test]
fn a_signature_is_not_bent_by_hand() {
    let mut router = in_force("aaaaaaaa");
    for signature in [Signature::Missing, Signature::Bad { reason: "unknown key".into() }] {
        let unsigned = Commit { signature, ..commit("bbbbbbbb", Lineage::Descends) };
        assert!(!router.sees(&unsigned, Ok("2")));
        assert!(matches!(router.revisions.accept("bbbbbbbb", "root"), Err(Refusal::Signature(_))));
        assert_eq!(router.condition(ConditionType::SourceVerified).status, Truth::False);
    }
    let good = Signature::Good { signer: "a@example.net".into(), key: "SHA256:x".into() };
    assert!(router.sees(&Commit { signature: good, ..commit("cccccccc", Lineage::Descends) }, Ok("2")));
    assert_eq!(router.condition(ConditionType::SourceVerified).status, Truth::True);
}

#[test]
fn a_commit_with_errors_is_told_once_and_the_old_one_stays() {
    let mut router = in_force("aaaaaaaa");
    let wrong = commit("bbbbbbbb", Lineage::Descends);
    assert!(!router.sees(&wrong, Err("site.yaml:3:1: no such field")));
    let told = router.told.len();
    assert!(!router.sees(&wrong, Err("site.yaml:3:1: no such field")));
    assert_eq!(router.told.len(), told);
    assert_eq!(router.stalled(), (Truth::True, "InvalidConfiguration".into()));
    assert_eq!(router.revisions.errors(), ["site.yaml:3:1: no such field"]);
    assert!(!router.sees(&commit("aaaaaaaa", Lineage::Same), Ok("1")), "back at what is in force");
    assert_eq!(router.condition(ConditionType::Ready).status, Truth::True);
    assert!(router.revisions.errors().is_empty() && router.told.last().unwrap().text.contains("again"));
}

#[test]
fn while_suspended_the_newest_is_known_and_not_taken() {
    let mut router = in_force("aaaaaaaa");
    let suspension =
        Suspension { by: "root".into(), reason: "maintenance".into(), since: at(0), until: Some(at(1_000)) };
    router.revisions.suspend(suspension.clone());
    let next = commit("bbbbbbbb", Lineage::Descends);
    assert!(!router.sees(&next, Ok("2")));
    assert_eq!(router.revisions.desired().unwrap().revision, "bbbbbbbb");
    assert_eq!(router.stalled(), (Truth::True, "Suspended".into()));
    router.restarts();
    assert!(!router.sees(&next, Ok("2")), "a restart does not end it");
    assert_eq!(router.revisions.tick(at(999)), None);
    assert!(router.revisions.tick(at(1_000)).unwrap().text.contains("ended"));
    assert!(router.sees(&next, Ok("2")));

    router.revisions.suspend(Suspension { until: None, ..suspension });
    let day = i64::try_from(FORGOTTEN.as_secs()).unwrap();
    assert_eq!(router.revisions.tick(at(10 * day)), None);
    assert!(router.revisions.alarms(at(day)).is_empty());
    assert!(router.revisions.alarms(at(2 * day))[0].contains("patronus resume"));
    assert!(router.revisions.resume("root").is_some() && router.revisions.resume("root").is_none());
}

#[test]
fn a_source_that_cannot_be_read_is_told_once_per_reason_and_stalls_nothing() {
    let mut router = in_force("aaaaaaaa");
    let told = |router: &mut Router, text: &str| router.revisions.unreadable("dns", text.into(), at(5)).len();
    assert_eq!(told(&mut router, "no such host"), 1);
    assert_eq!(told(&mut router, "no such host"), 0);
    assert_eq!(told(&mut router, "another"), 1);
    assert_eq!(router.revisions.trouble().unwrap().failures, 3);
    assert_eq!(router.condition(ConditionType::Ready).reason, "SourceUnavailable");
    assert_eq!(router.stalled().0, Truth::False);
    assert!(!router.sees(&commit("aaaaaaaa", Lineage::Same), Ok("1")));
    assert_eq!(router.revisions.trouble(), None);
}

#[test]
fn a_revision_that_the_daemon_does_not_survive_is_given_up() {
    let mut router = in_force("aaaaaaaa");
    let deadly = commit("bbbbbbbb", Lineage::Descends);
    for death in 1..=DEATHS {
        assert!(router.sees(&deadly, Ok("deadly")), "death {death}");
        router.restarts();
    }
    assert!(!router.sees(&deadly, Ok("deadly")));
    assert!(router.revisions.quarantined()[0].reason.contains("3 times"));
    assert!(router.told.iter().any(|note| note.warning && note.text.contains("quarantined")), "{:?}", router.told);
}

#[test]
fn a_revision_that_only_waits_is_not_given_up_however_often_the_daemon_ends() {
    let mut router = in_force("aaaaaaaa");
    let waits = commit("bbbbbbbb", Lineage::Descends);
    assert!(router.sees(&waits, Ok("waits")));
    router.restarts();
    for _ in 0..9 {
        assert!(router.sees(&waits, Ok("waits")));
        router.revisions.put_off();
        router.restarts();
        router.restarts();
    }
    assert_eq!((router.revisions.quarantined(), router.revisions.memory.deaths), (&[][..], 1));
    for death in 2..=DEATHS {
        assert!(router.sees(&waits, Ok("waits")), "death {death}");
        router.restarts();
    }
    assert!(router.revisions.quarantined()[0].reason.contains("3 times"));
}

#[test]
fn while_one_waits_for_its_confirmation_the_next_one_waits_too() {
    let mut router = in_force("aaaaaaaa");
    assert!(router.sees(&commit("bbbbbbbb", Lineage::Descends), Ok("2")));
    router.revisions.confirming(at(50));
    assert_eq!(router.condition(ConditionType::Reconciling).reason, "AwaitingConfirmation");
    assert_eq!(router.applied(), Some("aaaaaaaa"), "it is not in force before it is confirmed");
    let next = commit("cccccccc", Lineage::Descends);
    assert!(!router.sees(&next, Ok("3")));
    router.passes();
    assert_eq!(router.applied(), Some("bbbbbbbb"));
    assert!(router.sees(&next, Ok("3")));
}

#[derive(Debug, Clone)]
enum Happens {
    /// Commit number n of line l; its content.
    Push {
        line: u8,
        number: u8,
        fault: u8,
    },
    Unreadable,
    Pass,
    Fail,
    Suspend,
    Resume,
    Retry,
    Accept,
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (0..3_u8, 0..4_u8, 0..6_u8).prop_map(|(line, number, fault)| Happens::Push { line, number, fault }),
        1 => Just(Happens::Unreadable),
        3 => Just(Happens::Pass),
        2 => Just(Happens::Fail),
        1 => Just(Happens::Suspend),
        2 => Just(Happens::Resume),
        1 => Just(Happens::Retry),
        1 => Just(Happens::Accept),
        1 => Just(Happens::Restart),
    ]
}

fn id(line: u8, number: u8) -> String {
    format!("{line}{number}").repeat(20)
}

/// Lines share no commit; a line is a chain.
fn lineage(highest: Option<&str>, id: &str) -> Lineage {
    let Some(highest) = highest else { return Lineage::First };
    match id.cmp(highest) {
        _ if id[..1] != highest[..1] => Lineage::Diverged,
        std::cmp::Ordering::Equal => Lineage::Same,
        std::cmp::Ordering::Greater => Lineage::Descends,
        std::cmp::Ordering::Less => Lineage::Behind,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_tried_that_must_not_be_whatever_happens(story in prop::collection::vec(happens(), 1..60)) {
        let mut router = Router::default();
        let mut accepted = BTreeSet::new();
        for event in story {
            let (highest, applied) = (router.revisions.highest().map(str::to_owned), router.applied().map(str::to_owned));
            match event {
                Happens::Push { line, number, fault } => {
                    let id = id(line, number);
                    let signature = if fault == 0 { Signature::Missing } else { Signature::Off };
                    let lineage = lineage(highest.as_deref(), &id);
                    let commit = Commit { signature, ..commit(&id, lineage) };
                    let known = router.revisions.quarantined().iter().any(|q| q.content == id || q.revision == id);
                    let suspended = router.revisions.suspended().is_some();
                    let tried = router.sees(&commit, if fault == 1 { Err("wrong") } else { Ok(&id) });
                    prop_assert_eq!(&router.revisions.desired().unwrap().revision, &id);
                    if tried {
                        prop_assert!(!known && !suspended && fault > 1);
                        prop_assert!(lineage.is_forward() || accepted.contains(&id));
                    }
                }
                Happens::Unreadable => drop(router.revisions.unreadable("dns", "no such host".into(), at(0))),
                Happens::Pass => router.passes(),
                Happens::Fail => router.fails("no"),
                Happens::Suspend => drop(router.revisions.suspend(Suspension {
                    by: "root".into(), reason: "test".into(), since: at(0), until: None,
                })),
                Happens::Resume => drop(router.revisions.resume("root")),
                Happens::Retry => drop(router.revisions.retry("root")),
                Happens::Accept => if let Some(newest) = router.revisions.desired().map(|d| d.revision.clone()) {
                    let held = router.revisions.held().is_some();
                    if router.revisions.accept(&newest, "root").is_ok() && held {
                        accepted.insert(newest);
                    }
                },
                Happens::Restart => router.restarts(),
            }
            let moved = router.applied().map(str::to_owned) != applied;
            prop_assert!(!moved || matches!(event, Happens::Pass | Happens::Restart), "{event:?} changed what is applied");
            if let (Some(old), Some(new)) = (&highest, router.revisions.highest()) {
                prop_assert!(lineage(Some(old), new).is_forward() || accepted.contains(new));
                if old != new {
                    accepted.remove(new);
                }
            }
            let all = router.revisions.conditions(View::default(), at(0));
            let is = |kind| all.iter().any(|c: &Condition| c.kind == kind && c.status == Truth::True);
            prop_assert!(!(is(ConditionType::Stalled) && is(ConditionType::Reconciling)), "{all:?}");
            prop_assert!(!(is(ConditionType::Stalled) && is(ConditionType::Ready)), "{all:?}");
            let again = Revisions::remembered(Some(&router.revisions.memory()), at(0)).0;
            prop_assert_eq!(again.highest(), router.revisions.highest());
            prop_assert_eq!(again.suspended(), router.revisions.suspended());
        }
    }
}
