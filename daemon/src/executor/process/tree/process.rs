//! Single processes: what /proc shows of one, and signals that reach it and no other.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Marks the kernel's own threads in the flags of /proc/PID/stat.
const KERNEL_THREAD_FLAG: u64 = 0x0020_0000;

/// Holds what malai needs of one line of /proc/PID/stat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// The program's name, as the kernel has it: at most 15 bytes, of any kind.
    pub(crate) name: String,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// When it began, in ticks since the boot. With its number this identifies the process.
    pub(crate) start: u64,
    /// No thread of it runs any more, and only its status is left.
    pub(crate) dead: bool,
    pub(crate) stopped: bool,
    pub(crate) kernel: bool,
}

/// Identifies a process: its number, and when it began.
pub(crate) type Id = (i32, u64);

impl Process {
    /// Returns its number and start.
    pub(crate) fn id(&self) -> Id {
        (self.pid, self.start)
    }

    /// Signals this process, and does nothing when its number belongs to another process by now.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        // The handle first, and then whose it is: a number that was given away meanwhile costs nobody else's life.
        let handle = match Handle::open(self.pid) {
            Err(Errno::ESRCH) => return Err(Errno::ESRCH),
            handle => handle,
        };
        if !self.is_there() {
            return Err(Errno::ESRCH);
        }
        match handle {
            Ok(handle) => handle.signal(signal),
            // A kernel without it, a sandbox that refuses what it does not know, or no descriptor left for it: nobody is
            // spared for that.
            Err(_) => nix::sys::signal::kill(Pid::from_raw(self.pid), signal),
        }
    }

    /// Whether its number is still its own.
    #[cfg(target_os = "linux")]
    fn is_there(&self) -> bool {
        read(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Without /proc nobody tells.
    #[cfg(not(target_os = "linux"))]
    fn is_there(&self) -> bool {
        true
    }
}

/// Returns the numbers of all processes but this one, the highest and so usually the youngest first.
pub(crate) fn pids() -> Vec<i32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<i32> = pids.filter(|pid| *pid != own).filter_map(|pid| i32::try_from(pid).ok()).collect();
    pids.reverse();
    pids
}

/// Returns the number that the kernel assigned last, perhaps to a thread.
pub(crate) fn newest() -> Option<i32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().last()?.parse().ok()
}

/// Returns whether this number is a process's, and not that of another thread of one.
pub(crate) fn leads(pid: i32) -> bool {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group.is_some_and(|group| group.trim().parse() == Ok(pid))
}

/// Returns whether any user id of the process is this one; a process that is gone has none.
pub(crate) fn is_of(pid: i32, uid: u32) -> bool {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().any(|one| one.parse() == Ok(uid)))
}

/// Reads the state of a process, if there is one with this number.
pub(crate) fn read(pid: i32) -> Option<Process> {
    parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// Parses the fields after the last `)`, since the name before it may contain anything.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, fields) = rest.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    let state = *fields.first()?;
    let threads: u64 = fields.get(17)?.parse().ok()?;
    let flags: u64 = fields.get(6)?.parse().ok()?;
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        start: fields.get(19)?.parse().ok()?,
        // A first thread that has ended is shown as a zombie, although the others run on.
        dead: matches!(state, "Z" | "X") && threads <= 1,
        stopped: state == "T",
        kernel: flags & KERNEL_THREAD_FLAG != 0,
    })
}

/// Holds a process by a descriptor, which stays valid when its number is reused.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Handle(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Handle {
    #[allow(unsafe_code, reason = "there is no safe interface to pidfd_open(2) here")]
    fn open(pid: i32) -> nix::Result<Self> {
        use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
        // SAFETY: two integers go in; a new descriptor, which is nobody else's, or an error comes out.
        unsafe {
            let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
            Ok(Self(OwnedFd::from_raw_fd(fd as RawFd)))
        }
    }

    #[allow(unsafe_code, reason = "there is no safe interface to pidfd_send_signal(2) here")]
    fn signal(&self, signal: Signal) -> nix::Result<()> {
        use std::os::fd::AsRawFd as _;
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open as long as `self`, and without information the kernel writes its own.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as i32, info, 0) };
        Errno::result(sent).map(drop)
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Handle;

#[cfg(not(target_os = "linux"))]
impl Handle {
    fn open(_pid: i32) -> nix::Result<Self> {
        Err(Errno::ENOSYS)
    }

    fn signal(&self, _signal: Signal) -> nix::Result<()> {
        Err(Errno::ENOSYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(state: &str, flags: u64, threads: u32) -> String {
        format!("12 (a) R 1 (b) {state} 7 8 9 0 -1 {flags} 1 0 0 0 0 0 0 0 20 0 {threads} 0 4242 2703360 1")
    }

    #[test]
    fn a_program_may_have_any_name() {
        let process = parse(&line("S", 4_194_560, 1)).expect("parses");
        let wanted = Process {
            pid: 12,
            name: "a) R 1 (b".into(),
            parent: 7,
            group: 8,
            session: 9,
            start: 4242,
            dead: false,
            stopped: false,
            kernel: false,
        };
        assert_eq!(process, wanted);
        assert_eq!(parse("12 (a"), None);
        assert_eq!(parse(""), None);
        assert!(parse(&line("S", KERNEL_THREAD_FLAG, 1)).expect("parses").kernel);
    }

    #[test]
    fn a_process_whose_first_thread_ended_lives_while_another_does() {
        for (state, threads, dead) in [("Z", 1, true), ("X", 1, true), ("Z", 2, false), ("S", 1, false)] {
            assert_eq!(parse(&line(state, 0, threads)).expect("parses").dead, dead, "{state} {threads}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_signal_for_a_process_that_had_the_number_before_reaches_nobody() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let now = read(pid).expect("it lives");
        let before = Process { start: now.start - 1, ..now.clone() };
        assert_eq!(before.signal(Signal::SIGKILL), Err(Errno::ESRCH));
        assert!(child.try_wait().expect("a child").is_none(), "another's signal ended it");
        now.signal(Signal::SIGKILL).expect("it is its own");
        child.wait().expect("a child");
        assert_eq!(now.signal(Signal::SIGKILL), Err(Errno::ESRCH));
    }
}
