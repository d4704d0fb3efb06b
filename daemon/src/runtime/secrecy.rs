//! Keeps what a process has in memory from other processes, and from the disk.
//!
//! A process that is not *dumpable* leaves no core, whatever `core_pattern` says, and no other process of its user can
//! read its memory or attach to it (root can). Its soft core limit is lowered as well. The hard limit stays, because
//! commands get their limit back, and a process that is not root cannot raise a hard limit.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::platform;

/// Holds the soft limit of cores that this process was started with.
static GIVEN_CORE_LIMIT: OnceLock<u64> = OnceLock::new();

/// Prepares a process that holds keys: its new files, and its memory, are closed to others. A daemon, an agent or a
/// relay calls this before it reads a key.
pub fn begin() {
    close_files();
    give_no_core();
    hide_memory();
}

/// Closes new files to other users, also those for which no mode was given.
pub(crate) fn close_files() {
    umask(Mode::from_bits_truncate(0o077));
}

/// Hides the memory of this process. Programs that it starts are not affected: exec ends this.
pub fn hide_memory() {
    platform::hide_memory();
}

/// Lowers the core limit to 0, and notes what it was.
pub(crate) fn give_no_core() {
    let lowered = getrlimit(Resource::RLIMIT_CORE).and_then(|(soft, hard)| {
        GIVEN_CORE_LIMIT.get_or_init(|| soft);
        setrlimit(Resource::RLIMIT_CORE, 0, hard)
    });
    if let Err(error) = lowered {
        tracing::warn!(%error, "a crash may leave a core");
    }
}

/// Returns the soft limit of cores that the programs which this process starts get back; `None` where it was not lowered.
pub(crate) fn given_core_limit() -> Option<u64> {
    GIVEN_CORE_LIMIT.get().copied()
}
