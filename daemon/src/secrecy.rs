//! Keeps what a process has in memory from other processes, and from the disk.
//!
//! A process that is not *dumpable* leaves no core, whatever `core_pattern` says, and no other process of its user reads
//! its memory or attaches to it (root still does). The limit of cores is lowered as well, softly: the hard one is what a
//! command's own is set back to, and a process that is not root cannot raise that again.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

/// Holds the soft limit of cores that this process was started with.
static GIVEN_CORE_LIMIT: OnceLock<u64> = OnceLock::new();

/// Makes this process one that holds keys: what it makes on the disk is its user's alone, and its memory too. For a daemon,
/// an agent or a relay, before it reads a key.
pub fn begin() {
    close_files();
    give_no_core();
    hide_memory();
}

/// Makes new files this user's alone, whatever the mode that somebody forgot to give them.
pub(crate) fn close_files() {
    umask(Mode::from_bits_truncate(0o077));
}

/// Hides the memory of this process, which may start other programs as before: exec ends it.
pub fn hide_memory() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "other processes of this user can read this one's memory, and a crash may leave a core");
    }
}

/// Lowers the limit of cores, and notes what it was.
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
