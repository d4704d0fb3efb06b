//! Linux: proc(5), pidfd_open(2), inotify(7), fallocate(2), prctl(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate, posix_fallocate};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Names a process so that no later one has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    id: i32,
    /// Is when it started, as the system counts; absent where that cannot be read.
    started: Option<u64>,
}

impl Process {
    /// Names the process that has this id now.
    pub(crate) fn with(id: i32) -> Self {
        Self { id, started: started(id) }
    }

    /// Returns when it has ended.
    ///
    /// # Errors
    /// When the system does not watch it.
    pub(crate) async fn ended(self) -> io::Result<()> {
        match handle(self.id) {
            // The handle was opened late: it may be that of a later process with the same id.
            Ok(_) if self.is_over() => Ok(()),
            Ok(handle) => wait(handle).await,
            Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether another process has its id by now.
    fn is_over(self) -> bool {
        self.started.is_some() && started(self.id) != self.started
    }
}

/// Returns when the process with this id started, in clock ticks since the system did: proc_pid_stat(5), field 22.
fn started(id: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{id}/stat")).ok()?;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end..)?).ok()?;
    rest.split(' ').nth(20)?.parse().ok()
}

/// Returns a descriptor that becomes readable when the process ends.
#[allow(unsafe_code, reason = "nix has no pidfd_open")]
fn handle(process: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers, and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: it is new, and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[allow(unsafe_code, reason = "tokio asks that the descriptor is its own")]
async fn wait(handle: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is owned by what is handed over, and closed with it.
    let fd = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
    fd.readable().await.map(drop)
}

/// Hides the memory of this process from other processes of its user. Programs that it starts are not affected.
pub(crate) fn hide_memory() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "other processes of this user can read this one's memory, and a crash may leave a core");
    }
}

/// Returns the file of the program that runs, also when another one has its name by now.
pub(crate) fn own_program() -> Option<PathBuf> {
    Some("/proc/self/exe".into())
}

/// Allocates blocks beyond the end of a file, whose length stays.
pub(crate) fn allocate_beyond_end(file: &File, at: u64, length: u64) -> io::Result<()> {
    let [at, length] = [at, length].map(|number| i64::try_from(number).map_err(io::Error::other));
    Ok(fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at?, length?)?)
}

/// Makes a file this long, with all its blocks.
pub(crate) fn allocate_blocks(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(io::Error::other)?;
    Ok(posix_fallocate(file, 0, length)?)
}

/// Is a descriptor that becomes readable when entries of a directory go or move, or the directory does.
#[derive(Debug)]
pub(crate) struct DirectoryChanges(Inotify);

impl AsRawFd for DirectoryChanges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl DirectoryChanges {
    /// Watches this directory.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let entries = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(directory, entries | itself | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self(inotify))
    }

    /// Takes what has changed.
    pub(crate) fn read(&self) -> io::Result<()> {
        Ok(self.0.read_events().map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::process::Command;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_process_whose_id_another_one_has_by_now_has_ended() {
        let child = Command::new("sleep").arg("600").kill_on_drop(true).spawn().expect("sleep");
        let this = Process::with(child.id().and_then(|id| i32::try_from(id).ok()).expect("an id"));
        let earlier = Process { started: this.started.map(|ticks| ticks - 1), ..this };
        assert!(!this.is_over() && earlier.is_over());
        timeout(Duration::from_secs(20), earlier.ended()).await.expect("in time").expect("it ended");
    }
}
