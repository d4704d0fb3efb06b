//! The place of the one executor that a daemon has: started when it is needed, replaced when its program is.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use malai_protocol::audit::Entry;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{Ended, Live, Program, SessionName};
use tokio::sync::{Mutex, mpsc};

use super::{Event, Executor, Mode, StartOptions};
use crate::runtime::program;
use crate::store::audit;

/// Says what a daemon does with the sessions that an executor reports when it is met, and with those that are lost.
pub(crate) trait Ledger: fmt::Debug + Send + Sync {
    /// Takes in a session that an earlier daemon began and that still runs.
    fn adopt(&self, live: &Live);
    /// Notes that an executor reported this end; it is in the audit already where `is_written` says so.
    fn report(&self, ended: &Ended, is_written: Option<bool>);
    /// Notes that the session of this start line is unknown to the executor.
    fn lose(&self, start: Entry);
    /// Notes that all planned sessions but these are lost with their executor.
    fn lose_others(&self, known: &HashSet<SessionName>);
    /// Returns whether no session runs, nor is on its way to.
    fn is_empty(&self) -> bool;
}

/// Holds the executor. It is started when it is first needed, and again when it died.
#[derive(Debug)]
pub(crate) struct ExecutorSlot {
    home: Home,
    program: Option<(PathBuf, Vec<OsString>)>,
    /// Is that program as it was when the daemon started.
    installed: Option<Program>,
    events: mpsc::Sender<Event>,
    /// An executor was met before by this daemon.
    met: AtomicBool,
    /// The executor ended, and there will be no other.
    stopped: AtomicBool,
    ledger: Arc<dyn Ledger>,
    /// Is locked while one is started or replaced, which may take ten seconds.
    running: Mutex<Option<Executor>>,
    /// Is the same for those that do not wait for that: absent meanwhile.
    current: parking_lot::Mutex<Option<Executor>>,
}

impl ExecutorSlot {
    /// Makes an empty slot. `program` starts the executor's process; without it the executor runs inside this one.
    pub(crate) fn new(
        home: Home,
        program: Option<(PathBuf, Vec<OsString>)>,
        events: mpsc::Sender<Event>,
        ledger: Arc<dyn Ledger>,
    ) -> Self {
        let installed = program.as_ref().and_then(|(program, _)| program::at(program));
        let (running, current) = (Mutex::default(), parking_lot::Mutex::default());
        let (met, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { home, program, installed, events, met, stopped, ledger, running, current }
    }

    /// Returns the executor, started if none runs.
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

    /// Returns the executor, as [`ExecutorSlot::get`] does. One of another program that runs no session is replaced first.
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
            self.ledger.adopt(live);
        }
        self.met.store(true, Ordering::Relaxed);
        if let Some(unended) = unended {
            return self.adopt_first(executor, unended);
        }
        for ended in &sessions.ended {
            self.ledger.report(ended, None);
        }
        self.ledger.lose_others(&live.into_iter().chain(ended).collect());
    }

    /// Notes that the executor was ended, and that the daemon ends too.
    pub(crate) fn note_stopped(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns whether the executor was ended for good: what it did not report, it never will.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
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
            self.ledger.report(ended, Some(unended.written.contains(&ended.session)));
        }
        for start in unended.starts {
            tracing::error!(session = %start.session, cluster = %start.cluster, "started, and no executor knows of it any more");
            self.ledger.lose(start);
        }
    }

    /// Replaces an executor of another program, as an upgrade leaves one, when it runs no session. Returns whether to try
    /// again.
    pub(crate) async fn refresh(&self) -> bool {
        let Some((program, _)) = &self.program else { return false };
        let mut running = self.running.lock().await;
        // A program that took the place of this daemon's own is for the next daemon.
        let installed = self.installed.filter(|installed| program::at(program) == Some(*installed));
        let (Some(executor), Some(installed)) = (running.as_ref(), installed) else { return false };
        if executor.program().is_none_or(|runs| runs == installed) {
            return false;
        }
        // A session that is being admitted is in a table already, and a later one waits for the lock above.
        if !self.ledger.is_empty() {
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

    /// Waits while the sessions of an executor that was met just now are taken over.
    pub(crate) async fn settled(&self) {
        drop(self.running.lock().await);
    }

    /// Returns the executor, if one runs. Waits while one is started or replaced.
    pub(crate) async fn running(&self) -> Option<Executor> {
        self.running.lock().await.clone()
    }

    /// Returns the executor, if one runs now, without waiting.
    pub(crate) fn current(&self) -> Option<Executor> {
        self.current.lock().clone()
    }

    /// Returns the incarnation of the executor, if one runs.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.current().map(|executor| executor.incarnation())
    }

    fn note(&self, executor: Option<Executor>) {
        *self.current.lock() = executor;
    }

    /// Notes that the executor died: the next [`ExecutorSlot::get`] starts another.
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
