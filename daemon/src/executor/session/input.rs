//! Standard input: taken at once against credit, written when the command reads.

use std::future::pending;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::net::unix::pipe;

use malai_protocol::session::{Attached, STDIN_CREDIT, StdinAck};

/// Credit is told again after so many bytes, or when nothing waits.
const ACK_EVERY: u64 = STDIN_CREDIT / 4;

/// One command's standard input.
#[derive(Debug)]
pub(crate) struct Input {
    pipe: Option<pipe::Sender>,
    buffer: BytesMut,
    received: u64,
    taken: u64,
    told: u64,
    ended: bool,
    /// The command closed it, which the caller was not told yet.
    closed: bool,
}

impl Input {
    /// `None` when the command has /dev/null.
    pub(crate) fn new(pipe: Option<pipe::Sender>) -> Self {
        let ended = pipe.is_none();
        Self { pipe, buffer: BytesMut::new(), received: 0, taken: 0, told: 0, ended, closed: false }
    }

    /// Takes bytes from the caller. False when it may not send them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let received = self.received + bytes.len() as u64;
        if self.ended || received > self.taken + STDIN_CREDIT {
            return false;
        }
        self.received = received;
        if self.pipe.is_some() {
            self.buffer.extend_from_slice(bytes);
            self.pump();
        }
        true
    }

    /// The caller has no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.pump();
    }

    /// Waits until the command takes something, or has closed its end.
    pub(crate) async fn ready(&self) {
        let result = match &self.pipe {
            Some(pipe) if !self.buffer.is_empty() => pipe.writable().await,
            #[cfg(target_os = "linux")]
            Some(pipe) => pipe.ready(tokio::io::Interest::ERROR).await.map(drop),
            _ => return pending().await,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "standard input");
        }
    }

    /// After [`Input::ready`].
    pub(crate) fn pump(&mut self) {
        let Some(pipe) = &self.pipe else {
            return;
        };
        if self.buffer.is_empty() && has_no_reader(pipe) {
            return self.close();
        }
        while !self.buffer.is_empty() {
            match pipe.try_write(&self.buffer) {
                Ok(wrote) => {
                    self.buffer.advance(wrote);
                    self.taken += wrote as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(),
            }
        }
        self.buffer = BytesMut::new();
        if self.ended {
            self.pipe = None;
        }
    }

    fn close(&mut self) {
        self.pipe = None;
        self.buffer = BytesMut::new();
        self.closed = !self.ended;
    }

    /// What the caller has to be told of credit, if it is time.
    pub(crate) fn ack(&mut self) -> Option<StdinAck> {
        let due = self.taken - self.told >= ACK_EVERY || (self.taken > self.told && self.buffer.is_empty());
        if !due || self.ended {
            return None;
        }
        self.told = self.taken;
        Some(StdinAck { offset: self.taken, credit: self.taken + STDIN_CREDIT })
    }

    /// What an attachment is told of it; then nothing else is due.
    pub(crate) fn tell(&mut self, attached: Attached) -> Attached {
        (self.told, self.closed) = (self.taken, false);
        let (stdin_offset, credit) = (self.received, self.taken + STDIN_CREDIT);
        Attached { stdin_offset, credit, stdin_closed: self.ended || self.pipe.is_none(), ..attached }
    }

    /// Whether the caller has to be told that nobody reads; once.
    pub(crate) fn was_closed(&mut self) -> bool {
        std::mem::take(&mut self.closed)
    }
}

/// Whether the pipe's other end is closed by all who held it.
fn has_no_reader(pipe: &pipe::Sender) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
