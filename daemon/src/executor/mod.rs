//! The executor: the process that owns sessions. It holds no key, opens no network, and asks nobody: a daemon that has
//! decided sends plans, and it runs them.
//!
//! # Layout `serve` the socket and first frames; `control` the daemon's own connection; `presence` whether there is
//! one; `table` the sessions, those that are over, and used ids; `journal` what outlives this process; `life` since
//! when this process knows; `session` one session; `followers` who may follow it; `link` its attachment and `outbox`
//! what that is to be sent; `log` output that is not acknowledged; `spool` that of detached sessions, on the disk, and
//! `replay` what is read of it after their end; `ask` questions about sessions; `command`, `user` and `env` what runs,
//! as whom, with what around it; `lookups` bounds questions to the user database; `spawn` fork and exec; `reap`
//! statuses; `tree` all processes of a session.
//!
//! # When an attachment is lost
//! The command goes on. Its output is read until the log is full, and kept; its caller has the session's grace time to
//! attach again, at any byte that was not acknowledged. A session that nobody came back for is ended. After its end the
//! rest of the output and the record wait in the same way, and then the bare record for an hour.
//!
//! # When its daemon goes
//! All attachments are lost, and otherwise nothing happens: the next daemon takes the executor over, and is told of what
//! lives and of all that has ended unconfirmed. When none comes for as long as the longest grace time, all sessions are
//! ended, and the executor too; 5 s after its daemon went when there is nothing to come back for. A later daemon hears of
//! it from the next executor, which reads the journal.
//!
//! # When the executor itself is killed
//! Its commands run on, with nobody to read them, until the next executor of this home starts, which a daemon sees to at
//! once: before it serves, it kills what is left of sessions that the journal does not know to have ended, and the daemon
//! is told of them as refused with [`malai_protocol::failure::Kind::Unknown`], since no record was made.

mod life;
pub(crate) mod output;
pub(crate) mod process;
mod session;
pub(crate) mod socket;
mod table;
#[cfg(test)]
mod testing;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use malai_protocol::audit::printable;
use malai_protocol::codec::Kind;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::Program;
use malai_protocol::session::EndedBy;

use crate::runtime::duty;
use crate::runtime::logging::Log;
use crate::runtime::program;
use crate::runtime::secrecy;
use crate::store::owners::Trusted;

use crate::executor::output::log::Budget;
use crate::executor::output::replay::Replays;
use crate::executor::output::spool::Spools;
use crate::executor::process::lookups::Lookups;
use crate::executor::process::tree::{SHUTDOWN_GRACE, Tree, Trees};
use crate::executor::process::users::Users;
use crate::executor::session::link::{Attachment, Link};
use crate::executor::socket::presence::Presence;
use crate::executor::table::journal::Journal;
use life::Life;
use session::Output;
use table::{Cause, Table};

pub(crate) use crate::executor::process::env::MARKER;
pub(crate) use crate::executor::process::reap::Reaper;

/// How long the executor stays after its daemon went when it has nothing to come back for.
const LINGER: Duration = Duration::from_secs(5);
/// How long it waits for its first daemon.
const FIRST: Duration = Duration::from_secs(10);
/// How long a daemon that orders the shutdown may take to confirm the last ends.
const CONFIRM: Duration = Duration::from_secs(2);
/// How long a shutdown may take in all: TERM, KILL, and the confirmation.
const CLOSING: Duration = Duration::from_secs(9);
/// Open files that the executor allows itself: for all sessions that it takes, and what they leave.
const OPEN_FILES: u64 = 65536;
/// Bytes of a caller's word that a message shows.
const MAX_SHOWN: usize = 200;
/// How long last frames may take at the executor's end.
const LAST: Duration = Duration::from_secs(1);
/// Outputs that are read for processes which commands left behind.
const MAX_TAILS: usize = 1024;
/// Refused plans and attachments, and attachments that another took the place of, that are still to be told so.
const MAX_REFUSALS: usize = 256;
/// Sessions whose output is written to the disk, or read from it, at the same time.
const MAX_DISK: usize = 4;
/// Questions about sessions at once, those included that wait for an end.
const MAX_ASKING: usize = 4096;

