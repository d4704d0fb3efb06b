//! KILL to every process of a user, by the only one who can do that at once: the user.
//!
//! kill(2) with -1 reaches all that the caller may signal, under the lock that every fork takes: what forks and leaves
//! cannot run away from it.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{Gid, Pid, Uid};

/// Forks a process that becomes this user, kills every process that the user may kill, and exits with 0. It exits with 1
/// when it could not become the user, and has killed nothing then. The caller must have its status collected.
#[allow(unsafe_code, reason = "fork; the child makes plain system calls and ends")]
pub(crate) fn fork_sweep(uid: Uid, gid: Gid) -> io::Result<Pid> {
    if uid.is_root() || uid == nix::unistd::geteuid() {
        return Err(io::Error::other("this user runs more than commands"));
    }
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: the child does not return from `sweep`.
    let pid = unsafe { libc::fork() };
    let error = io::Error::last_os_error();
    if pid == 0 {
        // SAFETY: this is the child, with all signals blocked.
        unsafe { sweep(uid.as_raw(), gid.as_raw()) }
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    if pid < 0 { Err(error) } else { Ok(Pid::from_raw(pid)) }
}

#[allow(unsafe_code, reason = "runs in a child of a process with threads")]
unsafe fn sweep(uid: libc::uid_t, gid: libc::gid_t) -> ! {
    // SAFETY: plain system calls, no memory. Every one of the three user ids is given up, and looked at before the kill:
    // with any that is root's, or with root's capabilities, it would reach the whole machine.
    unsafe {
        let done = become_only(uid, gid) && give_capabilities_up() && libc::kill(-1, libc::SIGKILL) == 0;
        libc::_exit(i32::from(!done))
    }
}

/// Gives up what root may do besides being root: changing the user takes it away, unless the process is in securebits that
/// say otherwise (`no-setuid-fixup`).
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "runs in a child of a process with threads")]
unsafe fn give_capabilities_up() -> bool {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the calling process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    /// Twice effective, permitted, and inheritable.
    const NONE: [u32; 6] = [0; 6];
    let mut header = HEADER;
    // SAFETY: a header, which the kernel may write to only when it does not know the version, and the sets that are read.
    unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), NONE.as_ptr()) == 0 }
}

#[cfg(not(target_os = "linux"))]
#[allow(unsafe_code, reason = "as the other of its name")]
unsafe fn give_capabilities_up() -> bool {
    true
}

/// Changes all ids of the calling process, by plain system calls where this kernel has them: the C library would first
/// signal the other threads, which it still lists although the fork left none.
#[allow(unsafe_code, reason = "runs in a child of a process with threads")]
unsafe fn become_only(uid: libc::uid_t, gid: libc::gid_t) -> bool {
    // SAFETY: integers, and a null pointer with a length of zero.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    unsafe {
        let groups = std::ptr::null::<libc::gid_t>();
        let changed = libc::syscall(libc::SYS_setgroups, 0, groups) == 0
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0;
        changed && libc::getuid() == uid && libc::geteuid() == uid && uid != 0
    }
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setgid(gid) == 0
            && libc::setuid(uid) == 0
            && libc::getuid() == uid
            && libc::geteuid() == uid
            && uid != 0
    }
}
