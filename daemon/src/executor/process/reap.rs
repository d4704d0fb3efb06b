//! Collects the statuses of children, and lets nobody signal a process id that is not theirs any more.
//!
//! A process id is ours until its status is collected. Both happen under one lock here: collecting, and signalling.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Gid, Pid, Uid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use malai_protocol::session::Status;

use super::spawn::{Forked, Prepared, fork_exec, fork_sweep};

/// Bounds how many statuses are collected in one turn of the event loop, which takes about a millisecond.
const MAX_STATUSES_PER_TURN: usize = 128;

/// The children of one executor.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    children: Arc<Mutex<HashMap<Pid, oneshot::Sender<Status>>>>,
    /// Every child of this process is ours: orphans that fell to us as their subreaper are collected too.
    all: bool,
}

/// One child.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pid: Pid,
    reaper: Reaper,
}

impl Reaper {
    /// With `all`, this process has no children but this reaper's and adopted ones.
    pub(crate) fn new(all: bool) -> Self {
        Self { children: Arc::default(), all }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Status>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects statuses until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            // Before the first signal too: a child may have ended while nobody listened yet. What forks and leaves all the
            // time ends all the time, and the others have their turn.
            while self.collect() {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                _ = ended.recv() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Starts a child under the lock, so that it cannot be collected before it is known.
    pub(crate) fn start(&self, prepared: &Prepared) -> io::Result<(Child, Forked, oneshot::Receiver<Status>)> {
        let mut children = self.lock();
        let forked = fork_exec(prepared)?;
        let (sender, receiver) = oneshot::channel();
        children.insert(forked.pid, sender);
        Ok((Child { pid: forked.pid, reaper: self.clone() }, forked, receiver))
    }

    /// Starts a process that kills all that this user may kill; it ends with 0 when it has.
    pub(crate) fn sweep(&self, uid: Uid, gid: Gid) -> io::Result<(Child, oneshot::Receiver<Status>)> {
        let mut children = self.lock();
        let pid = fork_sweep(uid, gid)?;
        let (sender, receiver) = oneshot::channel();
        children.insert(pid, sender);
        Ok((Child { pid, reaper: self.clone() }, receiver))
    }

    /// Collects children that have ended, up to [`MAX_STATUSES_PER_TURN`]. Returns whether there may be more.
    fn collect(&self) -> bool {
        let mut children = self.lock();
        if !self.all {
            let known: Vec<Pid> = children.keys().copied().collect();
            for pid in known {
                if let Some((pid, status)) = ended(Some(pid)) {
                    report(&mut children, pid, status);
                }
            }
            return false;
        }
        for _ in 0..MAX_STATUSES_PER_TURN {
            let Some((pid, status)) = ended(None) else {
                return false;
            };
            report(&mut children, pid, status);
        }
        true
    }
}

fn report(children: &mut HashMap<Pid, oneshot::Sender<Status>>, pid: Pid, status: Status) {
    if let Some(sender) = children.remove(&pid)
        && sender.send(status).is_err()
    {
        tracing::debug!(pid = pid.as_raw(), ?status, "nobody waits for a child that ended");
    }
}

/// The next child that ended, of all or of one.
#[allow(
    unsafe_code,
    reason = "the safe wrapper refuses real-time signals after it has collected, and lost, the status"
)]
fn ended(pid: Option<Pid>) -> Option<(Pid, Status)> {
    let mut raw = 0;
    loop {
        // SAFETY: waitpid writes one integer, which is ours.
        let found = unsafe { libc::waitpid(pid.map_or(-1, Pid::as_raw), &raw mut raw, libc::WNOHANG) };
        match found {
            1.. => return Some((Pid::from_raw(found), status(raw))),
            0 => return None,
            _ if Errno::last() == Errno::EINTR => {}
            _ => return None,
        }
    }
}

/// What waitpid(2) says of a child that ended: without WUNTRACED and WCONTINUED it speaks of no other.
fn status(raw: i32) -> Status {
    if libc::WIFSIGNALED(raw) {
        return Status::Signalled { signal: libc::WTERMSIG(raw).to_le_bytes()[0], core: libc::WCOREDUMP(raw) };
    }
    Status::Exited { code: libc::WEXITSTATUS(raw).to_le_bytes()[0] }
}

impl Child {
    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills all processes of a user; see [`Reaper::sweep`].
    pub(crate) fn sweep(&self, uid: Uid, gid: Gid) -> io::Result<(Self, oneshot::Receiver<Status>)> {
        self.reaper.sweep(uid, gid)
    }

    /// Whether its status was not collected yet, so that its id is still its own.
    pub(crate) fn is_ours(&self) -> bool {
        self.reaper.lock().contains_key(&self.pid)
    }

    /// Signals it alone.
    pub(crate) fn signal(&self, signal: Signal) {
        self.under_lock(|pid| kill(pid, signal));
    }

    /// Signals its process group; itself, while it has not made one yet.
    pub(crate) fn signal_group(&self, signal: Signal) {
        self.under_lock(|pid| match killpg(pid, signal) {
            Err(Errno::ESRCH) => kill(pid, signal),
            result => result,
        });
    }

    fn under_lock(&self, act: impl Fn(Pid) -> nix::Result<()>) {
        let children = self.reaper.lock();
        if children.contains_key(&self.pid)
            && let Err(error) = act(self.pid)
        {
            tracing::debug!(pid = self.pid.as_raw(), %error, "signal not delivered");
        }
    }
}
