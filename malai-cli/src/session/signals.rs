//! The signals that go to the command instead of to the CLI.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// The forwarded signals, by the numbers that they have on Linux and on macOS alike.
pub(crate) const HUP: u8 = 1;
pub(crate) const INT: u8 = 2;
pub(crate) const QUIT: u8 = 3;
pub(crate) const TERM: u8 = 15;

/// The numbers of HUP, INT, QUIT and TERM as they arrive; never ends.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(u8, Signal)>);

impl Signals {
    /// Takes the signals over from here on, except those that are ignored: `nohup` and a shell's `&` mean it.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        let numbers = [HUP, INT, QUIT, TERM].into_iter().filter(|number| !is_ignored(*number));
        let listen = |number: u8| Ok((number, signal(SignalKind::from_raw(number.into()))?));
        Ok(Self(numbers.map(listen).collect::<io::Result<_>>()?))
    }
}

impl Stream for Signals {
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

/// Notes which signals came lately, so that one that is sent twice counts once. `timeout` sends its own to its child
/// and then to the group that both are in; when a terminal closes, kernel and shell both send HUP.
#[derive(Debug)]
pub(super) struct Heard {
    same_within: Duration,
    /// When each of the four kinds last counted.
    last: Vec<(u8, Instant)>,
}

impl Heard {
    /// Takes signals of one kind that follow each other within this time for one.
    pub(super) fn new(same_within: Duration) -> Self {
        Self { same_within, last: Vec::new() }
    }

    /// Tells whether this signal counts. One that does not count changes nothing, so a key that is held down counts
    /// again and again.
    pub(super) fn is_new(&mut self, number: u8) -> bool {
        let now = Instant::now();
        match self.last.iter_mut().find(|(known, _)| *known == number) {
            Some((_, last)) if now.duration_since(*last) < self.same_within => false,
            Some((_, last)) => {
                *last = now;
                true
            }
            None => {
                self.last.push((number, now));
                true
            }
        }
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
