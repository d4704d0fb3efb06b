//! What all clusters of one daemon share: who it runs as, the audit, the executor.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use malai_protocol::access::Me;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::{Incarnation, MachineId};
use malai_protocol::local::LostLines;
use malai_protocol::plan::{Program, SessionName};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clusters::peers::recover::Rebuilds;
use crate::net::counters::Registry;
use crate::runtime::logging::Log;
use crate::runtime::program;
use crate::store::audit::{self, Audit};
use crate::supervisor::{Event, Executor, Mode, StartOptions};
use crate::target::ended::Owed;
use crate::target::live::Tables;

/// What all clusters of one daemon share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Where everything is.
    pub(crate) home: Home,
    /// This process is an agent: it only calls, and runs commands for nobody but its own user.
    pub(crate) agent: bool,
    /// The random name of this life of the daemon.
    pub(crate) boot: Incarnation,
    /// The user that the daemon runs as.
    pub(crate) user: String,
    /// That user is root.
    pub(crate) root: bool,
    /// The audit.
    pub(crate) audit: Arc<Audit>,
    /// The executor.
    pub(crate) executor: ExecutorSlot,
    /// What is counted.
    pub(crate) metrics: Registry,
    /// Where this process logs.
    pub(crate) log: Option<Log>,
    /// Cancelled when sessions of an earlier daemon were taken over: before, no stream of a session is served.
    pub(crate) open: CancellationToken,
    /// Aliases of clusters that have to be taken in anew from the disk.
    pub(crate) reload: mpsc::UnboundedSender<String>,
    /// How often endpoints were rebuilt with which nobody was heard.
    pub(crate) rebuilds: Rebuilds,
}

impl Shared {
    /// Asks the daemon to take a cluster in anew: it got its first config, or its `[network]` changed.
    pub(crate) fn reload(&self, alias: &str) {
        if self.reload.send(alias.to_owned()).is_err() {
            tracing::debug!(cluster = alias, "not taken in anew: the daemon stops");
        }
    }

    /// Returns what this process's log lacks, and the executor's, if that tells.
    pub(crate) async fn lost_log(&self) -> Option<LostLines> {
        let own = self.log.as_ref().and_then(Log::lost).filter(|lost| lost.lines > 0);
        let executors = match self.executor.current() {
            Some(executor) => executor.lost_log().await.filter(|lost| lost.lines > 0),
            None => None,
        };
        match (own, executors) {
            (Some(own), Some(other)) => Some(LostLines { lines: own.lines.saturating_add(other.lines), why: own.why }),
            (own, other) => own.or(other),
        }
    }

    /// This machine as the access rules see it.
    pub(crate) fn me<'a>(&'a self, id: &'a MachineId) -> Me<'a> {
        Me { id, daemon_user: &self.user, root: self.root }
    }
}

/// The executor, started when it is first needed and again when it died.
#[derive(Debug)]
pub(crate) struct ExecutorSlot {
    home: Home,
    program: Option<(PathBuf, Vec<OsString>)>,
    /// That program, as it was when the daemon started.
    installed: Option<Program>,
    events: mpsc::Sender<Event>,
    /// Ends that no control connection tells of: those of an earlier daemon, of an executor that was lost, of requests
    /// that were given up. As many as an executor's table and this daemon's tables hold.
    owed: mpsc::UnboundedSender<Owed>,
    /// An executor was met before in this life of the daemon.
    met: AtomicBool,
    /// The executor ended, and there will be no other.
    stopped: AtomicBool,
    tables: Arc<Tables>,
    /// Locked while one is started or replaced, which may take ten seconds.
    running: Mutex<Option<Executor>>,
    /// The same, for those who do not wait for that: absent meanwhile.
    current: SyncMutex<Option<Executor>>,
}

