//! All processes of a session, however deep: found, ended, and verified to be gone.
//!
//! With a cgroup nothing escapes but what root moves out of it by hand. Elsewhere a session's processes are those of its
//! kernel session and process group, those that carry one of its marks (a variable of the environment, and a limit that
//! nobody has a use for), and the descendants of all of these.
//!
//! What forks and leaves all the time is never where the last look saw it. So nothing is killed one by one: a cgroup is
//! killed as a whole by the kernel; so is a user who has nothing but this session; and elsewhere all are stopped, until
//! two looks find nobody new, and only then killed. Then it is looked again, twice, and what is left is named.

pub(crate) mod cgroup;
mod left;
mod marker;
pub(crate) mod process;
mod renewal;
mod workers;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use malai_protocol::id::Incarnation;
use malai_protocol::plan::{self, SessionName};
use malai_protocol::session::Status;

use super::reap::Child;
use super::users::Place;

pub(crate) use left::Left;
pub(crate) use marker::tag;
use marker::{Look, SUFFICIENT_CERTAINTY, Scan};
use process::{Id, Process};
use renewal::Renewal;
pub(crate) use workers::start as start_workers;

/// How long TERM is given before KILL.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// The same for a session whose access was withdrawn: it has to be gone within a second.
pub(crate) const WITHDRAWN_GRACE: Duration = Duration::from_millis(500);
/// The same when the daemon stops: it has five seconds in all.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// How long an ending may take in all, before what is left is named and left.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// The same when the daemon stops.
const SHUTDOWN_ENDING_TIMEOUT: Duration = Duration::from_secs(4);
/// How long processes that were killed may stay as they are: longer than a moment only where one hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long all are stopped before those are killed that were found.
const STOP_PHASE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one turn of that takes, after which others may look.
const STOP_TURN_TIME: Duration = Duration::from_millis(100);
/// How long the kernel may take to kill all processes of a user.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what an executor that died has left may take: a daemon waits for the new one meanwhile.
const LEFTOVER_KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Endings that look through /proc or cgroups at the same time.
static LOOKS: Semaphore = Semaphore::const_new(workers::WORKER_COUNT);

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
    /// Whose they are, where that is not the executor's own user.
    place: Option<Place>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Cgroup(cgroup::Group),
    Marker(Mutex<Scan>),
}

impl Tree {
    /// The tree that `child` is the root of.
    pub(crate) fn new(child: Child, place: Option<Place>, group: Option<cgroup::Group>, mark: &str) -> Self {
        let way = match group {
            Some(group) => Way::Cgroup(group),
            None => Way::Marker(Mutex::new(Scan::new(&[mark.to_owned()]))),
        };
        Self { child, place, way }
    }

    /// TERM to all, `grace`, KILL to all, until none is left, or says which are.
    pub(crate) async fn end(self: Arc<Self>, grace: Duration) -> Left {
        let began = Instant::now();
        let limit = began + if grace == SHUTDOWN_GRACE { SHUTDOWN_ENDING_TIMEOUT } else { ENDING_TIMEOUT };
        self.ask(began + grace).await;
        self.kill(limit).await
    }

    /// TERM to all, and time to heed it, as long as they seem to.
    async fn ask(self: &Arc<Self>, until: Instant) {
        // A stopped process gets its TERM when it goes on.
        let told = self.step(Some(Signal::SIGTERM)).await.members;
        let mut renewal = Renewal::new(Instant::now(), &told);
        let mut left = !told.is_empty();
        if left {
            left = !self.step(Some(Signal::SIGCONT)).await.members.is_empty();
        }
        let mut pause = Pause::new();
        while left && Instant::now() < until {
            pause.wait(until).await;
            let there = self.step(None).await.members;
            if renewal.goes_on(Instant::now(), &there) {
                tracing::info!(there = there.len(), "it forks and leaves instead of ending: it is not waited for");
                return;
            }
            left = !there.is_empty();
        }
    }

    /// KILL to all, again and again, until it is certain that none is left, or no use, or `limit`.
    async fn kill(self: &Arc<Self>, limit: Instant) -> Left {
        let mut certainty = 0;
        let mut stuck = Stuck::new();
        let mut pause = Pause::new();
        loop {
            let look = self.step(None).await;
            if look.members.is_empty() {
                certainty += look.certainty();
                if certainty >= SUFFICIENT_CERTAINTY || Instant::now() >= limit {
                    return Left::default();
                }
                pause.wait(limit).await;
                continue;
            }
            certainty = 0;
            if Instant::now() >= limit || stuck.is(&look.members) {
                return Left::of(&look.members);
            }
            self.strike(&look.members, limit).await;
            pause.wait(limit).await;
        }
    }

    async fn strike(self: &Arc<Self>, members: &[Process], limit: Instant) {
        let _haste = workers::Haste::new();
        if matches!(self.way, Way::Marker(_)) {
            if self.sweep(members).await {
                return;
            }
            let until = limit.min(Instant::now() + STOP_PHASE_TIMEOUT);
            let mut certainty = 0;
            while certainty < SUFFICIENT_CERTAINTY && Instant::now() < until {
                certainty = self.blocking(move |tree| tree.stop_now(certainty)).await.unwrap_or(SUFFICIENT_CERTAINTY);
            }
        }
        self.step(Some(Signal::SIGKILL)).await;
    }

