//! `malai daemon`.

use std::fs::File;
use std::time::Duration;

use malai_daemon::duty::watch_panics;
use malai_daemon::store::lock::Changes;
use malai_daemon::{Daemon as Service, Options};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{DaemonStatus, Request, Response};
use malai_protocol::plan::Tree;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Context, executor::Executor};
use crate::background::{self, Child, Report};
use crate::client;
use crate::output::Output;

/// How long a shutdown may take before the process ends without it.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// How long `daemon stop` waits for the lock: ending sessions takes up to 5 s, and the shutdown as long.
const STOPPING: Duration = Duration::from_secs(15);
/// How long a look may wait for a greeting.
const GREETING: Duration = Duration::from_secs(1);
/// Between two looks at the lock.
const LOOK: Duration = Duration::from_millis(20);

/// Run the daemon of all clusters of this home
///
/// Checks everything, goes to the background, and says when it is ready; its log is daemon.log in $MALAI_HOME.
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
    let mut child = Child::start(&cx.home, &["daemon", "detached"])?;
    while let Some(report) = child.wait() {
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
}

fn serve_in_foreground(cx: &Context) -> Result<u8, Failure> {
    background::log(std::io::stderr);
    watch_panics();
    let out = cx.out;
    serve(&cx.home, false, |report| {
        match report {
            Report::Warning(words) => out.note(&format!("warning: {words}")),
            Report::Ready { pid } => out.note(&format!("daemon ready, pid {pid}")),
            Report::Failed(_) => {}
        }
        Ok(())
    })
}

/// In a process of [`Child::start`]: serves, and tells the parent how far it came.
///
/// # Errors
/// Why it could not run; the parent was told, if it was still waiting.
pub(super) fn serve_in_background(home: &Home, agent: bool) -> Result<u8, Failure> {
    let prepared = if agent { Ok(()) } else { background::log_to(home) };
    let mut is_ready = false;
    let outcome = prepared.and_then(|()| {
        if !agent {
            background::log(std::io::stderr);
        }
        watch_panics();
        serve(home, agent, |report| {
            background::tell(report)?;
            if matches!(report, Report::Ready { .. }) {
                background::let_go()?;
                is_ready = true;
            }
            Ok(())
        })
    });
    if let (Err(failure), false) = (&outcome, is_ready) {
        // A parent that cannot be told sees the end of the pipe, and says so.
        drop(background::tell(&Report::Failed(failure.clone())));
    }
    outcome
}

/// Binds, runs until it is stopped, and shuts down.
fn serve(home: &Home, agent: bool, tell: impl FnMut(&Report) -> std::io::Result<()>) -> Result<u8, Failure> {
    malai_daemon::secrecy::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}")))?;
    let options = Options { home: home.clone(), agent, executor: Some(Executor::program(home)?) };
    let outcome = runtime.block_on(run(options, tell));
    // The process ends next, and with it what still waits for peers that do not answer.
    std::mem::forget(runtime);
    outcome
}