impl ExecutorSlot {
    /// An empty slot. `program` starts the executor's process; without it the executor runs inside this one.
    pub(crate) fn new(
        home: Home,
        program: Option<(PathBuf, Vec<OsString>)>,
        events: mpsc::Sender<Event>,
        owed: mpsc::UnboundedSender<Owed>,
        tables: Arc<Tables>,
    ) -> Self {
        let installed = program.as_ref().and_then(|(program, _)| program::at(program));
        let (running, current) = (Mutex::default(), SyncMutex::default());
        let (met, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { home, program, installed, events, owed, met, stopped, tables, running, current }
    }

    /// Has an end written down.
    pub(crate) fn owe(&self, owed: Owed) {
        if self.owed.send(owed).is_err() {
            tracing::debug!("the daemon stops before an end was written down; the next one sees that it is missing");
        }
    }

    /// The executor, started if none runs.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be started.
    pub(crate) async fn get(&self) -> Result<Executor, Failure> {
        let mut running = self.running.lock().await;
        match running.as_ref() {
            Some(executor) if !executor.is_lost_untold() => Ok(executor.clone()),
            _ => {
                self.forget(&mut running);
                self.start(&mut running).await
            }
        }
    }

    /// The same; one of another program is replaced first where nothing needs it any more.
    ///
    /// # Errors
    /// As [`ExecutorSlot::get`].
    pub(crate) async fn get_installed(&self) -> Result<Executor, Failure> {
        self.get().await?;
        self.refresh().await;
        self.get().await
    }

    async fn start(&self, running: &mut Option<Executor>) -> Result<Executor, Failure> {
        let mode = match &self.program {
            Some((program, args)) => Mode::Process { program: program.clone(), args: args.clone() },
            None => Mode::InProcess,
        };
        let options = StartOptions { home: self.home.clone(), mode, events: self.events.clone() };
        let executor = Executor::start(options).await?;
        self.adopt(&executor).await;
        self.note(Some(executor.clone()));
        *running = Some(executor.clone());
        Ok(executor)
    }

    /// Takes over what the executor has from before: ends that are to be written down, and sessions that still run.
    /// Their callers were lost with the daemon that they came through, and come back to this one. What was sent to another
    /// executor, and what this one has not, is lost; a plan for this one comes only when this has returned.
    async fn adopt(&self, executor: &Executor) {
        let sessions = executor.sessions();
        let live: Vec<_> = sessions.live.iter().map(|live| live.session).collect();
        let ended: Vec<_> = sessions.ended.iter().map(|ended| ended.session).collect();
        let unended = match self.met.load(Ordering::Relaxed) {
            true => None,
            false => Some(self.read_unended(live.clone(), ended.clone()).await),
        };
        // From here on nothing is waited for: the caller that asked for the executor may leave at any time, and the next one
        // must find all of this done, or nothing of it.
        for live in &sessions.live {
            tracing::info!(session = %live.session.id.short(), cluster = %live.cluster.short(), "goes on");
            self.tables.of(live.cluster).adopt(live);
        }
        self.met.store(true, Ordering::Relaxed);
        if let Some(unended) = unended {
            return self.adopt_first(executor, unended);
        }
        for ended in sessions.ended.iter().cloned() {
            self.owe(Owed::Told(Box::new(ended)));
        }
        self.give_up_others(&live.into_iter().chain(ended).collect());
    }

    /// Notes that the executor was ended, and that the daemon follows.
    pub(crate) fn note_stopped(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether the executor was ended for good: what it did not tell, it never will.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Has the ends written down of all planned sessions but these: the executor that they were sent to is gone.
    pub(crate) fn give_up_others(&self, known: &HashSet<SessionName>) {
        for table in self.tables.all() {
            for (name, request) in table.claim_others(known) {
                tracing::error!(session = %name.id.short(), cluster = %table.cluster().short(), "lost with its executor");
                self.owe(Owed::lost(table.cluster(), name, request));
            }
        }
    }

    async fn read_unended(&self, live: Vec<SessionName>, ended: Vec<SessionName>) -> audit::Unended {
        let home = self.home.clone();
        let read = tokio::task::spawn_blocking(move || audit::unended(&home, &live, &ended));
        read.await.map_err(std::io::Error::other).flatten().unwrap_or_else(|error| {
            tracing::error!("the audit cannot be read for ends that are missing: {error}");
            audit::Unended::default()
        })
    }

    /// Does the same in a daemon that has no table of an earlier one's sessions: what is owed, the audit tells.
    fn adopt_first(&self, executor: &Executor, unended: audit::Unended) {
        for ended in &executor.sessions().ended {
            // A daemon that was killed may have written it, and not told.
            let is_written = unended.written.contains(&ended.session);
            self.owe(if is_written { Owed::Told(Box::new(ended.clone())) } else { Owed::end(ended) });
        }
        for start in unended.starts {
            tracing::error!(session = %start.session, cluster = %start.cluster, "started, and no executor knows of it any more");
            self.owe(Owed::unknown(start));
        }
    }

    /// Replaces an executor of another program, as an upgrade leaves one, when nothing needs it any more. Whether it is to
    /// be tried again.
    pub(crate) async fn refresh(&self) -> bool {
        let Some((program, _)) = &self.program else { return false };
        let mut running = self.running.lock().await;
        // A program that took the place of this daemon's own is for the next daemon.
        let installed = self.installed.filter(|installed| program::at(program) == Some(*installed));
        let (Some(executor), Some(installed)) = (running.as_ref(), installed) else { return false };
        if executor.program().is_none_or(|runs| runs == installed) {
            return false;
        }
        // Whoever has the executor in hand for a new session is in a table already; whoever comes later waits for the lock.
        if self.tables.all().iter().any(|table| table.len() > 0) {
            return true;
        }
        match executor.retire().await {
            Ok(false) => return true,
            Ok(true) => tracing::info!("the executor of another malai had nothing left to do: it is replaced"),
            Err(failure) => {
                tracing::warn!("the executor of another malai was not replaced: {failure}");
                if !executor.is_gone() {
                    return true;
                }
            }
        }
        self.forget(&mut running);
        if let Err(failure) = self.start(&mut running).await {
            tracing::error!("no new executor: {failure}; the next session tries again");
        }
        false
    }

    /// The tables of live sessions.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Waits while the sessions of an executor that was met just now are taken over.
    pub(crate) async fn settled(&self) {
        drop(self.running.lock().await);
    }

    /// The executor, if one runs. Waits while one is started or replaced.
    pub(crate) async fn running(&self) -> Option<Executor> {
        self.running.lock().await.clone()
    }

    /// The executor, if one runs now: nothing is waited for.
    pub(crate) fn current(&self) -> Option<Executor> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The life of the executor, if one runs.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.current().map(|executor| executor.incarnation())
    }

    fn note(&self, executor: Option<Executor>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = executor;
    }

    /// It died: the next [`ExecutorSlot::get`] starts another.
    pub(crate) async fn lost(&self) {
        let mut running = self.running.lock().await;
        // Another one may have been met already.
        if running.as_ref().is_none_or(Executor::is_gone) {
            self.forget(&mut running);
        }
    }

    fn forget(&self, running: &mut Option<Executor>) {
        self.note(None);
        *running = None;
    }
}
