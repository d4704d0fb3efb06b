//! Waits until a process lets a lock go.

use std::path::Path;
use std::time::Duration;

#[cfg(target_os = "linux")]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
#[cfg(target_os = "linux")]
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Bounds one wait, since a release may be missed: a child that is being spawned keeps the file open for a moment longer than
/// the lock is held, and of other hosts that share a disk the system says nothing.
const RELEASE_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Sets the pause between two looks where the system does not say when a file is closed.
const UNWATCHED_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Hears that a lock's file is closed, as it is when its holder lets the lock go, and when the holder dies.
#[derive(Debug)]
pub(super) struct Releases(#[cfg(target_os = "linux")] Option<Inotify>);

#[cfg(target_os = "linux")]
impl Releases {
    /// Watches the file of a lock.
    pub(super) fn watch(path: &Path) -> Self {
        let watched = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).and_then(|inotify| {
            // Those that only look have the file open for reading.
            inotify.add_watch(path, AddWatchFlags::IN_CLOSE_WRITE)?;
            Ok(inotify)
        });
        Self(watched.ok())
    }

    /// Waits until the lock may be free, at most this long. Blocks.
    pub(super) fn wait(&self, within: Duration) {
        use std::os::fd::AsFd;

        let Some(inotify) = &self.0 else { return std::thread::sleep(within.min(UNWATCHED_LOOK_INTERVAL)) };
        let timeout = PollTimeout::try_from(within.min(RELEASE_LOOK_INTERVAL)).unwrap_or(PollTimeout::ZERO);
        // The next attempt finds out what has happened.
        if poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
            && let Err(error) = inotify.read_events()
        {
            tracing::debug!(%error, "the closing of a lock's file was not read");
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Releases {
    /// Watches nothing: this system does not say when a file is closed.
    pub(super) fn watch(_path: &Path) -> Self {
        Self()
    }

    /// Waits for a moment. Blocks.
    pub(super) fn wait(&self, within: Duration) {
        std::thread::sleep(within.min(UNWATCHED_LOOK_INTERVAL));
    }
}
