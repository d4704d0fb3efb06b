//! A wire: delay, jitter, loss, rate and cut between two interfaces, changed while frames travel.
//!
//! One thread holds a TAP device at each end and moves frames between them. (`tc netem` is missing from many kernels of
//! test machines, and a lab whose link conditions silently do nothing proves nothing.)

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;

use super::netns::NetNs;

/// Loss is kept in parts of a million.
const MILLION: u64 = 1_000_000;
/// The largest Ethernet frame at an MTU of 1500 is 1518 bytes; twice that leaves room for tags.
const FRAME: usize = 3036;
/// Frames that one end may send before the other end has its turn.
const BATCH: usize = 64;
/// What waits for a slow wire at most, in time: more than this is dropped, as a router's full queue would.
const QUEUE: Duration = Duration::from_millis(200);
/// What is under way at most, in frames, so that a flood over a long wire cannot take all memory.
const IN_FLIGHT: usize = 100_000;

/// The conditions of a connection between a host (or router) and a segment; clones share them.
///
/// They hold for each direction: a wire of 25 ms makes a round trip of 50 ms.
#[derive(Debug, Clone)]
pub struct Wire {
    conditions: Arc<Conditions>,
}

#[derive(Debug)]
struct Conditions {
    delay_us: AtomicU64,
    jitter_us: AtomicU64,
    loss_ppm: AtomicU64,
    /// Bytes per second; 0 is no limit.
    rate: AtomicU64,
    cut: AtomicBool,
    seed: AtomicU64,
    carried: AtomicU64,
    dropped: AtomicU64,
}

impl Wire {
    /// A wire without delay or loss.
    #[must_use]
    pub fn plain() -> Self {
        Self::delay_ms(0)
    }

    /// A wire that takes this long in each direction.
    #[must_use]
    pub fn delay_ms(delay: u64) -> Self {
        Self {
            conditions: Arc::new(Conditions {
                delay_us: AtomicU64::new(delay * 1000),
                jitter_us: AtomicU64::new(0),
                loss_ppm: AtomicU64::new(0),
                rate: AtomicU64::new(0),
                cut: AtomicBool::new(false),
                seed: AtomicU64::new(1),
                carried: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
            }),
        }
    }

    /// The same wire with a share of frames lost, from 0.0 to 1.0.
    #[must_use]
    pub fn loss(self, share: f64) -> Self {
        self.set_loss(share);
        self
    }

    /// The same wire, slower by up to this much; frames stay in order.
    #[must_use]
    pub fn jitter_ms(self, jitter: u64) -> Self {
        self.conditions.jitter_us.store(jitter * 1000, Ordering::Relaxed);
        self
    }

    /// The same wire, carrying this many bytes a second in each direction.
    #[must_use]
    pub fn rate(self, bytes_per_second: u64) -> Self {
        self.set_rate(bytes_per_second);
        self
    }

    /// The same wire with another seed: which frames are lost depends on it alone.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.conditions.seed.store(seed, Ordering::Relaxed);
        self
    }

    /// Changes the delay of each direction, for frames that enter from now on.
    pub fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.conditions.delay_us.store(micros, Ordering::Relaxed);
    }

    /// Changes by how much a frame may come later, for frames that enter from now on.
    pub fn set_jitter(&self, jitter: Duration) {
        let micros = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX);
        self.conditions.jitter_us.store(micros, Ordering::Relaxed);
    }

    /// Changes the share of lost frames, from 0.0 to 1.0.
    pub fn set_loss(&self, share: f64) {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share between 0 and 1 becomes a whole number of at most a million"
        )]
        let ppm = (share.clamp(0.0, 1.0) * MILLION as f64) as u64;
        self.conditions.loss_ppm.store(ppm, Ordering::Relaxed);
    }

    /// Changes the rate in bytes per second; 0 is no limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.conditions.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Nothing gets through any more, what is under way neither; no end is told.
    pub fn cut(&self) {
        self.conditions.cut.store(true, Ordering::Relaxed);
    }

    /// Ends a [cut](Self::cut).
    pub fn mend(&self) {
        self.conditions.cut.store(false, Ordering::Relaxed);
    }

    /// Frames carried so far, both directions together.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.conditions.carried.load(Ordering::Relaxed)
    }

    /// Frames lost so far, whether by loss, by a cut or by a full queue.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.conditions.dropped.load(Ordering::Relaxed)
    }

    /// Lays this wire between two namespaces; each gets an interface, still down, of the given name.
    pub(crate) fn lay(&self, near: (&NetNs, &str), far: (&NetNs, &str)) -> Result<Strand> {
        let ends = [tap(near.0, near.1)?, tap(far.0, far.1)?];
        let stop = Arc::new(EventFd::new().context("cannot make an eventfd")?);
        let seed = self.conditions.seed.load(Ordering::Relaxed);
        let mut carrier = Carrier {
            ends,
            lanes: [Lane::new(seed), Lane::new(!seed)],
            conditions: Arc::clone(&self.conditions),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new()
            .name(format!("wire {}", far.1))
            .spawn(move || carrier.carry())
            .context("cannot start the thread of a wire")?;
        Ok(Strand { stop, thread: Some(thread) })
    }
}

