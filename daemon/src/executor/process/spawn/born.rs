//! Fork, with the child born in its cgroup.
//!
//! Moving a process into a cgroup after the fork makes the kernel wait for every processor of the machine: 5 to 20 ms,
//! several times what the rest of a start takes. A process that is born there moves nowhere (Linux 5.7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// clone(2): the child starts in the cgroup of `CloneArgs::cgroup`.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2).
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// As fork(2), and whether the child is in the cgroup already. Where the kernel, or a sandbox, does not know how, the child
/// has to [`enter`] it.
///
/// # Safety
/// As for fork(2); besides, the C library does not know of this child: it may call nothing that depends on which threads
/// there are, so that it changes users by plain system calls.
#[allow(unsafe_code, reason = "no safe interface forks")]
pub(super) unsafe fn fork(cgroup: Option<&OwnedFd>) -> (io::Result<libc::pid_t>, bool) {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    if let Some(cgroup) = cgroup {
        let args = CloneArgs {
            flags: CLONE_INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: cgroup.as_raw_fd() as u64,
            ..CloneArgs::default()
        };
        // SAFETY: the arguments live through the call; without CLONE_VM the child has a copy of all memory, as after fork.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if pid >= 0 {
            return (Ok(pid as libc::pid_t), true);
        }
    }
    // SAFETY: the caller sees to it.
    let pid = unsafe { libc::fork() };
    (if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }, cgroup.is_none())
}

/// Moves the calling child into the cgroup of this directory. False when that fails. Plain system calls, as is allowed
/// between fork and exec.
#[allow(unsafe_code, reason = "runs between fork and exec")]
pub(super) fn enter(cgroup: &OwnedFd) -> bool {
    // SAFETY: a path that ends with NUL, and a byte to be written.
    unsafe {
        let procs = libc::openat(cgroup.as_raw_fd(), c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        procs >= 0 && libc::write(procs, c"0".as_ptr().cast(), 1) == 1
    }
}
