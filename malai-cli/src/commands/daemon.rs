//! `malai daemon`.

use std::time::Duration;

use malai_daemon::runtime::duty::watch_panics;
use malai_daemon::runtime::logging::Log;
use malai_daemon::store::lock::{self, Holder};
use malai_daemon::{Daemon as Service, Options, offline};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{DaemonStatus, LostLines, Request, Response};
use malai_protocol::plan::Tree;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Context, executor::Executor};
use crate::background::{self, Child, Report};
use crate::client;
use crate::logging;
use crate::output::{self, Output};

/// How long a shutdown may take before the process ends without it.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// How long `daemon stop` waits for the lock: ending sessions takes up to 5 s, and the shutdown as long.
const STOPPING: Duration = Duration::from_secs(15);
/// How long a look may wait for a greeting.
const GREETING: Duration = Duration::from_secs(1);
/// Bounds how long a process waits at its end for its log to be written.
pub(super) const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at the lock.
const LOOK: Duration = Duration::from_millis(20);

/// Run the daemon of all clusters of this home
///
/// Checks everything, goes to the background, and says when it is ready; its log is daemon.log in $MALAI_HOME.
///
/// MALAI_LOG in the environment says what is logged: a level (off, error, warn, info, debug, trace), or parts of the program
/// with their levels, such as warn,malai_daemon=debug. At SIGHUP the daemon opens its log again. At SIGTERM it ends, and
/// leaves its sessions to the next one.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Daemon {
    /// Stay in the foreground and log to standard error: for a service manager
    #[arg(long)]
    foreground: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// End its sessions, then the daemon, and wait until it is gone
    Stop {
        /// Let the sessions go on: the next daemon takes them over
        #[arg(long)]
        keep_sessions: bool,
    },
    /// Replace the daemon by a new one in the background; the sessions go on
    ///
    /// One that a service manager started is restarted by that: systemctl restart malai.
    Restart,
    /// Tell whether a daemon is ready: 0 when it is, 1 when not
    Status,
    /// What `malai daemon` starts
    #[command(hide = true)]
    Detached,
}

impl Daemon {
    /// # Errors
    /// Why it does not run, or cannot be stopped.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            None if self.foreground => serve_in_foreground(cx),
            None => start(cx),
            Some(What::Stop { keep_sessions }) => stop(cx, keep_sessions),
            Some(What::Restart) => restart(cx),
            Some(What::Status) => status(cx),
            Some(What::Detached) => {
                background::detach()?;
                serve_in_background(&cx.home, false)
            }
        }
    }
}

/// Starts a detached daemon and tells what it says until it is ready.
fn start(cx: &Context) -> Result<u8, Failure> {
    client::block_on(async {
        let mut child = Child::start(&cx.home, &["daemon", "detached"])?;
        while let Some(report) = child.next().await {
            match report {
                Report::Warning(words) => cx.out.note(&format!("warning: {words}")),
                Report::Failed(failure) => return Err(failure),
                Report::Ready { pid } => {
                    cx.out.note(&format!("daemon ready, pid {pid}"));
                    if cx.out.json {
                        cx.out.document(&serde_json::json!({ "ready": true, "pid": pid }))?;
                    }
                    return Ok(0);
                }
            }
        }
        Err(Failure::new(Kind::Internal, "the daemon ended before it was ready")
            .hint(format!("see what it says: malai daemon --foreground, or {}", cx.home.log().display())))
    })
}

fn serve_in_foreground(cx: &Context) -> Result<u8, Failure> {
    let log = Log::to_stderr();
    let says = Said { log: &log, out: cx.out };
    // What is wrong with the filter is in that log.
    logging::start(&log);
    watch_panics();
    let outcome = serve(&cx.home, false, &log, |report| {
        match report {
            Report::Warning(words) => says.note(&format!("warning: {words}")),
            Report::Ready { pid } => says.note(&format!("daemon ready, pid {pid}")),
            Report::Failed(_) => {}
        }
        Ok(())
    });
    Ok(says.end(outcome))
}

