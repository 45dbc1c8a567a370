//! Tells people what happened: a webhook, a mail, a program.
//!
//! Each channel is a task of its own that follows the recorder's events. Events that come close together become one
//! message, and a token bucket bounds how many messages there are; what waits for a token joins the next message.
//!
//! A message that does not arrive is tried again for a day, also after a restart: the recorder writes with each event which
//! channels have it to tell, before any of them hears of it. A router that was cut off tells of it when it is back, in one message, marked as late.
//!
//! Invariant: nothing here can slow the engine. The queue of a channel is the recorder's bounded broadcast: a channel
//! that is late loses the oldest events and counts them. A channel that fails is an alarm in the status and a number in
//! the metrics, never an event, so that a failure is never notified of.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    gather::{Gather, Parcel},
    message::{Message, render},
    send::{Failed, Sender},
};
use crate::{
    clock,
    store::{Kept, Recorder, StoreError},
    units::{Name, plural},
};

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
        if n == 0 {
            return;
        }
        *self.locked().entry(channel.clone()).or_default().results.entry(result).or_default() += n;
    }

    fn failing(&self, channel: &Name, why: Option<String>) {
        self.locked().entry(channel.clone()).or_default().failing = why;
    }

    /// By channel and result: `sent`, `failed` (refused for good), `retried`, `dropped` (events, not messages).
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
    /// Starts a task for each channel. Told is what happens from now on, and what an earlier process could not tell.
    #[must_use]
    pub fn start(site: &Name, channels: &[Channel], recorder: &Recorder, counts: &Arc<Notices>) -> Self {
        recorder.tell(channels.iter().map(|channel| (channel.name.clone(), channel.words())).collect());
        let task = |channel: &Channel| {
            let (_, live) = recorder.follow();
            let worker = Worker {
                site: site.clone(),
                gather: Gather::new(channel.group, channel.limit),
                channel: channel.clone(),
                recorder: recorder.clone(),
                counts: Arc::clone(counts),
            };
            tokio::spawn(worker.run(Sender::new(channel), live))
        };
        Self(channels.iter().map(task).collect())
    }
}

struct Worker {
    site: Name,
    channel: Channel,
    gather: Gather,
    recorder: Recorder,
    counts: Arc<Notices>,
}

impl Worker {
    async fn run(mut self, mut sender: Sender, mut live: broadcast::Receiver<Kept>) {
        self.recall().await;
        loop {
            let wait = self.gather.due().map(|at| at.since(clock::now()));
            tokio::select! {
                event = live.recv() => if !self.take(event) {
                    return;
                },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {
                    if let Some(parcel) = self.gather.ready(clock::now())
                        && !self.deliver(parcel, &mut sender, &mut live).await
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Takes over what an earlier process could tell nobody. Without a disk that is nothing.
    async fn recall(&mut self) {
        let (recorder, channel) = (self.recorder.clone(), self.channel.name.clone());
        match tokio::task::spawn_blocking(move || recorder.untold(&channel, gather::MOST)).await {
            Ok(Ok((events, more))) => {
                let old = self.gather.restore(events, more, (clock::now(), clock::wall()));
                self.counts.count(&self.channel.name, "dropped", old);
            }
            Ok(Err(StoreError::Missing { .. })) | Err(_) => {}
            Ok(Err(error)) => {
                let (channel, error) = (self.channel.name.as_str(), error.chain());
                tracing::warn!(channel, "what could not be told before this start is not known: {error}");
            }
        }
    }

    /// Takes an event in; false if there will be no more.
    fn take(&mut self, event: Result<Kept, RecvError>) -> bool {
        let now = clock::now();
        match event {
            Ok(kept) => {
                self.gather.hasten(now);
                if let Some(event) = kept.event().filter(|event| self.channel.wants(&event.kind)) {
                    self.gather.take(event, now);
                }
            }
            Err(RecvError::Lagged(lost)) => self.counts.count(&self.channel.name, "dropped", lost),
            Err(RecvError::Closed) => return false,
        }
        true
    }

    /// One attempt, while events go on being taken in; false if there will be no more of them.
    async fn deliver(&mut self, parcel: Parcel, sender: &mut Sender, live: &mut broadcast::Receiver<Kept>) -> bool {
        let message = Message::new(&self.site, &parcel);
        let sending = sender.send(&message);
        tokio::pin!(sending);
        let mut going_on = true;
        let sent = loop {
            tokio::select! {
                sent = &mut sending => break sent,
                event = live.recv(), if going_on => going_on = self.take(event),
            }
        };
        match sent {
            Ok(()) => self.arrived(&parcel),
            Err(failed) => self.failed(failed, parcel),
        }
        going_on
    }

    fn arrived(&mut self, parcel: &Parcel) {
        self.gather.done();
        self.counts.count(&self.channel.name, "sent", 1);
        self.counts.failing(&self.channel.name, None);
        self.settle(parcel);
    }

    /// Nothing of it has to be told any more.
    fn settle(&self, parcel: &Parcel) {
        if let Some(newest) = parcel.newest() {
            self.recorder.told(&self.channel.name, newest);
        }
    }

    fn failed(&mut self, failed: Failed, parcel: Parcel) {
        let name = &self.channel.name;
        tracing::warn!(channel = name.as_str(), "a notification did not arrive: {}", failed.why);
        if failed.again {
            self.counts.count(name, "retried", 1);
            self.counts.count(name, "dropped", self.gather.back(parcel, clock::now()));
            let waiting = plural(self.gather.waiting(), "event");
            self.counts.failing(name, Some(format!("{}; told when it works again: {waiting}", failed.why)));
        } else {
            self.gather.done();
            self.counts.count(name, "failed", 1);
            self.counts.failing(name, Some(failed.why));
            self.settle(&parcel);
        }
    }
}

#[cfg(test)]
mod tests;
