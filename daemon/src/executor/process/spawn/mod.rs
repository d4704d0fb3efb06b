//! Fork and exec. The only place with `unsafe`: between the two, a child may call nothing but plain system calls, and
//! the standard library neither tells a missing directory from a missing program nor puts a child into a cgroup.
//!
//! The child leads a session of its own (setsid), so that it is its own process group and has no controlling terminal:
//! it can reach neither the terminal of whoever started the daemon nor the daemon's group.

mod born;
mod sweep;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{Gid, Pid, Uid};

pub(crate) use sweep::fork_sweep;

/// What the child becomes before it runs the program.
#[derive(Debug)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: Uid,
    /// Primary group.
    pub(crate) gid: Gid,
    /// All groups.
    pub(crate) groups: Vec<Gid>,
}

/// Everything that the child needs, prepared before the fork.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Paths to try, in order, as execvp(3) would.
    pub(crate) programs: Vec<CString>,
    /// Exact arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// `PWD_PREFIX=value`, the whole environment.
    pub(crate) env: Vec<CString>,
    /// Working directories to try, in order.
    pub(crate) directories: Vec<Directory>,
    /// Whom to become; absent = stay.
    pub(crate) identity: Option<Identity>,
    /// The open directory of the cgroup to be in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Descriptors 0, 1 and 2.
    pub(crate) stdio: [OwnedFd; 3],
    /// The soft limit of open files that the child gets back.
    pub(crate) open_files: Option<u64>,
    /// The soft limit of cores that the child gets back.
    pub(crate) core: Option<u64>,
    /// The limit of file locks by which the child and all its descendants are known, where there is no cgroup.
    pub(crate) tag: Option<u64>,
}

/// A working directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Where it is.
    pub(crate) path: CString,
    /// What the child's `PWD` says of it.
    pub(crate) pwd: Pwd,
}

/// Says what the variable `PWD` of a child is.
#[derive(Debug)]
pub(crate) enum Pwd {
    /// What the environment already has.
    AsInherited,
    /// This, as `PWD=…`.
    Named(CString),
    /// What the system calls the directory.
    Asked,
}

/// A child that runs, or is about to.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Its process id, group and session.
    pub(crate) pid: Pid,
    /// Ends without a byte once the program runs; else carries one [`Trouble`].
    pub(crate) exec: OwnedFd,
}

/// What the child could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Set up its descriptors.
    Stdio = 1,
    /// Enter its cgroup.
    Cgroup = 2,
    /// Become the user.
    Identity = 3,
    /// Enter the working directory.
    Directory = 4,
    /// Execute the program.
    Exec = 5,
    /// The program is there, but the interpreter that its first line names is not.
    Interpreter = 6,
}

/// Why the program does not run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    /// Where it failed.
    pub(crate) stage: Stage,
    /// With which error.
    pub(crate) errno: i32,
}

/// Begins the variable that names the working directory.
const PWD_PREFIX: &[u8] = b"PWD=";
/// Length of a [`Trouble`] in the pipe.
const TROUBLE_LEN: usize = 5;

impl Trouble {
    /// Reads what the child wrote; `None` when it is not whole.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[number, a, b, c, d], _) = bytes.split_first_chunk::<TROUBLE_LEN>()?;
        use Stage::{Cgroup, Directory, Exec, Identity, Interpreter, Stdio};
        let stage = [Stdio, Cgroup, Identity, Directory, Exec, Interpreter].into_iter().find(|s| *s as u8 == number)?;
        Some(Self { stage, errno: i32::from_ne_bytes([a, b, c, d]) })
    }
}

/// Raw pointers into a [`Prepared`], made before the fork, since the child must not allocate.
struct Raw<'a> {
    prepared: &'a Prepared,
    argv: Vec<*const libc::c_char>,
    /// For each of the directories.
    envs: Vec<Vec<*const libc::c_char>>,
    /// `PWD=`, and room for what [`Pwd::Asked`] puts behind it.
    pwd: *mut libc::c_char,
    groups: Vec<libc::gid_t>,
    stdio: [RawFd; 3],
    report: RawFd,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// The environment of a child that enters this directory.
fn environment(env: &[CString], directory: &Directory, pwd: *mut libc::c_char) -> Vec<*const libc::c_char> {
    let mut env = pointers(env);
    let variable = match &directory.pwd {
        Pwd::AsInherited => return env,
        Pwd::Named(variable) => variable.as_ptr(),
        Pwd::Asked => pwd.cast_const(),
    };
    env.insert(0, variable);
    env
}

