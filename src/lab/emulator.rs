//! A link with delay, between two TUN devices that a thread for each direction copies between.
//!
//! Packets keep their order, so the queue is a plain one: none leaves before the one ahead of it.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{Error, netns};

/// How often an idle thread looks whether it should end.
const IDLE: Duration = Duration::from_millis(50);
/// Largest packet; the devices have an MTU of 1,500 bytes.
const PACKET: usize = 2048;
/// Packets that a device holds while its thread does not run.
const QUEUE: u32 = 20_000;

/// Delay of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape {
    delay: u64,
    spread: u64,
}

impl Shape {
    pub(super) fn new(delay: Duration, spread: Duration) -> Self {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self { delay: ns(delay), spread: ns(spread.min(delay)) }
    }
}

#[derive(Debug, Default)]
struct Control {
    delay: AtomicU64,
    spread: AtomicU64,
    stop: AtomicBool,
}

/// A running emulator; dropped, its threads end and its devices vanish.
#[derive(Debug)]
pub(super) struct Emulator {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
}

impl Emulator {
    /// Makes a device at the provider and one at the internet (namespace and name each), without delay.
    pub(super) fn start(near: &(String, String), far: &(String, String)) -> Result<Self, Error> {
        let (near, far) = (Arc::new(device(near)?), Arc::new(device(far)?));
        let control = Arc::new(Control::default());
        let mut emulator = Self { control: Arc::clone(&control), threads: Vec::new() };
        for (from, to, delayed) in [(Arc::clone(&near), Arc::clone(&far), true), (far, near, false)] {
            let control = Arc::clone(&control);
            emulator.threads.push(thread::spawn(move || Pump::new(control, delayed).run(&from, &to)));
        }
        Ok(emulator)
    }

    /// Changes the delay towards the internet from now on; nothing under way is lost.
    pub(super) fn set(&self, shape: Shape) {
        self.control.spread.store(shape.spread, Ordering::Relaxed);
        self.control.delay.store(shape.delay, Ordering::Relaxed);
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

fn device((ns, name): &(String, String)) -> Result<SyncDevice, Error> {
    let build = || -> io::Result<SyncDevice> {
        let builder = DeviceBuilder::new().name(name).layer(Layer::L3).mtu(1500).tx_queue_len(QUEUE);
        let device = builder.build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    let failed = |source| Error::Emulator { ns: ns.clone(), device: name.clone(), source };
    netns::within(ns, build)?.map_err(failed)
}

/// One direction.
struct Pump {
    control: Arc<Control>,
    delayed: bool,
    queue: VecDeque<(Instant, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    last: Instant,
    random: u64,
}

impl Pump {
    fn new(control: Arc<Control>, delayed: bool) -> Self {
        let (queue, spare) = (VecDeque::new(), Vec::new());
        Self { control, delayed, queue, spare, last: Instant::now(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn run(mut self, from: &SyncDevice, to: &SyncDevice) {
        // The default of 50 us would be added to every delay.
        let _ = nix::sys::prctl::set_timerslack(1);
        while !self.control.stop.load(Ordering::Relaxed) {
            self.release(to);
            if !self.accept(from) {
                self.wait(from);
            }
        }
    }

    fn release(&mut self, to: &SyncDevice) {
        while self.queue.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let Some((_, packet)) = self.queue.pop_front() else { return };
            // The device is down only while the lab is being removed.
            let _ = to.send(&packet);
            self.spare.push(packet);
        }
    }

    /// Takes some packets in; whether there were any.
    fn accept(&mut self, from: &SyncDevice) -> bool {
        for taken in 0..32 {
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(PACKET, 0);
            let Ok(length) = from.recv(&mut buffer) else {
                self.spare.push(buffer);
                return taken > 0;
            };
            buffer.truncate(length);
            let due = (Instant::now() + self.delay()).max(self.last);
            self.last = due;
            self.queue.push_back((due, buffer));
        }
        true
    }

    fn delay(&mut self) -> Duration {
        if !self.delayed {
            return Duration::ZERO;
        }
        let (delay, spread) = (self.control.delay.load(Ordering::Relaxed), self.control.spread.load(Ordering::Relaxed));
        if spread == 0 {
            return Duration::from_nanos(delay);
        }
        // xorshift64 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_nanos(delay.saturating_sub(spread) + self.random % (2 * spread + 1))
    }

    fn wait(&self, from: &SyncDevice) {
        let due = self.queue.front().map_or(IDLE, |(due, _)| due.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        // Interrupted or timed out, the loop looks again.
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(due.min(IDLE))), None);
    }
}
