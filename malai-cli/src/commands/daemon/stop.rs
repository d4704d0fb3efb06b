//! `malai daemon stop`, and the first half of `malai daemon restart`.

use std::time::Duration;

use malai_daemon::offline;
use malai_daemon::store::lock::{self, Holder};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Request, Response};
use tokio::task::spawn_blocking;

use crate::client;
use crate::commands::Context;

/// Bounds the wait for the lock: ending sessions takes up to 5 s, and the shutdown as long.
const LOCK_RELEASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Says how a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DaemonEnd {
    /// No daemon ran.
    NoneThere,
    /// It ended at the request.
    Asked,
    /// It was not reached, and ended by a signal.
    Signalled,
}

/// Ends the daemon, with its sessions unless they are to go on.
pub(super) fn stop(cx: &Context, keep_sessions: bool) -> Result<u8, Failure> {
    let request = if keep_sessions { Request::Leave } else { Request::Stop };
    let stopped = client::block_on(async {
        let stopped = end(cx, request, true).await?;
        // A signal leaves the sessions to the next daemon.
        if stopped == DaemonEnd::Signalled && !keep_sessions && !offline::end_executor(&cx.home).await? {
            cx.out.note("another daemon has taken over; the sessions go on");
        }
        Ok(stopped)
    })?;
    cx.out.note(match (stopped, keep_sessions) {
        (DaemonEnd::NoneThere, _) => "no daemon runs here",
        (_, false) => "daemon stopped",
        (_, true) => "daemon stopped; its sessions go on until the next daemon takes them over",
    });
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "stopped": stopped != DaemonEnd::NoneThere }))?;
    }
    Ok(0)
}

/// Ends the daemon so that another one takes its sessions over.
///
/// # Errors
/// Also when no daemon runs.
pub(super) fn leave_sessions(cx: &Context) -> Result<(), Failure> {
    match client::block_on(end(cx, Request::Leave, false))? {
        DaemonEnd::NoneThere => {
            Err(Failure::new(Kind::Conflict, "cannot restart: no daemon runs here").hint("start one: malai daemon"))
        }
        DaemonEnd::Asked | DaemonEnd::Signalled => Ok(()),
    }
}

/// Ends a daemon by `request`; with `agents`, an agent too.
async fn end(cx: &Context, request: Request, agents: bool) -> Result<DaemonEnd, Failure> {
    let stream = match client::dial_patiently(&cx.home, agents).await? {
        Ok(stream) => stream,
        Err(Some(holder)) if agents || !holder.agent => return end_by_signal(cx, &holder).await,
        Err(_) => return Ok(DaemonEnd::NoneThere),
    };
    let (frames, old) = client::greet(stream).await?;
    if old.agent && !agents {
        return Ok(DaemonEnd::NoneThere);
    }
    let holder = lock::find_holder(&cx.home)?;
    match client::answer(frames, request, cx.out).await {
        Ok(Response::Failed(failure)) => return Err(failure),
        // A daemon may be gone before its answer is read; the lock tells whether it is.
        Ok(_) => {}
        Err(failure) if failure.kind == Kind::Unknown => {}
        Err(failure) => return Err(failure),
    }
    if let Some(holder) = holder {
        let (home, pid) = (cx.home.clone(), holder.pid);
        let released = spawn_blocking(move || lock::wait_for_release(&home, &holder, LOCK_RELEASE_TIMEOUT)).await;
        let holder_now =
            released.map_err(|e| Failure::new(Kind::Internal, format!("cannot wait for the lock: {e}")))??;
        // A session that goes on starts an agent as soon as it can, which is another process.
        if holder_now.is_some_and(|now| now.pid == pid) {
            let (lock, waited) = (cx.home.lock(), LOCK_RELEASE_TIMEOUT.as_secs());
            let message = format!("the daemon still holds {} after {waited} s", lock.display());
            return Err(Failure::new(Kind::Internal, message).hint("see which process it is: malai daemon status"));
        }
    }
    Ok(DaemonEnd::Asked)
}

/// Ends a daemon that holds the lock and is not reached at its socket.
async fn end_by_signal(cx: &Context, holder: &Holder) -> Result<DaemonEnd, Failure> {
    cx.out.note(&format!(
        "{} holds the lock but does not answer at {}; ending it by SIGTERM",
        holder.name(),
        cx.home.socket().display()
    ));
    offline::stop_by_signal(&cx.home, holder).await?;
    Ok(DaemonEnd::Signalled)
}