/// Says something to the person who runs a daemon or relay in the foreground. The words go the way of the log, and so
/// wait for no reader.
pub(super) struct Said<'a> {
    pub(super) log: &'a Log,
    pub(super) out: Output,
}

impl Said<'_> {
    /// Writes a note.
    pub(super) fn note(&self, text: &str) {
        self.log.say(output::note(text).as_bytes());
    }

    /// Waits until the log is written, reports a failure, and returns the exit code.
    pub(super) fn end(&self, outcome: Result<u8, Failure>) -> u8 {
        self.log.flush(LOG_FLUSH_TIMEOUT);
        outcome.unwrap_or_else(|failure| {
            self.out.last_words(&failure);
            self.out.last_document(&failure);
            failure.kind.exit_code()
        })
    }
}

/// In a process of [`Child::start`]: serves, and tells the parent how far it came.
///
/// # Errors
/// Why it could not run; the parent was told, if it was still waiting.
pub(super) fn serve_in_background(home: &Home, agent: bool) -> Result<u8, Failure> {
    let log = Log::to_file(home);
    let wrong = logging::start(&log);
    watch_panics();
    tell_of_log(home, &log, wrong)?;
    let mut is_ready = false;
    let outcome = serve(home, agent, &log, |report| {
        background::tell(report)?;
        if matches!(report, Report::Ready { .. }) {
            background::let_go()?;
            is_ready = true;
        }
        Ok(())
    });
    if let Err(failure) = &outcome {
        if is_ready {
            tracing::error!("it ends: {failure}");
        } else {
            // A parent that cannot be told sees the end of the pipe, and says so.
            drop(background::tell(&Report::Failed(failure.clone())));
        }
    }
    log.flush(LOG_FLUSH_TIMEOUT);
    outcome
}

/// Tells the parent what is wrong with the log. A daemon runs all the same.
fn tell_of_log(home: &Home, log: &Log, wrong: Option<String>) -> Result<(), Failure> {
    let lost = log.lost().map(|lost| format!("the log {} cannot be written: {}", home.log().display(), lost.why));
    wrong.into_iter().chain(lost).try_for_each(|words| {
        background::tell(&Report::Warning(words))
            .map_err(|e| Failure::new(Kind::Internal, format!("the daemon cannot tell how it starts: {e}")))
    })
}

/// Has the log written, should this process end by a panic: nothing else would wait until its last words are there.
pub(super) struct LastLines<'a>(pub(super) &'a Log);

impl Drop for LastLines<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.flush(LOG_FLUSH_TIMEOUT);
        }
    }
}

/// Binds, runs until it is stopped, and shuts down.
fn serve(home: &Home, agent: bool, log: &Log, tell: impl FnMut(&Report) -> std::io::Result<()>) -> Result<u8, Failure> {
    let _last_lines = LastLines(log);
    malai_daemon::runtime::secrecy::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}")))?;
    let executor = Some(Executor::program(home)?);
    let options = Options { home: home.clone(), agent, executor, log: Some(log.clone()) };
    let outcome = runtime.block_on(run(options, log, tell));
    // The process ends next, and with it what still waits for peers that do not answer.
    std::mem::forget(runtime);
    outcome
}

