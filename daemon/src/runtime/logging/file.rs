//! Writes a log file, and rotates it by its size meanwhile.
//!
//! Daemon, executor and agent of a home write the same file, so that a person reads one (docs/decisions/0021). A
//! process locks the file before it writes, and checks that the name still stands for the file that it has open. It
//! stops writing a file that another process has rotated, or that somebody has removed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use malai_protocol::home::Home;

use super::{Torn, write_all};

/// Bounds one file. With the older ones this is 32 MiB: some days of a busy machine, and little for a disk.
const LOG_FILE_MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Bounds how many older files are kept beside the one that is written.
const LOG_OLDER_MAX_FILES: u32 = 3;
/// Bounds the attempts to open a file whose name others take away at the same time.
const LOG_OPEN_MAX_ATTEMPTS: u32 = 16;

/// Holds the file, which is opened when something is written.
#[derive(Debug)]
pub(super) struct LogFile {
    home: Home,
    file: Option<File>,
    /// Is its length, known while it is locked.
    bytes: u64,
    max_bytes: u64,
}

impl LogFile {
    /// Returns the log of this home, which is opened by the first line.
    pub(super) fn closed(home: Home) -> Self {
        Self { home, file: None, bytes: 0, max_bytes: LOG_FILE_MAX_BYTES }
    }

    /// Opens the file, where that was not done yet.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(&self.home.log())?);
        }
        Ok(())
    }

    /// Returns the log with another bound for one file.
    #[cfg(test)]
    pub(super) fn with_max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// Closes the file: the next line opens the one that has the name then.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// Locks the file that has the name now, opening it if need be.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn lock(&mut self) -> io::Result<()> {
        for _ in 0..LOG_OPEN_MAX_ATTEMPTS {
            self.open()?;
            let Some(file) = self.file.take() else { break };
            // A file system without locks has one writer, or two that may tear a file at a rotation.
            drop(file.lock());
            let ours = file.metadata()?;
            let named = std::fs::metadata(self.home.log());
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                self.bytes = ours.len();
                self.file = Some(file);
                return Ok(());
            }
            drop(file.unlock());
        }
        Err(io::Error::other(format!("{} is removed again and again", self.home.log().display())))
    }

    /// Lets others write. Closing is not enough: a child that is being spawned just now has a copy.
    pub(super) fn unlock(&self) {
        // It fails where there are no locks.
        self.file.iter().for_each(|file| drop(file.unlock()));
    }

    /// Writes a line into the file, which is locked.
    ///
    /// # Errors
    /// When it was not written whole.
    pub(super) fn write(&mut self, line: &[u8]) -> Result<(), Torn> {
        let more = line.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(more) > self.max_bytes {
            self.rotate_or_go_on(more)?;
        }
        let file = self.file.as_mut().ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        let written = write_all(file, line);
        self.bytes += written.as_ref().map_or_else(|torn| torn.written as u64, |()| more);
        written
    }

    /// Rotates. When that is not possible the file goes on growing, to twice its bound.
    fn rotate_or_go_on(&mut self, more: u64) -> io::Result<()> {
        let is_regular = self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
        if !is_regular {
            return Ok(());
        }
        match self.shift() {
            Ok(()) => {
                self.unlock();
                self.file = None;
                self.lock()
            }
            Err(_) if self.bytes.saturating_add(more) <= self.max_bytes.saturating_mul(2) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives every file the next older name; the oldest is lost.
    fn shift(&self) -> io::Result<()> {
        for number in (1..LOG_OLDER_MAX_FILES).rev() {
            match std::fs::rename(self.home.log_part(number), self.home.log_part(number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(self.home.log(), self.home.log_part(1))
    }
}

/// Opens the file to be written at its end. Opening something that is no plain file, such as a FIFO, does not block.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}