/// Starts the child. The caller must see to it that the child's status is collected.
#[allow(unsafe_code, reason = "fork; the child calls only what signal-safety(7) allows")]
pub(crate) fn fork_exec(prepared: &Prepared) -> io::Result<Forked> {
    let (read, write) = io::pipe()?;
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    let mut pwd_buffer = [PWD_PREFIX, &[0; libc::PATH_MAX as usize]].concat();
    let pwd = pwd_buffer.as_mut_ptr().cast();
    let raw = Raw {
        argv: pointers(&prepared.argv),
        envs: prepared.directories.iter().map(|directory| environment(&prepared.env, directory, pwd)).collect(),
        pwd,
        groups: prepared.identity.iter().flat_map(|i| &i.groups).map(|g| g.as_raw()).collect(),
        stdio: [prepared.stdio[0].as_raw_fd(), prepared.stdio[1].as_raw_fd(), prepared.stdio[2].as_raw_fd()],
        report: write.as_raw_fd(),
        prepared,
    };
    // A signal that hits the child before exec must not run a handler of ours: it would write into our wake-up pipe.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: the child only uses `raw`, which was made before, and never returns from `child`.
    let (pid, inside) = unsafe { born::fork(prepared.cgroup.as_ref()) };
    if let Ok(0) = pid {
        // SAFETY: this is the child, with all signals blocked; `raw` points into memory that the fork copied.
        unsafe { child(&raw, inside) }
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    Ok(Forked { pid: Pid::from_raw(pid?), exec: read })
}

/// Tells the parent what failed, and ends the child.
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn give_up(report: RawFd, stage: Stage, errno: i32) -> ! {
    let [a, b, c, d] = errno.to_ne_bytes();
    let bytes = [stage as u8, a, b, c, d];
    // SAFETY: a write of a local array to a descriptor that is ours, and the end of the process.
    unsafe {
        // If the parent is gone there is nobody to tell.
        let _told = libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn child(raw: &Raw<'_>, inside: bool) -> ! {
    // SAFETY: plain system calls on memory and descriptors that live until exec; no allocation, no lock.
    unsafe {
        libc::setsid();
        default_signals();
        for (at, fd) in raw.stdio.iter().enumerate() {
            if libc::dup2(*fd, at as RawFd) < 0 {
                give_up(raw.report, Stage::Stdio, errno());
            }
        }
        if let Some(cgroup) = raw.prepared.cgroup.as_ref().filter(|_| !inside)
            && !born::enter(cgroup)
        {
            give_up(raw.report, Stage::Cgroup, errno());
        }
        close_on_exec_from_3();
        libc::umask(0o022);
        let limits = [(Resource::RLIMIT_NOFILE, raw.prepared.open_files), (Resource::RLIMIT_CORE, raw.prepared.core)];
        for (resource, soft) in limits {
            if let Some(soft) = soft
                && let Ok((_, hard)) = getrlimit(resource)
                && setrlimit(resource, soft.min(hard), hard).is_err()
            {
                give_up(raw.report, Stage::Stdio, errno());
            }
        }
        if let Some(tag) = raw.prepared.tag {
            mark(tag);
        }
        if let Some(identity) = &raw.prepared.identity
            && !become_user(identity, &raw.groups)
        {
            give_up(raw.report, Stage::Identity, errno());
        }
        let Some(env) = enter(raw) else { give_up(raw.report, Stage::Directory, errno()) };
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        let (stage, errno) = execute(raw, env);
        give_up(raw.report, stage, errno)
    }
}

/// Enters the first directory that can be entered, and returns the environment for it.
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn enter<'r>(raw: &'r Raw<'_>) -> Option<&'r [*const libc::c_char]> {
    for (directory, env) in raw.prepared.directories.iter().zip(&raw.envs) {
        // SAFETY: a path that ends with NUL.
        if unsafe { libc::chdir(directory.path.as_ptr()) } != 0 {
            continue;
        }
        if let Pwd::Asked = directory.pwd {
            // SAFETY: behind the prefix there is room for `PATH_MAX` bytes. Where it fails the variable is empty.
            let _known = unsafe { libc::getcwd(raw.pwd.add(PWD_PREFIX.len()), libc::PATH_MAX as usize) };
        }
        return Some(env);
    }
    None
}

/// Every signal back to its default: also SIGPIPE, which Rust programs ignore.
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: signal(2) refuses the numbers that do not exist or cannot be changed, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Marks every descriptor from 3 on to be closed by exec: whatever the process got from elsewhere stays here.
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn close_on_exec_from_3() {
    // SAFETY: only sets flags on descriptors of this process.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return;
        }
        // Linux before 5.11, and other systems.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(65536));
        for fd in 3..limit as RawFd {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Sets the limit that marks a session's processes. Where a lower one is in force it stays, and the other marks do.
fn mark(tag: u64) {
    #[cfg(target_os = "linux")]
    let _refused = setrlimit(Resource::RLIMIT_LOCKS, tag, tag);
    #[cfg(not(target_os = "linux"))]
    let _unused = tag;
}

/// By plain system calls: the C library would first look for other threads, of which this process has a list but none.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn become_user(identity: &Identity, groups: &[libc::gid_t]) -> bool {
    // SAFETY: `groups` is a slice of this length; the order is the only one that works: uid last.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setgid, identity.gid.as_raw()) == 0
            && libc::syscall(libc::SYS_setuid, identity.uid.as_raw()) == 0
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn become_user(identity: &Identity, groups: &[libc::gid_t]) -> bool {
    // SAFETY: as above.
    unsafe {
        libc::setgroups(groups.len() as _, groups.as_ptr()) == 0
            && libc::setgid(identity.gid.as_raw()) == 0
            && libc::setuid(identity.uid.as_raw()) == 0
    }
}

/// Tries all candidates. Returns only when none can be run: the first error that is more than "not there".
#[allow(unsafe_code, reason = "runs between fork and exec")]
unsafe fn execute(raw: &Raw<'_>, env: &[*const libc::c_char]) -> (Stage, i32) {
    let mut found = None;
    for program in &raw.prepared.programs {
        // SAFETY: both arrays end with a null pointer and point into `prepared`.
        unsafe { libc::execve(program.as_ptr(), raw.argv.as_ptr(), env.as_ptr()) };
        let error = errno();
        let trouble = match error {
            libc::ENOTDIR => None,
            // SAFETY: a path that ends with NUL.
            libc::ENOENT if unsafe { libc::access(program.as_ptr(), libc::F_OK) } == 0 => {
                Some((Stage::Interpreter, error))
            }
            libc::ENOENT => None,
            _ => Some((Stage::Exec, error)),
        };
        found = found.or(trouble);
    }
    found.unwrap_or((Stage::Exec, libc::ENOENT))
}
