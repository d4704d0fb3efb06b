//! Any Unix: what POSIX has, and an error where it has nothing.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Sets how often malai looks whether a process has ended.
const PROCESS_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Names a process by its id alone: a later one may have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(i32);

impl Process {
    /// Names the process that has this id now.
    pub(crate) fn with(id: i32) -> Self {
        Self(id)
    }

    /// Returns when no process has its id.
    ///
    /// # Errors
    /// None: it is like the other system's.
    pub(crate) async fn ended(self) -> io::Result<()> {
        while kill(Pid::from_raw(self.0), None) != Err(Errno::ESRCH) {
            tokio::time::sleep(PROCESS_LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

/// Leaves the memory as it is: POSIX has no call that hides it.
pub(crate) fn hide_memory() {}

/// Returns the path that the program which runs had when it started.
pub(crate) fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// Refuses: POSIX has no call for it.
pub(crate) fn allocate_beyond_end(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Refuses: macOS lacks `posix_fallocate`.
pub(crate) fn allocate_blocks(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Is never made: POSIX does not report changes of a directory. A timer looks instead.
#[derive(Debug)]
pub(crate) struct DirectoryChanges(Infallible);

impl AsRawFd for DirectoryChanges {
    fn as_raw_fd(&self) -> RawFd {
        match self.0 {}
    }
}

impl DirectoryChanges {
    /// Refuses.
    pub(crate) fn open(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Is never called.
    #[cfg_attr(test, allow(dead_code, reason = "only a system without another way takes this one"))]
    pub(crate) fn read(&self) -> io::Result<()> {
        match self.0 {}
    }
}
