//! The signals that go to the command instead of to the CLI.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::Signal as SignalFrame;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

// The numbers are the same on Linux and on macOS.
pub(super) const HUP: u8 = 1;
pub(super) const INT: u8 = 2;
pub(super) const QUIT: u8 = 3;
pub(super) const TERM: u8 = 15;
/// Bounds how many signals are kept for a command that is not followed now, or may not have had them.
const MAX_PENDING_SIGNALS: usize = 16;

/// Yields the numbers of HUP, INT, QUIT and TERM as they arrive; never ends.
#[derive(Debug)]
pub(crate) struct SignalStream(Vec<(u8, Signal)>);

impl SignalStream {
    /// Receives the signals from here on, except those that are ignored: `nohup` and a shell's `&` mean it.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let numbers = [HUP, INT, QUIT, TERM].into_iter().filter(|number| !is_ignored(*number));
        let listen = |number: u8| Ok((number, signal(SignalKind::from_raw(number.into()))?));
        let failure = |e| Failure::new(Kind::Internal, format!("signals cannot be received: {e}"));
        numbers.map(listen).collect::<io::Result<_>>().map(Self).map_err(failure)
    }
}

impl Stream for SignalStream {
    type Item = u8;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u8>> {
        for (number, signal) in &mut self.0 {
            if let Poll::Ready(Some(())) = signal.poll_recv(cx) {
                return Poll::Ready(Some(*number));
            }
        }
        Poll::Pending
    }
}

/// Holds the signals for a command: where they come from, and the last ones until the session ends.
#[derive(Debug)]
pub(super) struct SignalQueue<G> {
    numbers: G,
    /// The time within which two signals of one kind count as one. `timeout` sends its own to its child and then to the
    /// group that both are in; when a terminal closes, kernel and shell both send HUP.
    same_within: Duration,
    /// The time within which a second INT is one too many.
    second_int_within: Duration,
    /// When each of the four kinds last counted.
    last: HashMap<u8, Instant>,
    last_int: Option<Instant>,
    /// The last signals for the command. All are sent again after a loss.
    pending: VecDeque<SignalFrame>,
    /// How many signals there were for the command.
    count: u32,
}

impl<G: Stream<Item = u8> + Unpin> SignalQueue<G> {
    pub(super) fn new(numbers: G, same_within: Duration, second_int_within: Duration) -> Self {
        let (last, pending) = (HashMap::new(), VecDeque::new());
        Self { numbers, same_within, second_int_within, last, last_int: None, pending, count: 0 }
    }

    /// Returns the next signal; `None` when there will be no more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<u8> {
        self.numbers.next().await
    }

    /// Tells whether this signal counts. One that does not count changes nothing, so a key that is held down counts
    /// again and again.
    pub(super) fn is_new(&mut self, number: u8) -> bool {
        let now = Instant::now();
        if self.last.get(&number).is_some_and(|last| now.duration_since(*last) < self.same_within) {
            return false;
        }
        self.last.insert(number, now);
        true
    }

    /// Notes an INT, and tells whether one came shortly before it.
    pub(super) fn is_second_int(&mut self) -> bool {
        let now = Instant::now();
        self.last_int.replace(now).is_some_and(|last| now.duration_since(last) <= self.second_int_within)
    }

    /// Keeps a signal for the command, and returns it as it is sent.
    pub(super) fn keep(&mut self, number: u8) -> SignalFrame {
        self.count = self.count.saturating_add(1);
        let signal = SignalFrame { number, order: self.count };
        if self.pending.len() >= MAX_PENDING_SIGNALS {
            self.pending.pop_front();
        }
        self.pending.push_back(signal);
        signal
    }

    /// Returns the signals that a target gets again when it follows again: it may not have had them.
    pub(super) fn pending(&self) -> impl Iterator<Item = SignalFrame> + '_ {
        self.pending.iter().copied()
    }
}

#[allow(unsafe_code, reason = "no safe interface asks for a signal's disposition")]
fn is_ignored(number: u8) -> bool {
    // SAFETY: sigaction is plain data for which all zeros are valid; without a new action the call only writes to it.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number.into(), std::ptr::null(), &raw mut current) == 0 && current.sa_sigaction == libc::SIG_IGN
    }
}
