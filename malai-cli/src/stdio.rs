//! Standard streams as descriptors: unbuffered, and right too where somebody else has set them non-blocking.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A duplicate of one of the standard streams.
#[derive(Debug)]
pub(crate) struct Descriptor(File);

impl Descriptor {
    /// A duplicate of `stream`.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(File::from(stream.as_fd().try_clone_to_owned()?)))
    }

    /// Does `once` until it no longer says that it would block; `O_NONBLOCK` is shared with whoever else has the file.
    fn wait<T>(&mut self, flags: PollFlags, mut once: impl FnMut(&mut File) -> io::Result<T>) -> io::Result<T> {
        loop {
            match once(&mut self.0) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => is_ready(self.0.as_fd(), flags, PollTimeout::NONE)?,
                Err(e) if e.kind() == ErrorKind::Interrupted => false,
                done => return done,
            };
        }
    }
}

impl Read for Descriptor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::POLLIN, |file| file.read(buffer))
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::POLLOUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write to `stream` would not block, waiting for it at most `within`.
pub(crate) fn is_writable(stream: &impl AsFd, within: PollTimeout) -> bool {
    is_ready(stream.as_fd(), PollFlags::POLLOUT, within).unwrap_or(false)
}

/// Whether whoever read `stream` has left.
pub(crate) fn is_abandoned(stream: &impl AsFd) -> bool {
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    // A file that cannot be asked is not taken for abandoned: writing to it tells.
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && asked.iter().any(|one| one.revents().is_some_and(|events| events.intersects(gone)))
}

fn is_ready(stream: BorrowedFd<'_>, flags: PollFlags, within: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(stream, flags)], within) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
