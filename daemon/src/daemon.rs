//! The only place that wires: bind, run, shutdown.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::Ended;
use nix::unistd::Uid;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::clusters::Clusters;
use crate::clusters::host::Host;
use crate::clusters::peers::known;
use crate::net::counters::Registry;
use crate::requests::Context;
use crate::requests::socket;
use crate::runtime::alarms::AlarmCause;
use crate::runtime::backoff::Said;
use crate::runtime::blocking::blocking;
use crate::runtime::duty;
use crate::runtime::logging::Log;
use crate::runtime::random::random;
use crate::runtime::user::own_user_name;
use crate::store::audit::{self, Audit};
use crate::store::lock::{self, Lock, Part};
use crate::store::settings::Settings;
use crate::store::socket::Socket;
use crate::supervisor::slot::{ExecutorSlot, Ledger};
use crate::supervisor::{Event, Executor};
use crate::target::ended::{Ends, Owed};
use crate::target::sessions::Sessions;

/// Bounds the ends of sessions that wait to be written down. The executor waits with the next one.
const MAX_WAITING_EVENTS: usize = 256;
/// Sets how often the cache of last known addresses is written.
const ADDRESS_STORE_INTERVAL: Duration = Duration::from_secs(300);
/// Sets how often malai checks whether an executor of another program has become idle, while there is one.
const EXECUTOR_REPLACE_INTERVAL: Duration = Duration::from_secs(1);
/// Sets how often malai tries to start an executor while sessions lack their ends, which only the next one can report.
const EXECUTOR_RESTART_INTERVAL: Duration = Duration::from_secs(30);
/// Bounds how long sessions of an executor inside this process may take to end.
const SESSIONS_END_TIMEOUT: Duration = Duration::from_secs(4);

/// Says how a daemon is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Is the home of the daemon.
    pub home: Home,
    /// Whether the process is an agent, which a CLI started because no daemon ran: it only calls, and ends when it is not
    /// needed.
    pub agent: bool,
    /// Holds the program and arguments that start the executor; absent = it runs inside this process.
    pub executor: Option<(PathBuf, Vec<OsString>)>,
    /// Is where this process logs, so that it can say what its log lacks; absent = not known.
    pub log: Option<Log>,
}

/// Is a daemon that is bound: it holds the lock, and its sockets are there.
#[derive(Debug)]
pub struct Daemon {
    socket: Socket,
    parts: Parts,
}

/// Is a daemon that ran, and has to be shut down.
#[derive(Debug)]
#[must_use = "its endpoints are closed in good order by `shutdown`"]
pub struct Stopped(Parts);

/// Holds all of a daemon but the socket of the CLIs.
#[derive(Debug)]
struct Parts {
    context: Arc<Context>,
    host: Arc<Host>,
    clusters: Arc<Clusters>,
    caller: Arc<Caller>,
    events: mpsc::Receiver<Event>,
    /// Is an end that was reported while an executor starts, whose sessions have to be taken over first.
    told: Option<Ended>,
    owed: mpsc::UnboundedReceiver<Owed>,
    ends: Ends,
    /// Remembers whether the log says that an executor runs again.
    executor_said: Arc<Mutex<Said<bool>>>,
    reloads: mpsc::UnboundedReceiver<String>,
    idle: Option<Duration>,
    stop: CancellationToken,
    lock: Arc<Lock>,
}

