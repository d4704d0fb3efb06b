//! What the kernel knows of a command's pipes.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// The pipe at this descriptor of a process, for writing.
pub(crate) fn pipe(pid: Pid, descriptor: u32) -> Result<File> {
    let path = format!("/proc/{pid}/fd/{descriptor}");
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)
        .with_context(|| format!("{path} is gone: the command has ended"))
}

/// Whether a process's standard output takes nothing more.
pub(crate) fn is_full(pid: Pid) -> Result<bool> {
    let pipe = pipe(pid, 1)?;
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    Ok(poll(&mut polled, PollTimeout::ZERO)? == 0)
}

/// How many bytes a process has written.
pub(crate) fn written(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let io = std::fs::read_to_string(&path).context(path)?;
    Ok(io.lines().find_map(|line| line.strip_prefix("wchar: ")).context("no wchar")?.parse()?)
}
