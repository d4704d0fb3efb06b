//! All processes of a session, however deep: found, ended, and verified to be gone.
//!
//! With a cgroup nothing escapes but what root moves out of it by hand. Elsewhere a session's processes are those of its
//! kernel session and process group, those that carry its marker in their environment, and the descendants of all of
//! these; what is left out is a process that cleared its environment, left the session, and lost its parent.

pub(crate) mod cgroup;
pub(crate) mod marker;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use malai_protocol::id::Incarnation;
use malai_protocol::plan::{self, SessionName};

use super::reap::Child;

/// How long TERM is given before KILL.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// The same for a session whose access was withdrawn: it has to be gone within a second.
pub(crate) const WITHDRAWN_GRACE: Duration = Duration::from_millis(500);
/// The same when the daemon stops: it has five seconds in all.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// How long KILL is given: longer than a moment only when a process hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// What names a session's processes: the value of the marker variable, and its cgroup's name.
pub(crate) fn mark(session: &SessionName) -> String {
    format!("{}.{}", session.id, session.caller)
}

/// How this executor finds processes.
#[derive(Debug)]
pub(crate) enum Trees {
    /// A cgroup v2 for each session, below this one.
    Cgroup(cgroup::Base),
    /// Kernel session, environment marker, and descent.
    Marker,
}

impl Trees {
    /// The best that works here. Without `cgroups` none is looked for.
    pub(crate) fn detect(cgroups: bool, incarnation: Incarnation) -> Self {
        if !cgroups {
            return Self::Marker;
        }
        match cgroup::Base::create(&format!("malai-{incarnation}")) {
            Ok(base) => Self::Cgroup(base),
            Err(why) => {
                tracing::info!(why, "sessions are found by process group, subreaper and marker");
                Self::Marker
            }
        }
    }

    /// Which, as the daemon is told.
    pub(crate) fn kind(&self) -> plan::Tree {
        match self {
            Self::Cgroup(_) => plan::Tree::Cgroup,
            Self::Marker => plan::Tree::Marker,
        }
    }

    /// The directory of the sessions' cgroups.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Cgroup(base) => Some(base.path()),
            Self::Marker => None,
        }
    }

    /// Room for one session, and its open directory, in which its first process is born.
    pub(crate) fn plant(&self, mark: &str) -> io::Result<Option<(cgroup::Group, File)>> {
        match self {
            Self::Cgroup(base) => base.group(mark).map(Some),
            Self::Marker => Ok(None),
        }
    }
}

/// The processes of one session.
#[derive(Debug)]
pub(crate) struct Tree {
    child: Child,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Cgroup(cgroup::Group),
    Marker(Mutex<marker::Scan>),
}

impl Tree {
    /// The tree that `child` is the root of.
    pub(crate) fn new(child: Child, group: Option<cgroup::Group>, mark: &str) -> Self {
        let way = match group {
            Some(group) => Way::Cgroup(group),
            None => Way::Marker(Mutex::new(marker::Scan::new(mark))),
        };
        Self { child, way }
    }

    /// TERM to all, `grace`, KILL to all, until none is left. False when some would not go.
    pub(crate) async fn end(self: Arc<Self>, grace: Duration) -> bool {
        // A stopped process gets its TERM when it goes on.
        let mut left = self.clone().step(Some(Signal::SIGTERM)).await;
        if left > 0 {
            left = self.clone().step(Some(Signal::SIGCONT)).await;
        }
        let mut pause = Pause::new();
        let until = Instant::now() + grace;
        while left > 0 && Instant::now() < until {
            pause.wait(until).await;
            left = self.clone().step(None).await;
        }
        let until = Instant::now() + KILL_WAIT;
        let mut pause = Pause::new();
        while left > 0 && Instant::now() < until {
            left = self.clone().step(Some(Signal::SIGKILL)).await;
            if left > 0 {
                pause.wait(until).await;
            }
        }
        left == 0
    }

    /// Signals all, and counts those that are still there. Reads /proc or the cgroup's files, so not on this thread.
    async fn step(self: Arc<Self>, signal: Option<Signal>) -> usize {
        let counted = tokio::task::spawn_blocking(move || self.step_now(signal)).await;
        // Only a panic below comes here: whatever could not be counted is not known to be gone.
        counted.unwrap_or(1)
    }

    fn step_now(&self, signal: Option<Signal>) -> usize {
        // The first process may not have entered its cgroup or set its session up yet.
        let main = usize::from(self.child.is_ours());
        match &self.way {
            Way::Cgroup(group) => {
                match signal {
                    Some(Signal::SIGKILL) => {
                        self.child.signal(Signal::SIGKILL);
                        group.kill();
                    }
                    Some(signal) => self.send(&group.pids(), signal),
                    None => {}
                }
                main.max(usize::from(group.is_populated()))
            }
            Way::Marker(scan) => {
                let mut scan = scan.lock().unwrap_or_else(PoisonError::into_inner);
                let members = scan.members(&self.child);
                if let Some(signal) = signal {
                    self.send(&members, signal);
                }
                main.max(members.len())
            }
        }
    }

    /// Signals these and the first process, each once.
    fn send(&self, pids: &[Pid], signal: Signal) {
        if !pids.contains(&self.child.pid()) {
            self.child.signal(signal);
        }
        send(pids, signal);
    }

    /// Removes what the system keeps for it, once it is empty. False when a process still lives in it.
    pub(crate) fn remove(&self) -> bool {
        match &self.way {
            Way::Cgroup(group) => group.remove(),
            Way::Marker(_) => true,
        }
    }

    /// KILL to all at once, without waiting: for when nobody is left to wait.
    pub(crate) fn kill_now(&self) {
        self.step_now(Some(Signal::SIGKILL));
    }
}

/// Signals each of these; one that is gone, or not ours to signal, is seen by the next count.
fn send(pids: &[Pid], signal: Signal) {
    for pid in pids {
        if let Err(error) = kill(*pid, signal) {
            tracing::debug!(pid = pid.as_raw(), %error, "signal not delivered");
        }
    }
}

/// Growing pauses between two looks.
#[derive(Debug)]
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(Duration::from_millis(2))
    }

    async fn wait(&mut self, until: Instant) {
        sleep(self.0.min(until.saturating_duration_since(Instant::now()))).await;
        self.0 = (self.0 * 2).min(Duration::from_millis(50));
    }
}

/// Kills what an executor that died left of sessions that had not ended, and waits up to two seconds for it.
/// Background processes of commands that had ended by themselves are left alone. Blocks.
pub(crate) fn kill_leftover(bases: &[PathBuf], unfinished: &[SessionName]) {
    let marks: Vec<String> = unfinished.iter().map(mark).collect();
    let until = std::time::Instant::now() + KILL_WAIT;
    loop {
        let mut left = marker::kill_marked(&marks);
        left += bases.iter().map(|base| cgroup::kill_groups(base, &marks)).sum::<usize>();
        if left == 0 || std::time::Instant::now() >= until {
            if left > 0 {
                tracing::warn!(left, "processes of an executor that died would not end");
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
