//! Starts an agent where no daemon runs, and waits until it is reached.

use std::time::Duration;

use malai_daemon::store::lock::{self, Holder};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::dial::{DialOptions, Dialler, dial};
use crate::background::{Child, Report};
use crate::output::Output;

/// Bounds the wait for an agent that is still starting: on a busy machine that may take long.
const AGENT_START_LIMIT: Duration = Duration::from_secs(60);
/// Sets when malai says that it waits for an agent.
const AGENT_START_TOLD_AFTER: Duration = Duration::from_secs(3);
/// Sets the pause before another agent is started, when the first one found the home taken by a process that does not
/// answer.
const AGENT_START_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Sets the time between two looks for the socket of that process.
const AGENT_SOCKET_INTERVAL: Duration = Duration::from_millis(5);
/// Bounds the wait for a daemon that holds its lock and is not reached: it may be starting, and no agent starts meanwhile.
const DAEMON_WITHOUT_SOCKET_TIMEOUT: Duration = Duration::from_secs(20);

/// Says that an agent takes long to start.
const AGENT_STILL_STARTING: &str = "no daemon runs here, and the agent is still starting; waiting for it…";
/// Says what to type when no agent starts.
const AGENT_FAILED_HINT: &str = "start a daemon yourself and see what it says: malai daemon --foreground";

/// Returns what makes connections to the daemon, or to an agent.
pub(crate) fn dialler(home: &Home, out: Output) -> Dialler<UnixStream> {
    let home = home.clone();
    Box::new(move |DialOptions { agent }| {
        let home = home.clone();
        Box::pin(async move {
            if agent {
                return dial_or_start(&home, out).await;
            }
            dial(&home).await?.ok_or_else(|| Failure::new(Kind::Internal, "no daemon runs here"))
        })
    })
}

/// Connects to the socket, and starts an agent when nothing listens there. Waits for as long as the agent is starting, and
/// says so when that takes long.
///
/// # Errors
/// When the socket is not ours to trust, or no agent comes up.
pub(crate) async fn dial_or_start(home: &Home, out: Output) -> Result<UnixStream, Failure> {
    if let Some(stream) = dial(home).await? {
        return Ok(stream);
    }
    let starting = start_until_reached(home);
    tokio::pin!(starting);
    if let Ok(reached) = timeout(AGENT_START_TOLD_AFTER, &mut starting).await {
        return reached;
    }
    out.note(&match find_daemon(home)? {
        Some(holder) => {
            format!("{} holds the lock but does not answer at its socket yet; waiting for it…", holder.name())
        }
        None => AGENT_STILL_STARTING.to_owned(),
    });
    match timeout(AGENT_START_LIMIT - AGENT_START_TOLD_AFTER, starting).await {
        Ok(reached) => reached,
        Err(_) => Err(match lock::find_holder(home)?.filter(|holder| !holder.agent) {
            Some(holder) => holder.unreachable(home),
            None => agent_is_late(),
        }),
    }
}

/// Starts agents until one, or the process that took the home before it, is reached.
async fn start_until_reached(home: &Home) -> Result<UnixStream, Failure> {
    let mut daemon_since = None;
    loop {
        if let Some(stream) = start_agent(home).await? {
            return Ok(stream);
        }
        // The process that has the home may be about to answer, or about to leave. Nothing tells which, so this looks.
        let again_at = Instant::now() + AGENT_START_AGAIN_AFTER;
        while Instant::now() < again_at {
            if let Some(stream) = dial(home).await? {
                return Ok(stream);
            }
            sleep(AGENT_SOCKET_INTERVAL).await;
        }
        match find_daemon(home)? {
            None => daemon_since = None,
            Some(holder) => {
                if daemon_since.get_or_insert_with(Instant::now).elapsed() >= DAEMON_WITHOUT_SOCKET_TIMEOUT {
                    return Err(holder.unreachable(home));
                }
            }
        }
    }
}

/// Starts an agent, and connects to it as soon as it is ready. Returns `None` when another process has the home.
async fn start_agent(home: &Home) -> Result<Option<UnixStream>, Failure> {
    let mut child = Child::start(home, &["agent"])?;
    let mut is_sound = false;
    while let Some(report) = child.next().await {
        match report {
            Report::Warning(_) => continue,
            Report::Failed(failure) if failure.kind != Kind::Conflict => return Err(failure),
            Report::Failed(_) | Report::Ready { .. } => is_sound = true,
        }
        if let Some(stream) = dial(home).await? {
            return Ok(Some(stream));
        }
    }
    if is_sound {
        return Ok(None);
    }
    Err(Failure::new(Kind::Internal, "no daemon runs here, and the agent ended before it was ready")
        .hint(AGENT_FAILED_HINT))
}

/// Finds the daemon that holds the lock. A holder that has not written its pid yet may be an agent.
fn find_daemon(home: &Home) -> Result<Option<Holder>, Failure> {
    Ok(lock::find_holder(home)?.filter(|holder| !holder.agent && holder.pid.is_some()))
}

fn agent_is_late() -> Failure {
    let limit = AGENT_START_LIMIT.as_secs();
    let message = format!("no daemon runs here, and the agent's socket did not answer within {limit} s");
    Failure::new(Kind::Internal, message).hint(AGENT_FAILED_HINT)
}
