//! What became of a commit, told to the forge that it came from: a *commit status*, one for each router.
//!
//! ```text
//! published status --verdicts--> queue, newest for each commit --one request at a time--> forge
//! ```
//!
//! Invariant: nothing here can stop or slow the engine. It only looks at the published status, keeps a bounded queue in
//! which the newest word on a commit replaces the older one, and waits longer and longer for a forge that does not
//! answer. The token is read for each request, goes to `api` and nowhere else, and is never logged.

mod queue;
mod verdict;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle, JoinSet},
};

use self::{
    queue::Queue,
    verdict::{Told, verdicts},
    wire::Heard,
};
use crate::{
    clock,
    engine::{
        dice,
        status::{Status, Tally},
    },
    http::{Client, HttpError},
    revision::Rhythm,
    source::git::{Secret, read_secret},
    units::chain,
};

/// How long the forge is left alone after failures.
const RHYTHM: Rhythm =
    Rhythm { interval: Duration::ZERO, retry: Duration::from_secs(1), most: Duration::from_secs(300), jitter: 25 };

/// Which forge it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forge {
    /// GitHub.
    GitHub,
    /// GitLab.
    GitLab,
    /// Gitea or Forgejo.
    Gitea,
}

/// Whom to report to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Which forge it is.
    pub forge: Forge,
    /// The address of its API, without a slash at the end.
    pub api: String,
    /// The project: `owner/name`, or for GitLab also longer or a number.
    pub project: String,
    /// Where the token stands.
    pub token: Secret,
    /// Certificate authorities beside the system's.
    pub ca: Option<PathBuf>,
}

/// The task that reports. Dropping it ends it.
#[derive(Debug)]
pub struct Reporter(JoinHandle<()>);

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reporter {
    /// Reports from now on what the status says of commits. Reads the file of authorities.
    pub fn start(spec: Spec, status: watch::Receiver<Arc<Status>>, tally: Arc<Tally>) -> Result<Self, HttpError> {
        let client = Client::new(spec.ca.as_deref())?;
        let post = Arc::new(Post { spec, client });
        let work = Work { post, status, tally, queue: Queue::default(), flight: JoinSet::new(), trouble: None };
        Ok(Self(tokio::spawn(work.run())))
    }
}

struct Post {
    spec: Spec,
    client: Client,
}

impl Post {
    async fn send(self: Arc<Self>, site: String, told: Told) -> (Told, Heard) {
        let heard = self.ask(&site, &told).await.unwrap_or_else(|why| Heard::Later { why, wait: None });
        (told, heard)
    }

    async fn ask(&self, site: &str, told: &Told) -> Result<Heard, String> {
        let token = read_secret(&self.spec.token).map_err(|error| error.to_string())?;
        let request = wire::request(&self.spec, site, told, token.trim()).map_err(|error| chain(&error))?;
        let answer = self.client.send(request).await.map_err(|error| chain(&error))?;
        Ok(wire::heard(self.spec.forge, &answer, clock::wall()))
    }
}

struct Work {
    post: Arc<Post>,
    status: watch::Receiver<Arc<Status>>,
    tally: Arc<Tally>,
    queue: Queue,
    /// The request that is under way; one at most.
    flight: JoinSet<(Told, Heard)>,
    /// What went wrong last, so that it is said once.
    trouble: Option<String>,
}

impl Work {
    async fn run(mut self) {
        loop {
            let idle = self.flight.is_empty();
            let wait = self.queue.due().map_or(Duration::MAX, |at| at.since(clock::now()));
            tokio::select! {
                changed = self.status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A clone, so that the engine can publish meanwhile.
                    let now = Arc::clone(&self.status.borrow_and_update());
                    self.queue.want(verdicts(&now));
                }
                Some(landed) = self.flight.join_next() => self.landed(landed),
                () = tokio::time::sleep(wait), if idle && self.queue.due().is_some() => self.send(),
            }
        }
    }

    fn send(&mut self) {
        let Some(told) = self.queue.next(clock::now()).cloned() else { return };
        let site = self.status.borrow().site.to_string();
        self.flight.spawn(Arc::clone(&self.post).send(site, told));
    }

    fn landed(&mut self, landed: Result<(Told, Heard), JoinError>) {
        let now = clock::now();
        let (told, heard) = match landed {
            Ok(landed) => landed,
            Err(error) => {
                tracing::error!(%error, "a report to the forge ended without a result");
                return self.queue.later(now, RHYTHM.wait(self.queue.failures() + 1, dice()));
            }
        };
        match heard {
            Heard::Taken => {
                self.tally.count("taken");
                if self.trouble.take().is_some() {
                    tracing::info!("the forge takes reports again");
                }
                tracing::debug!(commit = told.commit, state = ?told.state, "reported to the forge");
                self.queue.done(told);
            }
            Heard::Refused { why } => {
                self.tally.count("refused");
                tracing::warn!(commit = told.commit, state = ?told.state, "the forge refuses a report: {why}");
                self.queue.done(told);
            }
            Heard::Later { why, wait } => {
                self.tally.count("failed");
                let wait = wait.unwrap_or_default().max(RHYTHM.wait(self.queue.failures() + 1, dice()));
                self.queue.later(now, wait);
                if self.trouble.as_ref() != Some(&why) {
                    tracing::warn!(commit = told.commit, "cannot report to the forge: {why}; it is tried again");
                    self.trouble = Some(why);
                }
            }
        }
    }
}