impl Daemon {
    /// Takes the lock, reads and checks everything, and binds the sockets. A running agent is asked to leave. A cluster
    /// that cannot be used does not stop the others: [`Daemon::warnings`] names it.
    ///
    /// # Errors
    /// [`Failure`]: another daemon runs, the home or the settings cannot be used, the executor does not start.
    pub async fn bind(options: Options) -> Result<Self, Failure> {
        let part = if options.agent { Part::Agent } else { Part::Daemon };
        let lock = lock::take_over(&options.home, part).await?;
        let settings = Settings::load(&options.home)?;
        let idle = options.agent.then(|| settings.agent_idle());
        let (sender, events) = mpsc::channel(MAX_WAITING_EVENTS);
        let (owe, mut owed) = mpsc::unbounded_channel();
        let (reload, reloads) = mpsc::unbounded_channel();
        let sessions = Arc::new(Sessions::new(owe));
        let host = Arc::new(Host {
            open: CancellationToken::new(),
            reload,
            rebuilds: Default::default(),
            agent: options.agent,
            boot: incarnation()?,
            user: own_user_name()?,
            root: Uid::effective().is_root(),
            audit: Arc::new(Audit::open(&options.home)?),
            metrics: Registry::default(),
            log: options.log,
            executor: ExecutorSlot::new(options.home.clone(), options.executor, sender, Arc::clone(&sessions) as _),
            sessions,
            home: options.home,
        });
        let clusters = Clusters::new(Arc::clone(&host), settings);
        // The executor first: what it still runs is decided again, and what ended without a daemon is written down,
        // before a session is accepted.
        if !host.agent {
            host.executor.get_installed().await?;
        }
        clusters.load_all().await?;
        let mut ends = Ends::default();
        if !host.agent {
            clusters.take_over().await;
            while let Ok(end) = owed.try_recv() {
                ends.write(&clusters, end).await;
            }
        }
        host.open.cancel();
        let stop = CancellationToken::new();
        let caller = Caller::new(Arc::clone(&clusters));
        let context = Context::new(Arc::clone(&clusters), Arc::clone(&caller), stop.clone());
        let socket = Socket::bind(&host.home.socket())?;
        let (lock, executor_said) = (Arc::new(lock), Arc::default());
        let parts = Parts {
            context,
            host,
            clusters,
            caller,
            events,
            told: None,
            owed,
            ends,
            executor_said,
            reloads,
            idle,
            stop,
            lock,
        };
        Ok(Self { socket, parts })
    }

    /// Returns what must be said at the start: which clusters cannot be used, and which wait.
    pub fn warnings(&self) -> Vec<String> {
        self.parts.clusters.warnings()
    }

    /// Returns what ends [`Daemon::run`] when it is cancelled, as SIGTERM does.
    pub fn stop_token(&self) -> CancellationToken {
        self.parts.stop.clone()
    }

    /// Serves until a request to stop comes. Returns how that went, and what has to be shut down.
    pub async fn run(self) -> (Stopped, Result<(), Failure>) {
        let Self { socket, mut parts } = self;
        let outcome = parts.run(socket).await;
        (Stopped(parts), outcome)
    }

    /// Shuts down what never ran.
    pub async fn shutdown(self) {
        self.parts.shutdown().await;
    }
}

impl Stopped {
    /// Stops, in this order: no new request is accepted, the socket is removed, and the connections of CLIs are closed (the end
    /// of [`Daemon::run`]); the ends that were reported are written; connections close, so that attachments are lost;
    /// endpoints close; the ends of requests that were given up over this are written; the lock is released.
    ///
    /// The executor and its sessions are left to the next daemon, unless it runs inside this process. The next
    /// daemon writes the ends from then on.
    pub async fn shutdown(self) {
        self.0.shutdown().await;
    }
}

