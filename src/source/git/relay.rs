//! Between libgit2 and the network stands this relay on 127.0.0.1, for the length of one fetch.
//!
//! libgit2 opens its sockets itself: it cannot mark them, and it waits without end. So it talks to the relay, and the
//! relay talks to the server: with the mark, the device and the source of a way, with TLS of its own, with a deadline
//! and a limit that hold whatever libgit2 does. It has a thread of its own; the engine's loop moves no byte of a pack.
//!
//! Invariant: when the deadline has passed every socket of the fetch is closed, so libgit2 returns.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{
    error::{GitError, Reason},
    https::Https,
    resolve::Resolver,
    way::Way,
};

/// Most bytes that one fetch may bring.
pub(super) const MAX_FETCH: u64 = 256 << 20;
/// How long a connection to one address may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where to, by which way, and until when.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) way: Way,
    pub(super) resolver: Arc<Resolver>,
    pub(super) deadline: Instant,
    /// The time that was left when it began.
    pub(super) timeout: Duration,
}

/// What the relay has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    failure: Mutex<Option<GitError>>,
    received: AtomicU64,
    doing: Mutex<&'static str>,
}

impl Seen {
    /// Remembers a failure; the first one is the cause of the others.
    pub(super) fn fail(&self, error: GitError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// What went wrong first.
    pub(super) fn failure(&self) -> Option<GitError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what came; an error when it is too much.
    pub(super) fn count(&self, bytes: usize) -> Result<(), GitError> {
        let before = self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        if before + bytes as u64 <= MAX_FETCH {
            return Ok(());
        }
        let message = format!("the repository sends more than {} MiB", MAX_FETCH >> 20);
        let error = GitError::new(Reason::Limit, message, "keep the configuration in a repository of its own");
        self.fail(error.clone());
        Err(error)
    }

    pub(super) fn begin(&self, doing: &'static str) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = doing;
    }

    fn timeout(&self, route: &Route) -> GitError {
        let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let message = format!(
            "{}:{} was not done within {} s over {}; it was {doing}",
            route.host,
            route.port,
            route.timeout.as_secs_f32().ceil(),
            route.way.name()
        );
        GitError::new(Reason::Timeout, message, "it is tried again; a slow line needs a longer `timeout`")
    }
}

/// What the relay speaks.
pub(super) enum Protocol {
    /// Bytes, as they are: ssh protects itself.
    Plain,
    /// HTTP to libgit2, HTTPS to the server.
    Https(Https),
}

/// A relay that runs; dropping it closes everything.
pub(super) struct Relay {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Connects to the server, then waits for libgit2 on 127.0.0.1.
    pub(super) fn start(route: Route, protocol: Protocol) -> Result<Self, GitError> {
        let seen = Arc::new(Seen::default());
        let (ready_to, ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let watched = Arc::clone(&seen);
        // The sender goes into the thread: when it ends, the receiver knows.
        let thread = std::thread::Builder::new().name("git-relay".into()).spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let deadline = tokio::time::Instant::from_std(route.deadline);
                // The reason is written down before the first socket closes, because libgit2 returns at that.
                let late = async {
                    tokio::time::sleep_until(deadline).await;
                    watched.fail(watched.timeout(&route));
                };
                tokio::select! {
                    result = serve(&route, &protocol, &watched, ready_to) => {
                        result.unwrap_or_else(|error| watched.fail(error));
                    }
                    () = late => {}
                    _ = stopped => {}
                }
            });
            // A name that is being looked up keeps its thread for as long as the system's resolver likes.
            runtime.shutdown_background();
        });
        let thread = thread.map_err(|error| local(&error))?;
        // Without a sender left the thread has ended, and then it has said why.
        let Ok(address) = ready.recv() else {
            let _ = thread.join();
            return Err(seen.failure().unwrap_or_else(|| local(&io::Error::other("the thread ended"))));
        };
        Ok(Self { address, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// Where libgit2 finds it.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went wrong between us and the server.
    pub(super) fn failure(&self) -> Option<GitError> {
        self.seen.failure()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once: whatever it does is dropped.
            let _ = thread.join();
        }
    }
}

async fn serve(
    route: &Route,
    protocol: &Protocol,
    seen: &Arc<Seen>,
    ready: mpsc::Sender<SocketAddr>,
) -> Result<(), GitError> {
    let first = connect(route, seen).await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| local(&error))?;
    let address = listener.local_addr().map_err(|error| local(&error))?;
    match protocol {
        Protocol::Plain => {
            seen.begin("waiting for the first answer");
            let _ = ready.send(address);
            let (stream, _) = listener.accept().await.map_err(|error| local(&error))?;
            copy(stream, first, seen).await
        }
        Protocol::Https(https) => {
            let first = https.hello(route, first, seen).await?;
            let _ = ready.send(address);
            https.serve(listener, first, route, seen).await
        }
    }
}

/// A connection to the server.
pub(super) async fn connect(route: &Route, seen: &Seen) -> Result<TcpStream, GitError> {
    seen.begin("looking up the name");
    let addresses = route.resolver.resolve(&route.host, route.port).await?;
    seen.begin("connecting");
    let stream = route.way.connect(&addresses, CONNECT.min(route.timeout)).await.map_err(|error| {
        let at = format!("{}:{}", route.host, route.port);
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => Reason::Timeout,
            _ => Reason::Unreachable,
        };
        let message = format!("cannot connect to {at} over {}: {error}", route.way.name());
        GitError::new(reason, message, "it is tried again; check the address, the remote and the firewalls between")
    })?;
    // Small requests wait for nobody.
    let _ = stream.set_nodelay(true);
    route.resolver.worked(&addresses);
    Ok(stream)
}

/// Moves bytes in both directions until one side ends.
async fn copy(local: TcpStream, remote: TcpStream, seen: &Seen) -> Result<(), GitError> {
    let (mut from_git, mut to_git) = local.into_split();
    let (mut from_server, mut to_server) = remote.into_split();
    let up = async { tokio::io::copy(&mut from_git, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(length) => length,
            };
            seen.count(length)?;
            seen.begin("receiving");
            if to_git.write_all(&buffer[..length]).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        // libgit2 has what it wants, or the server has said all.
        result = down => result,
        _ = up => Ok(()),
    }
}

/// An error of this machine.
fn local(error: &io::Error) -> GitError {
    let message = format!("the relay to the repository cannot run on 127.0.0.1: {error}");
    GitError::new(Reason::Settings, message, "the loopback interface must be up: ip link set lo up")
}