/// What an executor is reached by: a Unix socket, or one half of an in-memory duplex.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Duplex for T {}

/// One connection to or from an executor.
pub type Connection = Box<dyn Duplex>;

/// Where connections come from.
#[derive(Debug)]
pub enum Incoming {
    /// The home's executor socket; this process is the executor's own, and all children in it are the executor's.
    Socket,
    /// A daemon, or a test, in the same process.
    Channel(mpsc::Receiver<Connection>),
}

/// How an executor is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose sessions.
    pub home: Home,
    /// Use cgroups where they can be had; otherwise marker mode, which is what other machines have.
    pub cgroups: bool,
    /// Cancelled, it ends all sessions as a daemon's shutdown does, and then itself.
    pub stop: CancellationToken,
    /// Where the executor's own process logs.
    pub log: Option<Log>,
}

/// What all tasks of one executor share.
pub(crate) struct Shared {
    incarnation: Incarnation,
    hostname: String,
    log: Option<Log>,
    /// What it runs, where that is its own.
    program: Option<Program>,
    open_files: Option<u64>,
    trees: Trees,
    reaper: Reaper,
    users: Users,
    lookups: Lookups,
    table: Arc<Table>,
    presence: Presence,
    budget: Arc<Budget>,
    spools: Arc<Spools>,
    /// How many sessions use the disk at once.
    disk: Arc<Semaphore>,
    asking: Arc<Semaphore>,
    replays: Arc<Replays>,
    tails: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    /// Trees of sessions that are over, in which processes that were left behind still lived.
    left: Mutex<VecDeque<Arc<Tree>>>,
    sessions: TaskTracker,
    tasks: TaskTracker,
    /// Everything stops.
    stop: CancellationToken,
}

/// Runs an executor until it is done: ordered to end, or left by its daemon.
///
/// # Errors
/// When the journal or the socket cannot be used: another executor of this home runs, the disk is full or read-only.
pub async fn run(options: Options, incoming: Incoming) -> anyhow::Result<()> {
    let shared = tokio::task::spawn_blocking({
        let options = options.clone();
        let alone = matches!(incoming, Incoming::Socket);
        move || prepare(&options, alone)
    })
    .await
    .context("preparing the executor")??;
    tracing::info!(incarnation = %shared.incarnation, tree = ?shared.trees.kind(), "executor ready");
    shared.keep("expiry", crate::executor::output::replay::expire);
    shared.keep("ends", crate::executor::output::replay::write_ends);
    shared.keep("journal", |shared| table::keep_journal(Arc::clone(&shared.table)));
    let reaper = tokio::spawn(collect_statuses(shared.reaper.clone(), shared.stop.clone()));
    let socket = options.home.executor_socket();
    let served = match incoming {
        Incoming::Socket => {
            let mut socket = crate::executor::socket::serve::bind(&socket)?;
            tokio::select! {
                result = crate::executor::socket::serve::accept(&shared, &mut socket) => result,
                () = stay(&shared, &options.stop) => Ok(()),
            }
        }
        Incoming::Channel(mut connections) => {
            tokio::select! {
                () = crate::executor::socket::serve::take(&shared, &mut connections) => {}
                () = stay(&shared, &options.stop) => {}
            }
            Ok(())
        }
    };
    finish(&shared).await;
    reaper.await.context("collecting statuses")?.context("collecting statuses")?;
    served
}