impl Parts {
    /// Serves CLIs in a task of its own: however long something takes here, they are accepted.
    async fn run(&mut self, socket: Socket) -> Result<(), Failure> {
        let lock = Arc::clone(&self.lock);
        let mut serving = tokio::spawn(socket::serve(socket, lock, Arc::clone(&self.context), self.stop.clone()));
        let clusters = Arc::clone(&self.clusters);
        self.keep("audit", move |host| {
            let clusters = Arc::clone(&clusters);
            audit::keep_paying(Arc::clone(&host.audit), host.home.clone(), move |text| {
                for membership in clusters.ready() {
                    membership.set_alarm(AlarmCause::FullDisk, text.clone());
                }
            })
        });
        self.keep("executor of another program", replace_outdated);
        let mut remember = tokio::time::interval(ADDRESS_STORE_INTERVAL);
        let mut restart = tokio::time::interval(EXECUTOR_RESTART_INTERVAL);
        let host = Arc::clone(&self.host);
        loop {
            let retry_at = self.ends.retry_at();
            tokio::select! {
                served = &mut serving => return served.map_err(unserved),
                Some(event) = self.events.recv(), if self.told.is_none() => self.event(event),
                () = host.executor.settled(), if self.told.is_some() => self.write_told().await,
                Some(end) = self.owed.recv() => self.ends.write(&self.clusters, end).await,
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.ends.retry(&self.clusters).await;
                }
                _ = restart.tick() => if self.has_sessions() {
                    self.start_executor();
                },
                Some(alias) = self.reloads.recv() => self.clusters.reload(alias),
                _ = remember.tick() => self.remember(),
                () = self.context.idle(self.idle), if !self.stop.is_cancelled() => {
                    tracing::info!("no request for a while: the agent leaves");
                    self.stop.cancel();
                }
            }
        }
    }

    /// Runs this beside everything else, until the daemon stops.
    fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl Fn(Arc<Host>) -> F + Send + 'static,
    ) {
        let (host, stop) = (Arc::clone(&self.host), self.stop.clone());
        let duty = duty::keep(name, stop.clone(), move || work(Arc::clone(&host)));
        tokio::spawn(stop.run_until_cancelled_owned(duty));
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Ended(end) => self.told = Some(end),
            Event::Lost => {
                tracing::error!("the executor was lost");
                // The next one reports from the journal what became of the sessions.
                self.start_executor();
            }
        }
    }

    async fn write_told(&mut self) {
        if let Some(end) = self.told.take() {
            self.ends.write(&self.clusters, Owed::Told(Box::new(end))).await;
        }
    }

    fn has_sessions(&self) -> bool {
        !self.host.sessions.is_empty()
    }

    /// Starts an executor in the background if none runs: it may take ten seconds.
    fn start_executor(&self) {
        let (host, said) = (Arc::clone(&self.host), Arc::clone(&self.executor_said));
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            host.executor.lost().await;
            let started = host.executor.get().await;
            let is_news = said.lock().is_news(started.is_ok());
            if let (Err(failure), true) = (started, is_news) {
                tracing::error!("no new executor, and it is tried again: {failure}");
            }
        }));
    }

    /// Writes the ends that were reported so far.
    async fn write_ends(&mut self) {
        self.write_told().await;
        while let Ok(event) = self.events.try_recv() {
            if let Event::Ended(end) = event {
                self.ends.write(&self.clusters, Owed::Told(Box::new(end))).await;
            }
        }
        while let Ok(end) = self.owed.try_recv() {
            self.ends.write(&self.clusters, end).await;
        }
        self.ends.retry(&self.clusters).await;
    }

    fn remember(&self) {
        for membership in self.clusters.ready() {
            known::remember(&membership);
        }
    }

    async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(executor) = self.host.executor.current().filter(|executor| executor.pid().is_none()) {
            self.end_sessions(&executor).await;
        }
        self.write_ends().await;
        self.close_clusters().await;
        self.write_ends().await;
        if self.host.executor.has_stopped() {
            self.host.sessions.lose_others(&HashSet::new());
            self.write_ends().await;
        }
        let host = Arc::clone(&self.host);
        if let Err(failure) = blocking(move || host.audit.pay()).await {
            tracing::error!("the audit lacks lines: {failure}");
        }
        drop(self.lock);
    }

    /// Closes connections and endpoints; meanwhile ends are taken, so that none that is reported waits for this.
    async fn close_clusters(&mut self) {
        let (clusters, caller) = (Arc::clone(&self.clusters), Arc::clone(&self.caller));
        let closing = async {
            clusters.close_connections();
            caller.shutdown().await;
            clusters.shutdown().await;
        };
        tokio::pin!(closing);
        loop {
            tokio::select! {
                () = &mut closing => return,
                Some(event) = self.events.recv() => if let Event::Ended(end) = event {
                    self.ends.write(&self.clusters, Owed::Told(Box::new(end))).await;
                },
                Some(end) = self.owed.recv() => self.ends.write(&self.clusters, end).await,
            }
        }
    }

    /// Ends an executor that cannot outlive this process; its ends are written down.
    async fn end_sessions(&mut self, executor: &Executor) {
        let end = executor.shutdown("the daemon on the target was stopped");
        tokio::pin!(end);
        let deadline = tokio::time::sleep(SESSIONS_END_TIMEOUT);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                result = &mut end => {
                    match result {
                        Ok(()) => self.host.executor.note_stopped(),
                        Err(failure) => tracing::warn!("the executor did not end in good order: {failure}"),
                    }
                    break;
                }
                Some(event) = self.events.recv() => if let Event::Ended(end) = event {
                    self.ends.write(&self.clusters, Owed::Told(Box::new(end))).await;
                },
                () = &mut deadline => {
                    tracing::error!("sessions are still ending; the executor goes on without the daemon");
                    break;
                }
            }
        }
    }
}

/// Replaces an executor of another program as soon as it runs no session.
async fn replace_outdated(host: Arc<Host>) {
    while host.executor.refresh().await {
        tokio::time::sleep(EXECUTOR_REPLACE_INTERVAL).await;
    }
}

/// Returns the failure that ends a daemon that no CLI can reach any more.
fn unserved(error: tokio::task::JoinError) -> Failure {
    Failure::new(Kind::Internal, format!("the daemon ends, because it cannot serve the command line any more: {error}"))
        .hint("start it again: malai daemon; what failed is in its log")
}

fn incarnation() -> Result<Incarnation, Failure> {
    random().map(Incarnation::from_bytes)
}