async fn run(options: Options, log: &Log, mut tell: impl FnMut(&Report) -> std::io::Result<()>) -> Result<u8, Failure> {
    let cannot =
        |e: std::io::Error| Failure::new(Kind::Internal, format!("the daemon cannot tell that it is ready: {e}"));
    // From here on a signal stops the daemon in good order, also while it still binds.
    let signals = Signals::listen().map_err(cannot)?;
    let daemon = Service::bind(options).await?;
    let watch = tokio::spawn(signals.follow(daemon.stop_token(), log.clone()));
    for warning in daemon.warnings() {
        tell(&Report::Warning(warning)).map_err(cannot)?;
    }
    let ready = tell(&Report::Ready { pid: std::process::id() })
        .and_then(|()| sd_notify::notify(&[NotifyState::Ready]))
        .map_err(cannot);
    if let Err(failure) = ready {
        drop(timeout(SHUTDOWN, daemon.shutdown()).await);
        return Err(failure);
    }
    let (stopped, served) = daemon.run().await;
    if let Err(e) = sd_notify::notify(&[NotifyState::Stopping]) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
    let shut = timeout(SHUTDOWN, stopped.shutdown()).await;
    watch.abort();
    served?;
    shut.map(|()| 0).map_err(|_| {
        Failure::new(
            Kind::Internal,
            format!("the shutdown took longer than {} s and was cut short", SHUTDOWN.as_secs()),
        )
    })
}

/// Receives the signals that a daemon or a relay obeys.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Begins to receive them. From here on they do not end the process. SIGHUP is received even where it was ignored
    /// at the start.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn listen() -> std::io::Result<Self> {
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { term, int, hup: signal(SignalKind::hangup())? })
    }

    /// Opens the log again at each SIGHUP. At SIGTERM or SIGINT it cancels, and returns.
    pub(super) async fn follow(mut self, token: CancellationToken, log: Log) {
        // Nothing may keep a process from being stopped.
        let _stops = token.drop_guard();
        loop {
            tokio::select! {
                _ = self.term.recv() => break,
                _ = self.int.recv() => break,
                Some(()) = self.hup.recv() => log.reopen(),
            }
        }
    }
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// No daemon runs.
    NoneThere,
    /// It ended at the request.
    Asked,
    /// It was not reached, and ended by a signal.
    Signalled,
}

/// Ends a daemon by `request`, and unless told otherwise an agent too.
async fn end(cx: &Context, request: Request, agents: bool) -> Result<Stopped, Failure> {
    let stream = match client::dial_patiently(&cx.home, agents).await? {
        Ok(stream) => stream,
        Err(Some(holder)) if agents || !holder.agent => return end_by_signal(cx, &holder).await,
        Err(_) => return Ok(Stopped::NoneThere),
    };
    let (frames, old) = client::greet(stream).await?;
    if old.agent && !agents {
        return Ok(Stopped::NoneThere);
    }
    match client::answer(frames, request, cx.out).await {
        Ok(Response::Failed(failure)) => return Err(failure),
        // A daemon may be gone before its answer is read; whether it is, the lock tells.
        Ok(_) => {}
        Err(failure) if failure.kind == Kind::Unknown => {}
        Err(failure) => return Err(failure),
    }
    let deadline = Instant::now() + STOPPING;
    while lock::find_holder(&cx.home)?.is_some() && !is_replaced(&cx.home, old.pid).await {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Kind::Internal,
                format!("the daemon still holds {} after {} s", cx.home.lock().display(), STOPPING.as_secs()),
            )
            .hint("see which process it is: malai daemon status"));
        }
        sleep(LOOK).await;
    }
    Ok(Stopped::Asked)
}

/// Ends a daemon that holds the lock and is not reached at its socket.
async fn end_by_signal(cx: &Context, holder: &Holder) -> Result<Stopped, Failure> {
    cx.out.note(&format!(
        "{} holds the lock and is not reached at {}: it is ended by SIGTERM",
        holder.name(),
        cx.home.socket().display()
    ));
    offline::stop_by_signal(&cx.home, holder).await?;
    Ok(Stopped::Signalled)
}

/// Whether another process than this one answers by now: a session that goes on starts an agent as soon as it can.
async fn is_replaced(home: &Home, pid: u32) -> bool {
    // One that does not greet is on its way in or out, and the next look tells.
    let look = async { client::greet(client::dial(home).await.ok()??).await.ok() };
    matches!(timeout(GREETING, look).await, Ok(Some((_, theirs))) if theirs.pid != pid)
}

