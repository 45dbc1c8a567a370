//! Tells people what happened: a webhook, a mail, a program.
//!
//! Each channel is a task of its own that follows the recorder's events. Events that come close together become one
//! message, and a token bucket bounds how many messages there are; what waits for a token joins the next message.
//!
//! Invariant: nothing here can slow the engine. The queue of a channel is the recorder's bounded broadcast: a channel
//! that is late loses the oldest events and counts them. A channel that fails is an alarm in the status and a number in
//! the metrics, never an event, so that a failure is never notified of.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

mod channel;
mod gather;
mod mail;
mod message;
mod send;

pub use self::{
    channel::{Address, Channel, Exec, Kind, Limit, Login, Mail, Tls, Way, Webhook},
    gather::Gather,
    message::{Message, render},
    send::{Failed, Sender},
};
use crate::{
    clock,
    store::{Kept, Recorder},
    units::Name,
};

/// Waits between the attempts at one message.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];

/// What became of the messages of each channel, and which channel fails.
#[derive(Debug, Default)]
pub struct Notices(Mutex<BTreeMap<Name, Count>>);

#[derive(Debug, Default)]
struct Count {
    results: BTreeMap<&'static str, u64>,
    failing: Option<String>,
}

impl Notices {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<Name, Count>> {
        // A panic of another holder leaves whole values behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, channel: &Name, result: &'static str, n: u64) {
        *self.locked().entry(channel.clone()).or_default().results.entry(result).or_default() += n;
    }

    fn failing(&self, channel: &Name, why: Option<String>) {
        self.locked().entry(channel.clone()).or_default().failing = why;
    }

    /// By channel and result: `sent`, `failed`, `retried`, `dropped` (events, not messages).
    #[must_use]
    pub fn results(&self) -> BTreeMap<Name, BTreeMap<String, u64>> {
        let text = |count: &Count| count.results.iter().map(|(result, n)| ((*result).to_owned(), *n)).collect();
        self.locked().iter().map(|(name, count)| (name.clone(), text(count))).collect()
    }

    /// Channels whose last message did not arrive, one line each.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let line = |(name, count): (&Name, &Count)| {
            count.failing.as_ref().map(|why| format!("notifications by {name} do not arrive: {why}"))
        };
        self.locked().iter().filter_map(line).collect()
    }
}

/// The channels at work. Dropping it ends them.
#[derive(Debug)]
pub struct Notifier(Vec<JoinHandle<()>>);

impl Drop for Notifier {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Notifier {
    /// Starts a task for each channel. Only what happens from now on is told.
    #[must_use]
    pub fn start(site: &Name, channels: &[Channel], recorder: &Recorder, counts: &Arc<Notices>) -> Self {
        let task = |channel: &Channel| {
            let (_, live) = recorder.follow();
            let worker = Worker { site: site.clone(), sender: Sender::new(channel), counts: Arc::clone(counts) };
            tokio::spawn(worker.run(channel.clone(), live))
        };
        Self(channels.iter().map(task).collect())
    }
}

struct Worker {
    site: Name,
    sender: Sender,
    counts: Arc<Notices>,
}

impl Worker {
    async fn run(mut self, channel: Channel, mut live: broadcast::Receiver<Kept>) {
        let mut gather = Gather::new(channel.group, channel.limit);
        loop {
            let wait = gather.due().map(|at| at.since(clock::now()));
            tokio::select! {
                event = live.recv() => match event {
                    Ok(kept) => {
                        if let Some(event) = kept.event().filter(|event| channel.wants(&event.kind)) {
                            gather.take(event, clock::now());
                        }
                    }
                    Err(RecvError::Lagged(lost)) => self.counts.count(&channel.name, "dropped", lost),
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {
                    if let Some((events, more)) = gather.ready(clock::now()) {
                        self.deliver(&channel, &Message::new(&self.site, events, more)).await;
                    }
                }
            }
        }
    }

    /// Tries until it arrives, four times at most.
    async fn deliver(&mut self, channel: &Channel, message: &Message) {
        let mut pauses = PAUSES.into_iter();
        loop {
            let Err(failed) = self.sender.send(message).await else {
                self.counts.count(&channel.name, "sent", 1);
                return self.counts.failing(&channel.name, None);
            };
            tracing::warn!(channel = channel.name.as_str(), "a notification did not arrive: {}", failed.why);
            self.counts.failing(&channel.name, Some(failed.why));
            let Some(pause) = pauses.next().filter(|_| failed.again) else {
                return self.counts.count(&channel.name, "failed", 1);
            };
            self.counts.count(&channel.name, "retried", 1);
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests;