/// Collects statuses until `stop`.
async fn collect_statuses(reaper: Reaper, stop: CancellationToken) -> std::io::Result<()> {
    let outcome = Mutex::new(Ok(()));
    duty::keep("statuses", stop.clone(), || async {
        let ended = reaper.clone().run(stop.clone()).await;
        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = ended;
    })
    .await;
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the journal, and clears away what an executor that died left. Blocks.
fn prepare(options: &Options, alone: bool) -> anyhow::Result<Arc<Shared>> {
    let directory = options.home.sessions();
    Trusted::own().check(&options.home)?;
    let (journal, left) = Journal::open(&options.home)
        .with_context(|| format!("cannot use the journal of sessions in {}", directory.display()))?;
    let unfinished: Vec<_> = left.unfinished.keys().copied().collect();
    crate::executor::process::tree::kill_leftover(&left.bases, &unfinished);
    let mut bases: Vec<_> =
        left.bases.iter().filter(|base| !crate::executor::process::tree::cgroup::prune(base)).cloned().collect();
    let mut random = [0; 16];
    getrandom::fill(&mut random).context("no random numbers")?;
    let incarnation = Incarnation::from_bytes(random);
    if alone {
        crate::executor::process::tree::start_workers();
    }
    let trees = Trees::detect(options.cgroups, incarnation);
    bases.extend(trees.path().map(ToOwned::to_owned));
    let life = Life::begin(incarnation).context("this machine's clock")?;
    let table = Table::new(journal, left, bases, life)
        .with_context(|| format!("cannot write the journal of sessions in {}", directory.display()))?;
    let spools = Spools::open(&options.home)
        .with_context(|| format!("cannot use the spool of sessions in {}", directory.display()))?;
    let hostname = nix::unistd::gethostname().context("this machine's host name")?;
    Ok(Arc::new(Shared {
        incarnation,
        hostname: hostname.to_string_lossy().into_owned(),
        log: options.log.clone(),
        program: if alone { program::own() } else { None },
        open_files: if alone { raise_open_files() } else { None },
        trees,
        reaper: Reaper::new(alone),
        users: Users::default(),
        lookups: Lookups::default(),
        table,
        presence: Presence::new(),
        budget: Budget::new(),
        spools,
        disk: Arc::new(Semaphore::new(MAX_DISK)),
        asking: Arc::new(Semaphore::new(MAX_ASKING)),
        replays: Arc::default(),
        tails: Arc::new(Semaphore::new(MAX_TAILS)),
        refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        left: Mutex::default(),
        sessions: TaskTracker::new(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    }))
}

/// Sessions need descriptors: takes as many as allowed, and returns the limit that commands get back.
fn raise_open_files() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let wanted = hard.min(OPEN_FILES).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).ok()?;
    Some(soft)
}

/// Returns when the executor's time is over.
async fn stay(shared: &Shared, stop: &CancellationToken) {
    let mut presence = shared.presence.watch();
    let mut changes = shared.table.changes();
    let mut closing = None;
    let mut empty = None;
    loop {
        let state = *presence.borrow_and_update();
        let (live, unconfirmed) = shared.table.counts();
        let until = if shared.table.is_closing() {
            if live == 0 && (unconfirmed == 0 || !state.here) {
                return;
            }
            let closing = *closing.get_or_insert_with(Instant::now) + CLOSING;
            let empty = (live == 0).then(|| *empty.get_or_insert_with(Instant::now) + CONFIRM);
            Some(empty.map_or(closing, |empty| empty.min(closing)))
        } else if state.here {
            None
        } else if state.went() {
            Some(state.since + shared.table.patience().unwrap_or(LINGER))
        } else {
            Some(state.since + FIRST)
        };
        if until.is_some_and(|until| until <= Instant::now()) {
            if live == 0 || shared.table.is_closing() {
                return;
            }
            let reason = Some("the daemon of that machine went and did not come back".to_owned());
            shared.table.end_all(&Cause { by: EndedBy::Grace, reason, grace: SHUTDOWN_GRACE }, true);
            continue;
        }
        // Both senders live as long as `shared`.
        tokio::select! {
            _ = presence.changed() => {}
            _ = changes.changed() => {}
            () = sleep_until(until.unwrap_or_else(far)) => {}
            () = stop.cancelled(), if !shared.table.is_closing() => {
                shared.shut_down("the executor of that machine was stopped".to_owned());
            }
        }
    }
}

