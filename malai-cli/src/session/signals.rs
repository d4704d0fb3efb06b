//! The signals that go to the command instead of to the CLI.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

#[allow(unsafe_code, reason = "no safe interface asks for a signal's disposition")]
fn is_ignored(number: u8) -> bool {
    // SAFETY: sigaction is plain data for which all zeros are valid; without a new action the call only writes to it.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number.into(), std::ptr::null(), &raw mut current) == 0 && current.sa_sigaction == libc::SIG_IGN
    }
}
