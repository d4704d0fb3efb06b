//! The two locks that say which process may change what. Both end with their process, however that ends:
//!
//! * [`Lock`] on `malai.lock`: held by one daemon or agent for its life. The file says who it is.
//! * [`Changes`] on `changes.lock`: held for the moment in which files of clusters are changed. An agent does not stop the
//!   commands that change clusters, so the first lock alone does not keep two of them apart.
//!
//! The first lock is only taken, and only looked at, under the second: so a command that found no daemon knows that one
//! which starts meanwhile reads the files after the change.

mod changes;
mod holder;
mod releases;
mod takeover;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use parking_lot::Mutex;

use super::disk_failure;
use super::greeting::greet;

use holder::{holder, written_holder};

pub use changes::Changes;
pub use holder::{Holder, find_holder, wait_for_release};
pub(crate) use holder::{is_held_by, is_locked};
pub(crate) use takeover::take_over;

/// Stands in the file of a lock that an agent holds.
const AGENT: &str = "agent";

/// Says what takes the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Stands for a daemon.
    Daemon,
    /// Stands for an agent, which leaves when a daemon asks.
    Agent,
}

/// Is the lock of a home, until it is dropped. Close-on-exec: no child inherits it.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lock {
    home: Home,
    part: Part,
    /// Is the file that is locked; another one when its name was taken away meanwhile.
    file: Mutex<File>,
}

/// Says what came of an attempt to take the lock.
#[derive(Debug)]
pub enum Attempt {
    /// This process has the lock.
    Taken(Lock),
    /// Another process has it.
    Held(Holder),
}

impl Lock {
    /// Takes the lock, or fails with the name of its holder.
    ///
    /// # Errors
    /// [`malai_protocol::failure::Kind::Conflict`] when it is held, else what the disk says.
    pub fn take(home: &Home, part: Part) -> Result<Self, Failure> {
        match Self::try_take(home, part)? {
            Attempt::Taken(lock) => Ok(lock),
            Attempt::Held(holder) => Err(holder.conflict(home)),
        }
    }

    /// Takes the lock, or says which process holds it. The one that takes it clears what a crash left behind.
    ///
    /// # Errors
    /// What the disk says.
    pub fn try_take(home: &Home, part: Part) -> Result<Attempt, Failure> {
        let changes = Changes::begin(home)?;
        let path = home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        let is_ours = try_lock(&file).map_err(fail)?;
        // No process is asked under the other lock: a daemon that stops may need it to finish.
        drop(changes);
        if !is_ours {
            return Ok(Attempt::Held(holder(home)));
        }
        // The file of one that still serves may have been removed: the lock of another file is no right to its home.
        if let Ok((_, hello)) = greet(&home.socket()) {
            release(&file);
            return Ok(Attempt::Held(Holder { pid: Some(hello.pid), agent: hello.agent, answers: true }));
        }
        let _changes = Changes::begin(home)?;
        part.say(&file).map_err(fail)?;
        super::sweep_home(home);
        Ok(Attempt::Taken(Self { home: home.clone(), part, file: Mutex::new(file) }))
    }

    /// Makes the lock's file again, and locks it, when the file was removed. Returns the process that was faster; `None`
    /// when the home is still the holder's. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn confirm(&self) -> Result<Option<Holder>, Failure> {
        let path = self.home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let mut file = self.file.lock();
        // A home that was removed as a whole is not made again.
        if is_named(&file, &path).map_err(fail)? || !self.home.root().exists() {
            return Ok(None);
        }
        let _changes = Changes::begin(&self.home)?;
        let named = open(&path).map_err(fail)?;
        if !try_lock(&named).map_err(fail)? {
            return Ok(Some(written_holder(&self.home)));
        }
        tracing::warn!(path = %path.display(), "the lock was taken away: it is taken again");
        *file = named;
        self.part.say(&file).map_err(fail)?;
        Ok(None)
    }
}

/// Says whether this file has this name.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Part {
    /// Writes into the lock who holds it.
    fn say(self, file: &File) -> io::Result<()> {
        let word = if self == Self::Agent { AGENT } else { "" };
        match say(file, &format!("{}\n{word}", std::process::id())) {
            // The lock is what counts. A machine with a full disk must still be reached.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                tracing::warn!(%error, "the lock does not say who holds it");
                Ok(())
            }
            said => said,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file keeps its words: a process that found the lock held a moment before this must not take an agent for a
        // daemon.
        release(&self.file.lock());
    }
}

/// Writes who holds the lock over what is there, so that a full disk has room for it. No other word stays when it does not.
fn say(file: &File, text: &str) -> io::Result<()> {
    let said = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    if said.is_err()
        && let Err(error) = file.set_len(0)
    {
        tracing::debug!(%error, "the lock says who held it before");
    }
    said
}

/// Closing is not enough: a child that is being spawned just now has a copy until it executes its program.
fn release(file: &File) {
    if let Err(error) = file.unlock() {
        tracing::warn!(%error, "cannot release a lock before its file is closed");
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(super::FILE_MODE).open(path)
}