/// A wire that lies: its thread, and with it both interfaces, go with this value.
#[derive(Debug)]
pub(crate) struct Strand {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Strand {
    fn drop(&mut self) {
        let told = self.stop.write(1);
        if let (Ok(_), Some(thread)) = (told, self.thread.take())
            && thread.join().is_err()
        {
            tracing::error!("the thread of a wire panicked");
        }
    }
}

struct Carrier {
    ends: [File; 2],
    /// `lanes[i]` holds what goes to `ends[i]`.
    lanes: [Lane; 2],
    conditions: Arc<Conditions>,
    stop: Arc<EventFd>,
}

impl Carrier {
    fn carry(&mut self) {
        loop {
            let now = Instant::now();
            for (lane, end) in self.lanes.iter_mut().zip(&mut self.ends) {
                lane.deliver(now, end, &self.conditions);
            }
            let due = self.lanes.iter().filter_map(Lane::due).min();
            let Some(readable) = self.wait(due) else {
                return;
            };
            let [near, far] = &mut self.ends;
            let [to_near, to_far] = &mut self.lanes;
            if readable[0] {
                to_far.accept(near, &self.conditions);
            }
            if readable[1] {
                to_near.accept(far, &self.conditions);
            }
        }
    }

    /// Which ends have frames; `None` when the wire is taken down.
    fn wait(&self, due: Option<Instant>) -> Option<[bool; 2]> {
        let timeout = due.map(|due| TimeSpec::from_duration(due.saturating_duration_since(Instant::now())));
        let mut fds = [
            PollFd::new(self.ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ends[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return None,
        }
        let events = |index: usize| fds[index].revents().unwrap_or(PollFlags::empty());
        // A device that is gone reports an error for ever.
        let gone = |index: usize| events(index).intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
        if !events(2).is_empty() || gone(0) || gone(1) {
            return None;
        }
        Some([events(0).contains(PollFlags::POLLIN), events(1).contains(PollFlags::POLLIN)])
    }
}

/// One direction of a wire.
struct Lane {
    under_way: VecDeque<(Instant, Vec<u8>)>,
    /// When the last frame arrives: none overtakes it.
    last_due: Instant,
    /// When the wire has put its last frame out, at its rate.
    free_at: Instant,
    random: u64,
}

impl Lane {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self { under_way: VecDeque::new(), last_due: now, free_at: now, random: seed }
    }

    fn due(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _)| *due)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to lose frames by.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    fn accept(&mut self, from: &mut File, conditions: &Conditions) {
        let mut frame = [0; FRAME];
        for _ in 0..BATCH {
            let Ok(length) = from.read(&mut frame) else {
                return;
            };
            let bytes = frame.get(..length).unwrap_or_default();
            let counter = match self.admit(length, conditions) {
                Some(due) => {
                    self.under_way.push_back((due, bytes.to_vec()));
                    &conditions.carried
                }
                None => &conditions.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// When a frame of this length that enters now arrives; `None` when it never does.
    fn admit(&mut self, length: usize, conditions: &Conditions) -> Option<Instant> {
        let lost = self.draw(MILLION) < conditions.loss_ppm.load(Ordering::Relaxed);
        if lost || conditions.cut.load(Ordering::Relaxed) || self.under_way.len() >= IN_FLIGHT {
            return None;
        }
        let now = Instant::now();
        let rate = conditions.rate.load(Ordering::Relaxed);
        let mut leaves = now;
        // 0 is no limit.
        let transmission = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(MILLION).checked_div(rate);
        if let Some(micros) = transmission {
            if self.free_at.saturating_duration_since(now) > QUEUE {
                return None;
            }
            leaves = self.free_at.max(now) + Duration::from_micros(micros);
            self.free_at = leaves;
        }
        let jitter = self.draw(conditions.jitter_us.load(Ordering::Relaxed));
        let delay = conditions.delay_us.load(Ordering::Relaxed) + jitter;
        self.last_due = self.last_due.max(leaves + Duration::from_micros(delay));
        Some(self.last_due)
    }

    fn deliver(&mut self, now: Instant, to: &mut File, conditions: &Conditions) {
        while self.due().is_some_and(|due| due <= now) {
            let Some((_, frame)) = self.under_way.pop_front() else {
                return;
            };
            // An interface that is down, or whose queue is full, loses the frame as hardware would.
            let lost = conditions.cut.load(Ordering::Relaxed)
                || to.write(&frame).is_err_and(|error| error.kind() != ErrorKind::Interrupted);
            if lost {
                conditions.carried.fetch_sub(1, Ordering::Relaxed);
                conditions.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Makes a TAP device of this name in the namespace; it exists as long as the file is open.
fn tap(namespace: &NetNs, name: &str) -> Result<File> {
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long for an interface name");
    namespace.enter(|| {
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("cannot open /dev/net/tun")?;
        attach(&device, name).with_context(|| format!("cannot make the TAP device {name}"))?;
        Ok(device)
    })
}

fn attach(device: &File, name: &str) -> std::io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    #[allow(clippy::cast_possible_truncation, reason = "the interface flags are 16 bits wide")]
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    #[allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper; it reads one ifreq, which outlives the call")]
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if made < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