async fn run(options: Options, mut tell: impl FnMut(&Report) -> std::io::Result<()>) -> Result<u8, Failure> {
    let cannot =
        |e: std::io::Error| Failure::new(Kind::Internal, format!("the daemon cannot tell that it is ready: {e}"));
    // From here on a signal stops the daemon in good order, also while it still binds.
    let signals = Stops::listen().map_err(cannot)?;
    let daemon = Service::bind(options).await?;
    let watch = tokio::spawn(signals.cancel(daemon.stop_token()));
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

/// The signals that stop a daemon, or a relay.
pub(super) struct Stops {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Stops {
    /// From here on they do not end the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them, and cancels.
    pub(super) async fn cancel(mut self, token: CancellationToken) {
        // Nothing may keep a process from being stopped.
        let token = token.drop_guard();
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
        drop(token);
    }
}

/// Ends a daemon by `request`, and unless told otherwise an agent too; `false` when none runs.
async fn end(cx: &Context, request: Request, agents: bool) -> Result<bool, Failure> {
    let Some(stream) = client::dial(&cx.home).await? else { return Ok(false) };
    let (frames, old) = client::greet(stream).await?;
    if old.agent && !agents {
        return Ok(false);
    }
    match client::answer(frames, request, cx.out).await {
        Ok(Response::Failed(failure)) => return Err(failure),
        // A daemon may be gone before its answer is read; whether it is, the lock tells.
        Ok(_) => {}
        Err(failure) if failure.kind == Kind::Unknown => {}
        Err(failure) => return Err(failure),
    }
    let deadline = Instant::now() + STOPPING;
    while is_locked(&cx.home)? && !is_replaced(&cx.home, old.pid).await {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Kind::Internal,
                format!("the daemon still holds {} after {} s", cx.home.lock().display(), STOPPING.as_secs()),
            )
            .hint("see which process it is: malai daemon status"));
        }
        sleep(LOOK).await;
    }
    Ok(true)
}

/// Whether another process than this one answers by now: a session that goes on starts an agent as soon as it can.
async fn is_replaced(home: &Home, pid: u32) -> bool {
    // One that does not greet is on its way in or out, and the next look tells.
    let look = async { client::greet(client::dial(home).await.ok()??).await.ok() };
    matches!(timeout(GREETING, look).await, Ok(Some((_, theirs))) if theirs.pid != pid)
}

fn stop(cx: &Context, keep_sessions: bool) -> Result<u8, Failure> {
    let request = if keep_sessions { Request::Leave } else { Request::Stop };
    let stopped = client::block_on(end(cx, request, true))?;
    cx.out.note(match (stopped, keep_sessions) {
        (false, _) => "no daemon runs here",
        (true, false) => "daemon stopped",
        (true, true) => "daemon stopped; its sessions go on, and wait for the next daemon",
    });
    tell_stopped(cx.out, stopped)
}

fn restart(cx: &Context) -> Result<u8, Failure> {
    if !client::block_on(end(cx, Request::Leave, false))? {
        return Err(Failure::new(Kind::Conflict, "no daemon runs here, so that there is none to restart")
            .hint("start one: malai daemon"));
    }
    start(cx)
}

fn tell_stopped(out: Output, stopped: bool) -> Result<u8, Failure> {
    if out.json {
        out.document(&serde_json::json!({ "stopped": stopped }))?;
    }
    Ok(0)
}

/// Whether a process holds the lock. The kernel lets go of it when that process ends, however it does.
fn is_locked(home: &Home) -> Result<bool, Failure> {
    // A look takes the lock for a moment, and a daemon that starts in that moment would be refused.
    let _changes = Changes::begin(home)?;
    let path = home.lock();
    let fail = |e: std::io::Error| Failure::new(Kind::Internal, format!("the lock {} fails: {e}", path.display()));
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(fail)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(e)) => Err(fail(e)),
    }
}

fn status(cx: &Context) -> Result<u8, Failure> {
    let answer = client::block_on(async {
        match client::dial(&cx.home).await? {
            Some(stream) => client::ask(stream, Request::DaemonStatus, cx.out).await.map(Some),
            None => Ok(None),
        }
    })?;
    let status = match answer {
        Some(Response::Daemon(status)) => Some(status),
        Some(Response::Failed(failure)) => return Err(failure),
        Some(_) => return Err(client::unexpected()),
        None => None,
    };
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "daemon": status }))?;
    } else {
        describe(status.as_ref()).iter().try_for_each(|line| cx.out.row(line))?;
    }
    Ok(u8::from(!status.is_some_and(|status| status.ready && !status.agent)))
}

/// The daemon in a few lines.
pub(super) fn describe(status: Option<&DaemonStatus>) -> Vec<String> {
    let Some(DaemonStatus { pid, version, agent, ready, tree, executor_pid, sessions }) = status else {
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
    lines
}
