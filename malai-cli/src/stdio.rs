//! Standard streams as descriptors: unbuffered, and correct also when another process has made them non-blocking.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Holds a duplicate of one of the standard streams.
#[derive(Debug)]
pub(crate) struct Descriptor(File);

impl Descriptor {
    /// Duplicates `stream`.
    pub(crate) fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(File::from(stream.as_fd().try_clone_to_owned()?)))
    }

    /// Returns what reading does to other processes that have the same stream.
    pub(crate) fn nature(&self) -> Nature {
        // Where the system does not tell, assume the worst.
        let Ok(meta) = self.0.metadata() else { return Nature::Stream };
        if is_null(&meta) {
            return Nature::Null;
        }
        if !meta.is_file() && !meta.file_type().is_block_device() {
            return Nature::Stream;
        }
        (&self.0).stream_position().map_or(Nature::Stream, Nature::File)
    }

    /// Reads at a place of a file without moving its position, which all holders share.
    pub(crate) fn look(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buffer, at) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Moves the position of a file on to `end`, as reading up to there would have; one that is beyond it already stays.
    pub(crate) fn pass(&self, end: u64) -> io::Result<()> {
        let mut file = &self.0;
        if file.stream_position()? < end {
            file.seek(SeekFrom::Start(end))?;
        }
        Ok(())
    }

    /// Returns another descriptor of the same stream.
    pub(crate) fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Does `once` until it no longer says that it would block: `O_NONBLOCK` is shared with every process that has the file.
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

/// Says what reading does to other processes that share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// What is read is gone: a pipe, a terminal, a socket.
    Stream,
    /// It has a position, given here, and can be read without moving that.
    File(u64),
    /// It is the null device, which has nothing for any reader.
    Null,
}

fn is_null(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && std::fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == meta.rdev())
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

/// Waits, at most `within`, until a write to `stream` would not block. Tells whether it would not.
pub(crate) fn is_writable(stream: &impl AsFd, within: PollTimeout) -> bool {
    is_ready(stream.as_fd(), PollFlags::POLLOUT, within).unwrap_or(false)
}

/// Tells whether the reader of `stream` has left.
pub(crate) fn is_abandoned(stream: &impl AsFd) -> bool {
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    // A file that cannot be polled does not count as abandoned: writing to it will tell.
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
