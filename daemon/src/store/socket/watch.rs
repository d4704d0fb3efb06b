//! Hears from the system that something is removed from a directory, or moved into it.

use std::io;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::identity;
use crate::runtime::platform::DirectoryChanges;

/// A watch before the event loop has it, with the device and inode of its directory.
pub(super) type Opened = (DirectoryChanges, (u64, u64));

/// Hears of changes in a directory.
#[derive(Debug)]
pub(super) struct Watch {
    changes: AsyncFd<DirectoryChanges>,
    /// Identifies the directory: another one may have the name by now.
    directory: (u64, u64),
}

impl Watch {
    /// Watches a directory.
    ///
    /// # Errors
    /// When the system has no watch for it.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        Self::over(open(directory)?)
    }

    /// Gives the watch to the event loop.
    ///
    /// # Errors
    /// When that does not take it.
    #[allow(unsafe_code, reason = "there is no safe way to register a descriptor of one's own")]
    pub(super) fn over((changes, directory): Opened) -> io::Result<Self> {
        // SAFETY: the descriptor is open for as long as `changes`, which the registration owns, and is never another one.
        let changes = unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) }?;
        Ok(Self { changes, directory })
    }

    /// Returns device and inode of the directory.
    pub(super) fn directory(&self) -> (u64, u64) {
        self.directory
    }
}

/// Watches the directory that has the name now, if that is another one than is watched.
pub(super) fn renew(directory: &Path, watched: Option<(u64, u64)>) -> Option<Opened> {
    let found = identity(directory).ok()?;
    (Some(found) != watched).then(|| open(directory).ok()).flatten()
}

fn open(directory: &Path) -> io::Result<Opened> {
    let found = identity(directory)?;
    let changes = DirectoryChanges::open(directory)?;
    if identity(directory)? != found {
        return Err(io::Error::other("the directory was exchanged meanwhile"));
    }
    Ok((changes, found))
}

/// Waits for a change in the directory, for ever where none is watched. Cancel-safe.
pub(super) async fn change(watch: Option<&Watch>) {
    let Some(watch) = watch else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = watch.changes.readable().await else { return };
        // The look finds out what has changed.
        match ready.try_io(|changes| changes.get_ref().read()) {
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}
