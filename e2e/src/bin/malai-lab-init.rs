//! Process 1 of a host in the lab: finishes its mounts, reaps orphans, and ends the host when its lab is gone.
//!
//! It is started in fresh namespaces by `malai_e2e::lab`. Its standard input is the lab's hold on it: at its end, also
//! when the test run was killed, process 1 exits and the kernel kills every other process of the host.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> ExitCode {
    let ready = prepare();
    let line = match &ready {
        Ok(_) => "ready".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let told = writeln!(std::io::stdout(), "{line}");
    match (ready, told) {
        (Ok(children), Ok(())) if serve(&children).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Mounts what only process 1 can: `/proc` shows the process table of whoever mounts it, and cgroup2 its own group.
fn prepare() -> Result<SignalFd> {
    ensure!(std::process::id() == 1, "malai-lab-init is process 1 of a host in the lab, nothing else");
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("cannot block SIGCHLD")?;
    let children = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot watch SIGCHLD")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    umount2("/proc", MntFlags::MNT_DETACH).context("cannot unmount the old /proc")?;
    mount(Some("proc"), "/proc", Some("proc"), safe, None::<&str>).context("cannot mount /proc")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot make a cgroup namespace")?;
    if std::env::args().any(|argument| argument == "--cgroups") {
        let groups = "/sys/fs/cgroup";
        mount(Some("cgroup2"), groups, Some("cgroup2"), safe, None::<&str>).context("cannot mount cgroup2")?;
        fs::write("/sys/fs/cgroup/init.scope/cgroup.procs", "0").context("cannot move to init.scope")?;
    }
    Ok(children)
}

/// Reaps until the lab lets go.
fn serve(children: &SignalFd) -> Result<()> {
    let hold = std::io::stdin();
    loop {
        let mut fds = [PollFd::new(hold.as_fd(), PollFlags::POLLIN), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot poll"),
        }
        if fds[0].any().unwrap_or(true) {
            return Ok(());
        }
        while children.read_signal().context("cannot read signals")?.is_some() {}
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}