fn stop(cx: &Context, keep_sessions: bool) -> Result<u8, Failure> {
    let request = if keep_sessions { Request::Leave } else { Request::Stop };
    let stopped = client::block_on(async {
        let stopped = end(cx, request, true).await?;
        // A signal leaves the sessions to the next daemon.
        if stopped == Stopped::Signalled && !keep_sessions && !offline::end_executor(&cx.home).await? {
            cx.out.note("another daemon has taken over meanwhile, and its sessions go on");
        }
        Ok(stopped)
    })?;
    cx.out.note(match (stopped, keep_sessions) {
        (Stopped::NoneThere, _) => "no daemon runs here",
        (_, false) => "daemon stopped",
        (_, true) => "daemon stopped; its sessions go on, and wait for the next daemon",
    });
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "stopped": stopped != Stopped::NoneThere }))?;
    }
    Ok(0)
}

fn restart(cx: &Context) -> Result<u8, Failure> {
    if client::block_on(end(cx, Request::Leave, false))? == Stopped::NoneThere {
        return Err(Failure::new(Kind::Conflict, "no daemon runs here, so that there is none to restart")
            .hint("start one: malai daemon"));
    }
    start(cx)
}

fn status(cx: &Context) -> Result<u8, Failure> {
    let answer = client::block_on(async {
        match client::dial_patiently(&cx.home, false).await? {
            Ok(stream) => client::answer(client::greet(stream).await?.0, Request::DaemonStatus, cx.out).await.map(Ok),
            Err(holder) => Ok(Err(holder)),
        }
    })?;
    let status = match answer {
        Ok(Response::Daemon(status)) => Some(status),
        Ok(Response::Failed(failure)) => return Err(failure),
        Ok(_) => return Err(client::unexpected()),
        Err(Some(holder)) if !holder.agent => return describe_unreachable(cx, &holder),
        Err(_) => None,
    };
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "daemon": status }))?;
    } else {
        describe(status.as_ref()).iter().try_for_each(|line| cx.out.row(line))?;
    }
    Ok(u8::from(!status.is_some_and(|status| status.ready && !status.agent)))
}

/// Reports a daemon that holds the lock and is not reached.
fn describe_unreachable(cx: &Context, holder: &Holder) -> Result<u8, Failure> {
    let Failure { message, hint, .. } = holder.unreachable(&cx.home);
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "daemon": null, "unreachable": { "pid": holder.pid } }))?;
    } else {
        cx.out.row(&message)?;
    }
    hint.iter().for_each(|hint| cx.out.hint(hint));
    Ok(1)
}

/// The daemon in a few lines.
pub(super) fn describe(status: Option<&DaemonStatus>) -> Vec<String> {
    let Some(DaemonStatus { pid, version, agent, ready, tree, executor_pid, sessions, lost_log }) = status else {
        return vec!["no daemon runs here".into()];
    };
    let what = if *agent { "agent" } else { "daemon" };
    let state = match (agent, ready) {
        (true, _) => "only calls; no daemon runs here",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let mut lines = vec![format!("{what} pid {pid}, malai {version}: {state}")];
    lines.push(match tree {
        Some(Tree::Cgroup) => "cgroups: used, a command leaves no process behind".into(),
        Some(Tree::Marker) => "cgroups: not used; a command's processes are found by group, parent and marker".into(),
        None => "cgroups: not known, no executor runs".into(),
    });
    let executor = executor_pid.map(|pid| format!(", executor pid {pid}")).unwrap_or_default();
    lines.push(format!("sessions: {sessions}{executor}"));
    let lost = |lost: &LostLines| format!("log: {} lines were not written, because: {}", lost.lines, lost.why);
    lines.extend(lost_log.as_ref().map(lost));
    lines
}