/// A time that is looked at again when it comes.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Lets last frames out, then stops all tasks. What still lives then is in the journal as unfinished.
async fn finish(shared: &Shared) {
    shared.table.let_go();
    shared.sessions.close();
    shared.tasks.close();
    if timeout(LAST, shared.sessions.wait()).await.is_err() {
        tracing::debug!("some callers did not close");
    }
    shared.stop.cancel();
    shared.sessions.wait().await;
    shared.tasks.wait().await;
    tracing::info!("executor done");
}

impl Shared {
    /// Starts a task that ends, at the latest, with the executor.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stop.clone().run_until_cancelled_owned(task);
        self.tasks.spawn(async move {
            if stopped.await.is_none() {
                tracing::debug!("stopped with the executor");
            }
        });
    }

    /// Does this until the executor ends.
    fn keep<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: impl Fn(Arc<Self>) -> F + Send + 'static,
    ) {
        let shared = Arc::clone(self);
        self.spawn(duty::keep(name, self.stop.clone(), move || work(Arc::clone(&shared))));
    }

    /// Ends all sessions and takes no new one: then the executor ends.
    fn shut_down(&self, reason: String) {
        tracing::info!(reason, "shutting down");
        self.table.end_all(&Cause { by: EndedBy::Shutdown, reason: Some(reason), grace: SHUTDOWN_GRACE }, true);
    }

    /// Tells an attachment that it is not let in.
    fn turn_away(&self, attachment: Attachment, failure: &Failure) {
        let mut link = Link::of(attachment);
        link.control(Kind::Refused, failure);
        self.dismiss(link);
    }

    /// Has an attachment's last frames delivered, if not too many wait for theirs.
    fn dismiss(&self, link: Link) {
        if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
            self.spawn(async move {
                link.deliver().await;
                drop(permit);
            });
        }
    }

    /// Sees to what a session leaves: output that others still write, and its tree, once that is empty.
    fn leave(&self, output: Output, tree: Arc<Tree>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push_back(tree);
        // The newest, and some older ones that may have become empty.
        left.rotate_right(1);
        for _ in 0..left.len().min(16) {
            if let Some(tree) = left.pop_front()
                && !tree.remove()
            {
                left.push_back(tree);
            }
        }
        drop(left);
        if output.is_closed() {
            return;
        }
        match self.tails.clone().try_acquire_owned() {
            Ok(permit) => self.spawn(async move {
                output.discard().await;
                drop(permit);
            }),
            Err(_) => tracing::warn!("too many outputs were left open: this one is closed"),
        }
    }
}

/// Tells a caller why it gets nothing.
async fn refuse(mut link: Link, failure: &Failure) {
    link.control(Kind::Refused, failure);
    link.deliver().await;
}

/// Bytes from outside for a message: printable, and not too long.
fn shown(bytes: &[u8]) -> String {
    let text = printable(bytes.get(..MAX_SHOWN).unwrap_or(bytes));
    if bytes.len() > MAX_SHOWN { text + "…" } else { text }
}

/// The executor as a process of its own, which logs there: the hidden subcommand `malai executor`.
///
/// # Errors
/// As [`run`].
pub fn main(home: Home, log: Option<Log>) -> anyhow::Result<()> {
    // Files and the socket are for this user alone; commands get their own umask.
    secrecy::close_files();
    // What callers sent may be in a core. The rest of the memory stays open to this user, who may do what this process may:
    // it holds no key, and finds its own children by what /proc shows of them.
    secrecy::give_no_core();
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the subreaper of sessions")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = tokio::spawn(crate::executor::socket::serve::follow_signals(stop.clone(), log.clone()));
        let result = run(Options { home, cgroups: true, stop: stop.clone(), log }, Incoming::Socket).await;
        stop.cancel();
        signals.await.context("signals")?.context("signals")?;
        result
    })
}
