//! Which process holds a lock, as far as its file, its socket and the system say.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use super::releases::Releases;
use super::{AGENT, Changes};
use crate::store::greeting::greet;
use crate::store::{self, disk_failure};

/// Bounds the file of a lock, which has a pid and a word.
const MAX_LOCK_FILE_BYTES: usize = 64;

/// Says which process holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Is its process id; absent when it has not written it yet, and then nothing else is known of it either.
    pub pid: Option<u32>,
    /// Says whether it is an agent.
    pub agent: bool,
    /// Says whether it answers at its socket.
    pub answers: bool,
}

impl Holder {
    /// Describes the holder, for a message.
    #[must_use]
    pub fn name(&self) -> String {
        let what = if self.agent { "an agent" } else { "a daemon" };
        let pid = self.pid.map_or_else(|| "whose pid is not known".to_owned(), |pid| format!("pid {pid}"));
        format!("{what}, {pid},")
    }

    /// Returns the failure for a holder that is not reached.
    #[must_use]
    pub fn unreachable(&self, home: &Home) -> Failure {
        let text = format!("{} runs on this machine, but does not answer at {}", self.name(), home.socket().display());
        Failure::new(Kind::Internal, text).hint(
            "one that starts or stops is not reached for a moment, and one whose socket was removed binds it again; \
             if it stays so: malai daemon stop",
        )
    }

    pub(super) fn conflict(&self, home: &Home) -> Failure {
        let what = if self.agent { "an agent" } else { "a daemon" };
        let pid = self.pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"));
        let shown = home.root().display();
        if self.answers {
            Failure::new(Kind::Conflict, format!("{what} runs already for {shown}: {pid}"))
                .hint("malai daemon status shows it; malai daemon stop ends it")
        } else {
            Failure::new(Kind::Conflict, format!("{what} for {shown} has the lock but does not answer: {pid}"))
                .hint("it may be starting or stopping, try again; if it stays so: malai daemon stop")
        }
    }
}

/// Returns which process holds the lock of this home, as far as the lock's file says; `None` when it is free. Blocks.
///
/// # Errors
/// What the disk says.
pub fn find_holder(home: &Home) -> Result<Option<Holder>, Failure> {
    let path = home.lock();
    if !path.exists() {
        return Ok(None);
    }
    // A look takes the lock for a moment, and a daemon that starts in that moment would be refused. Where nothing can be
    // written none starts.
    let _changes = Changes::begin(home).ok();
    let is_held = is_locked(&path).map_err(|e| disk_failure("look at", &path, &e))?;
    Ok(is_held.then(|| written_holder(home)))
}

/// Waits until this holder lets the lock of the home go, or until `within` is over, and returns who holds it then. Blocks.
///
/// # Errors
/// What the disk says.
pub fn wait_for_release(home: &Home, holder: &Holder, within: Duration) -> Result<Option<Holder>, Failure> {
    let releases = Releases::watch(&home.lock());
    let deadline = Instant::now() + within;
    loop {
        let now = find_holder(home)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if now.as_ref().is_none_or(|now| now.pid != holder.pid) || left.is_zero() {
            return Ok(now);
        }
        releases.wait(left);
    }
}

/// Says whether some process holds the lock of this file. Takes it for a moment.
///
/// # Errors
/// What the disk says.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Says whether the system itself knows that this process has the lock of this home open. A process that only looks at
/// a lock has it open for a moment, and writes no pid into it.
pub(crate) fn is_held_by(home: &Home, pid: i32) -> bool {
    let Ok(lock) = std::fs::metadata(home.lock()) else { return false };
    // A daemon hides its memory, and with it what it has open, from its own user's other processes too.
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return is_listed(pid, lock.ino()) };
    open.flatten()
        .any(|fd| std::fs::metadata(fd.path()).is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino())))
}

/// Says whether the list of all locks, which every user may read, has this process as the holder of the lock of a file with
/// this inode. The device is not compared: on some file systems the list has another number for it than the file.
pub(super) fn is_listed(pid: i32, inode: u64) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| is_of(line, pid, inode))
}

/// Reads a line `NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`; that of a process that waits has `->` before
/// its kind.
pub(super) fn is_of(line: &str, pid: i32, inode: u64) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let kind = [words.next(), words.next(), words.next()];
    let holder = words.next().and_then(|word| word.parse().ok());
    let file = words.next().and_then(|word| word.rsplit(':').next()?.parse().ok());
    kind == [Some("FLOCK"), Some("ADVISORY"), Some("WRITE")] && (holder, file) == (Some(pid), Some(inode))
}

/// Asks the holder of the lock who it is. What it answers is newer than what the file says, which a crash may have left.
pub(super) fn holder(home: &Home) -> Holder {
    match greet(&home.socket()) {
        Ok((_, hello)) => Holder { pid: Some(hello.pid), agent: hello.agent, answers: true },
        Err(_) => written_holder(home),
    }
}

/// Returns what the file says of the holder, without asking it.
pub(super) fn written_holder(home: &Home) -> Holder {
    let text = store::read_text(&home.lock(), MAX_LOCK_FILE_BYTES).ok().flatten().unwrap_or_default();
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok());
    let agent = lines.next() == Some(AGENT);
    Holder { pid, agent, answers: false }
}