    /// Kills all of the user at once, where that is this session and nothing else. False when it is not, or did not work.
    async fn sweep(self: &Arc<Self>, members: &[Process]) -> bool {
        let Some(place) = &self.place else {
            return false;
        };
        // Held until it is done: a command that starts meanwhile would be killed with them.
        let Some(_sweep) = place.sweep() else {
            return false;
        };
        let (uid, gid, members) = (place.uid, place.gid, members.to_vec());
        let alone = self.blocking(move |tree| match &tree.way {
            Way::Marker(scan) => lock(scan).is_alone(uid.as_raw(), &members),
            Way::Cgroup(_) => false,
        });
        if alone.await != Some(true) {
            return false;
        }
        let (sweeper, swept) = match self.child.sweep(uid, gid) {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(%error, %uid, "cannot start what kills all processes of a user");
                return false;
            }
        };
        let Ok(swept) = timeout(SWEEP_TIMEOUT, swept).await else {
            // As the user it can be stopped by the user's other processes.
            sweeper.signal(Signal::SIGKILL);
            return false;
        };
        swept == Ok(Status::Exited { code: 0 })
    }

    /// Looks, and then signals all that were found.
    async fn step(self: &Arc<Self>, signal: Option<Signal>) -> Look {
        // Only a panic below comes to nothing: whatever could not be looked at is not known to be gone.
        self.blocking(move |tree| tree.step_now(signal)).await.unwrap_or_else(|| Look::unknown(&self.child))
    }

    /// Does what reads /proc or the cgroup's files, not on this thread, and only few at a time.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        // It is never closed.
        let _permit = LOOKS.acquire().await.ok()?;
        let tree = self.clone();
        workers::run(move || work(&tree)).await
    }

    fn step_now(&self, signal: Option<Signal>) -> Look {
        let look = self.look_now(false);
        match (&self.way, signal) {
            (Way::Cgroup(group), Some(Signal::SIGKILL)) => {
                self.child.signal(Signal::SIGKILL);
                group.kill();
            }
            (_, Some(signal)) => self.send(&look.members, signal),
            (_, None) => {}
        }
        look
    }

    fn look_now(&self, stops: bool) -> Look {
        let mut look = match &self.way {
            Way::Cgroup(group) => {
                let look = Look { members: group.members(), ..Look::default() };
                let unseen = look.members.is_empty() && group.is_populated();
                if unseen { Look::unknown(&self.child) } else { look }
            }
            Way::Marker(scan) => lock(scan).look(Some(&self.child), stops),
        };
        // The first process may not have entered its cgroup or set its session up yet, or waits to be collected.
        if look.members.is_empty() && self.child.is_ours() {
            look.members = Look::unknown(&self.child).members;
        }
        look
    }

    /// Signals these, and the first process in any case.
    fn send(&self, members: &[Process], wanted: Signal) {
        let main = self.child.is_ours().then(|| self.child.pid().as_raw());
        self.child.signal(wanted);
        for process in members.iter().filter(|process| Some(process.pid) != main) {
            signal(process, wanted);
        }
    }

    /// Stops all, for one turn; adds to what is certain so far that none is left to stop. Blocks.
    fn stop_now(&self, mut certainty: u32) -> u32 {
        let until = std::time::Instant::now() + STOP_TURN_TIME;
        while certainty < SUFFICIENT_CERTAINTY && std::time::Instant::now() < until {
            certainty = match self.look_now(true).certainty() {
                0 => 0,
                more => certainty + more,
            };
        }
        certainty
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
        if matches!(self.way, Way::Marker(_)) {
            self.stop_now(0);
        }
        self.step_now(Some(Signal::SIGKILL));
    }
}

fn lock(scan: &Mutex<Scan>) -> MutexGuard<'_, Scan> {
    scan.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals a process; one that is gone, or not ours to signal, is seen by the next look.
fn signal(process: &Process, signal: Signal) {
    match process.signal(signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::debug!(pid = process.pid, %error, "signal not delivered"),
    }
}

/// Whether the same processes stay, however often they are killed.
#[derive(Debug)]
struct Stuck {
    ids: HashSet<Id>,
    since: Instant,
}

impl Stuck {
    fn new() -> Self {
        Self { ids: HashSet::new(), since: Instant::now() }
    }

    fn is(&mut self, left: &[Process]) -> bool {
        let ids: HashSet<Id> = left.iter().map(Process::id).collect();
        if ids != self.ids {
            *self = Self { ids, since: Instant::now() };
        }
        self.since.elapsed() >= KILL_WAIT
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

/// Kills what an executor that died left of sessions that had not ended, and waits for it up to [`LEFTOVER_KILL_TIMEOUT`].
/// Background processes of commands that had ended by themselves are left alone. Blocks.
pub(crate) fn kill_leftover(bases: &[PathBuf], unfinished: &[SessionName]) {
    if unfinished.is_empty() {
        return;
    }
    let marks: Vec<String> = unfinished.iter().map(mark).collect();
    let mut scan = Scan::new(&marks);
    let until = std::time::Instant::now() + LEFTOVER_KILL_TIMEOUT;
    let mut certainty = 0;
    while certainty < SUFFICIENT_CERTAINTY {
        let populated: usize = bases.iter().map(|base| cgroup::kill_groups(base, &marks)).sum();
        // Stopped first, as long as there are new ones: what forks and leaves is not outrun.
        let look = scan.look(None, true);
        let left = populated + look.members.len();
        if std::time::Instant::now() >= until {
            if left > 0 {
                tracing::warn!(left = Left::of(&look.members).words(), populated, "an executor that died left these");
            }
            return;
        }
        certainty = match (left, look.certainty()) {
            (0, more) => certainty + more,
            (_, 0) => 0,
            _ => {
                look.members.iter().for_each(|process| signal(process, Signal::SIGKILL));
                0
            }
        };
        std::thread::sleep(Duration::from_millis(2));
    }
}
