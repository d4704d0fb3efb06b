//! Leaves a cluster where no daemon runs. An executor may still have sessions of it.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::ClusterId;
use malai_protocol::local::{Request, Response};
use malai_protocol::plan::{Decided, End, Ended, SessionName};
use malai_protocol::session::EndedBy;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::admin;
use crate::runtime::blocking::blocking;
use crate::store::audit::{Audit, unended};
use crate::store::clusters;
use crate::store::greeting::ask_and_wait;
use crate::store::lock::{Attempt, Changes, Lock, Part};
use crate::supervisor::{Event, Executor};
use crate::target::ended::end_line;
use crate::target::live::left;

/// Bounds how long sessions of a cluster that is left may take to end.
const REVOKED_ENDS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds how many ends wait to be written down.
const MAX_QUEUED_ENDS: usize = 256;
/// Bounds how long an agent may take to end the sessions of a cluster that was left beside it.
const AGENT_LEAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Ends the cluster's sessions, and forgets it.
pub(super) async fn leave(home: &Home, alias: &str, force: bool) -> Result<Response, Failure> {
    let (at, name) = (home.clone(), alias.to_owned());
    let lock = blocking(move || {
        admin::check_leave(&at, &name, force)?;
        Lock::try_take(&at, Part::Daemon)
    })
    .await?;
    let has_agent = match lock {
        Attempt::Taken(lock) => {
            end_sessions(home, alias).await?;
            drop(lock);
            false
        }
        Attempt::Held(holder) => holder.agent,
    };
    let (at, name) = (home.clone(), alias.to_owned());
    blocking(move || {
        let changes = Changes::begin(&at)?;
        changes.refuse_beside_a_daemon()?;
        admin::machine_leave(&changes, &name, force)
    })
    .await?;
    if has_agent {
        // It looks at the disk with every request, and ends what is not there any more.
        let at = home.clone();
        let asked = blocking(move || Ok(ask_and_wait(&at, &Request::DaemonStatus, AGENT_LEAVE_TIMEOUT))).await?;
        if let Err(error) = asked {
            tracing::info!("the agent was not asked to look at the disk: {error}");
        }
    }
    Ok(Response::Done)
}

/// Ends the sessions of this cluster in an executor that has no daemon. The caller holds the daemon's lock.
async fn end_sessions(home: &Home, alias: &str) -> Result<(), Failure> {
    // A cluster whose files cannot be read is known by what its sessions say.
    let cluster = clusters::load(home, alias).map(|cluster| cluster.id).ok();
    let is_of = |id: ClusterId, request: &Decided| {
        Some(id) == cluster || request.audit.as_ref().is_some_and(|names| names.cluster == alias)
    };
    let (sender, mut events) = mpsc::channel(MAX_QUEUED_ENDS);
    let Some(executor) = Executor::find(home, sender).await? else { return Ok(()) };
    let sessions = executor.sessions();
    let ended: Vec<_> = sessions.ended.iter().filter(|ended| is_of(ended.cluster, &ended.request)).cloned().collect();
    let mut live: Vec<SessionName> =
        sessions.live.iter().filter(|live| is_of(live.cluster, &live.request)).map(|live| live.session).collect();
    let audit = Audit::open(home)?;
    if !ended.is_empty() {
        let (at, asked) = (home.clone(), ended.iter().map(|ended| ended.session).collect::<Vec<_>>());
        let written = blocking(move || {
            unended(&at, &[], &asked)
                .map(|unended| unended.written)
                .map_err(|error| crate::store::disk_failure("read the audit", &at.audit(), &error))
        })
        .await?;
        for ended in &ended {
            write(&audit, &executor, ended, written.contains(&ended.session)).await?;
        }
    }
    for session in &live {
        let end = End { session: *session, cause: EndedBy::Revoked, reason: Some(left().message) };
        executor.end(end).await?;
    }
    let until = Instant::now() + REVOKED_ENDS_TIMEOUT;
    while !live.is_empty() {
        match timeout_at(until, events.recv()).await {
            Ok(Some(Event::Ended(ended))) => {
                if let Some(at) = live.iter().position(|session| *session == ended.session) {
                    live.swap_remove(at);
                    write(&audit, &executor, &ended, false).await?;
                }
            }
            // The next executor, or the audit, says to the next daemon what became of them.
            _ => {
                tracing::error!(cluster = alias, "{} sessions were left without their ends", live.len());
                break;
            }
        }
    }
    Ok(())
}

/// Writes an end down, unless that was done, and confirms it.
pub(super) async fn write(audit: &Audit, executor: &Executor, ended: &Ended, is_written: bool) -> Result<(), Failure> {
    if !is_written {
        audit.append(&end_line(ended))?;
    }
    executor.audited(ended.session).await
}
