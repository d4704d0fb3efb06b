//! Coming back to a session: attachments, requests that were sent again, and callers that went away for good.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::{Act, Request};
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::Gone;
use malai_protocol::plan::{Attachment, CallerGone, Decided, Known, SessionName};
use malai_protocol::session::{Attach, ExecSpec, Resend};
use malai_protocol::sessions::Summary;
use tokio::time::{Instant, sleep};

use super::admit::{SYNC_WAIT, decided, entry, write_refusal};
use super::live::LiveTable;
use super::visit::Visit;
use super::{Opened, begin};
use crate::clusters::membership::Membership;
use crate::runtime::clock::now_ms;
use crate::supervisor::{Executor, Resume, Resumed};

/// How long the first sending of a request may take from its registration to the executor: the wait for a snapshot,
/// the audit, and the plan.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// Follows a session that exists.
///
/// # Errors
/// The refusal, to be sent to the caller. Who may not attach is not told whether there is such a session.
pub(super) async fn attach(
    membership: &Arc<Membership>,
    caller: MachineId,
    generation: u64,
    ask: &Attach,
) -> Result<Opened, Failure> {
    let session = SessionName { caller: ask.owner.unwrap_or(caller), id: ask.id };
    let visit = if session.caller == caller {
        attend(membership, caller, session, generation, Act::Control, "attaching to").await?;
        None
    } else {
        Some(Visit::begin(membership, caller, session, generation, ask).await?)
    };
    let executor = membership.host.executor.get().await?;
    if is_elsewhere(membership, caller, &session, &executor).await? {
        return Err(unknown());
    }
    let Attach { follower, number, out_offset, from_end, .. } = *ask;
    let watches = visit.as_ref().is_some_and(Visit::watches);
    let (binding, take_over) = (ask.binding && visit.is_none(), ask.take_over && !watches);
    if let Some(visit) = &visit {
        executor.check_watching()?;
        visit.note(if take_over { Event::TakeOver } else { Event::Attach }, None)?;
    }
    let attachment = Attachment { session, by: caller, follower: Some(follower), number, binding, watches };
    match executor.resume(Resume { attachment, out_offset, from_end, take_over, resend: None }).await? {
        Resumed::Attached { first, .. } if visit.is_some() && first.kind == FrameKind::Refused => {
            // What was written down was not done after all; or it is how the session itself came to nothing.
            let failure: Failure = first.decode().map_err(|error| unreadable(&error))?;
            let refused = failure.kind == Kind::Conflict;
            Err(if refused { refuse(membership, caller, session, failure, "attaching to") } else { failure })
        }
        Resumed::Attached { first, stream } => {
            tracing::debug!(session = %session.id.short(), peer = %caller.short(), number, answer = ?first.kind, "attached");
            Ok(Opened { executor, attachment, first: Some(first), stream, visit })
        }
        Resumed::Missing => Err(unknown()),
    }
}

/// A request that was sent before: attaches where that one arrived, and runs it where it certainly did not.
///
/// # Errors
/// The refusal, to be sent to the caller: of a kind that says "it did not run" only where that is certain.
pub(super) async fn resend(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
    resend: Resend,
) -> Result<Opened, Failure> {
    attend(membership, name.caller, name, generation, Act::Control, "attaching to").await.map_err(uncertain)?;
    let (number, follower, binding) = (resend.number, spec.follower, !spec.detach);
    let attachment = Attachment { session: name, by: name.caller, follower, number, binding, watches: false };
    let until = Instant::now() + SETTLE;
    loop {
        let executor = membership.host.executor.get().await.map_err(uncertain)?;
        let resume = Resume { attachment, out_offset: 0, from_end: false, take_over: false, resend: Some(resend) };
        if let Resumed::Attached { first, stream } = executor.resume(resume).await.map_err(uncertain)? {
            if let Some(failure) = conflict(&first)? {
                // The command ran: that its place is another's now must not read as if it had not.
                return Err(uncertain(failure));
            }
            return Ok(Opened { executor, attachment, first: Some(first), stream, visit: None });
        }
        match begin(membership, name, generation, spec.clone()).await {
            // The first sending is on its way to the executor: soon that knows of it.
            Err(refused) if refused.taken && Instant::now() < until && !membership.cancel.is_cancelled() => {
                sleep(LOOK).await;
            }
            Err(refused) if refused.taken => return Err(uncertain(refused.failure)),
            begun => return begun.map_err(|refused| refused.failure),
        }
    }
}

/// The caller of an attachment went away for good, and its own stream could not tell.
///
/// # Errors
/// The refusal, to be sent to the peer; or that the executor could not be told.
pub(crate) async fn gone(membership: &Arc<Membership>, peer: MachineId, gone: &Gone) -> Result<(), Failure> {
    let session = SessionName { caller: gone.owner.unwrap_or(peer), id: gone.id };
    attend(membership, peer, session, 0, Act::Watch, "leaving").await?;
    if session.caller != peer {
        // An attachment to another machine's session binds nothing to itself, so that its going ends nothing.
        return Ok(());
    }
    decided_on(&membership.live, peer, session).await;
    let Some(executor) = membership.host.executor.running().await else { return Ok(()) };
    if is_elsewhere(membership, peer, &session, &executor).await? {
        return Ok(());
    }
    tracing::debug!(session = %session.id.short(), peer = %peer.short(), number = gone.number, "its caller is gone");
    executor.caller_gone(CallerGone { session, follower: Some(gone.follower), number: gone.number }).await
}

/// Waits until a request that is being decided has come to the executor, or never will. One that has not come at all and
/// that this peer itself would have made never shall: nobody waits for it any more.
async fn decided_on(live: &LiveTable, peer: MachineId, session: SessionName) {
    let until = Instant::now() + SETTLE;
    let is_own = session.caller == peer;
    let is_settled = || if is_own { live.spend_unless_here(session) } else { !live.is_undecided(&session) };
    while !is_settled() && Instant::now() < until {
        sleep(LOOK).await;
    }
}

/// Decides whether the caller may do this with the session; a refusal goes to the audit.
pub(super) async fn attend(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    generation: u64,
    act: Act,
    doing: &str,
) -> Result<(), Failure> {
    let request = Request::Attend { owner: &session.caller, act };
    let Err(failure) = decided(membership, &caller, generation, &request, Instant::now() + SYNC_WAIT).await else {
        return Ok(());
    };
    Err(refuse(membership, caller, session, failure, doing))
}

/// Writes down that this was refused, and returns what the caller is to hear.
pub(super) fn refuse(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    failure: Failure,
    doing: &str,
) -> Failure {
    let line = about(membership, caller, session, Event::Refused);
    let doing = format!("{doing} a session of {}: ", session.caller);
    write_refusal(membership, SessionName { caller, id: session.id }, line, failure, &doing)
}

/// A line of the audit about what the caller does with this session.
pub(super) fn about(membership: &Membership, caller: MachineId, session: SessionName, event: Event) -> Entry {
    let line = entry(membership, SessionName { caller, id: session.id }, &nothing_run(), event);
    if session.caller == caller {
        return line;
    }
    let held = membership.held();
    let owner_name = held.config.machine_by_id(&session.caller).map(|(name, _)| name.to_string());
    Entry { owner: Some(session.caller.to_string()), owner_name, ..line }
}

/// Another machine's sessions may be attended by the word of the cluster whose they are, and of no other.
pub(super) async fn is_elsewhere(
    membership: &Membership,
    caller: MachineId,
    session: &SessionName,
    executor: &Executor,
) -> Result<bool, Failure> {
    if session.caller == caller || membership.live.has(session) {
        return Ok(false);
    }
    // One that is over, and whose output is kept.
    let known = executor.inventory().await?;
    let is_it = |known: &Known| {
        let Summary { owner, id, .. } = known.summary;
        known.cluster == membership.cluster && SessionName { caller: owner, id } == *session
    };
    Ok(!known.iter().any(is_it))
}

/// What the audit says of a request that names a session and no words.
fn nothing_run() -> Decided {
    Decided {
        words: Vec::new(),
        literal: false,
        shell: false,
        user: None,
        env_names: Vec::new(),
        named: None,
        named_words: None,
        run_as: None,
        reason: None,
        since_ms: now_ms(),
        detached: false,
        audit: None,
    }
}

/// Returns why the executor does not let this attachment follow a session that it has.
fn conflict(first: &Frame) -> Result<Option<Failure>, Failure> {
    if first.kind != FrameKind::Refused {
        return Ok(None);
    }
    let failure: Failure = first.decode().map_err(|error| unreadable(&error))?;
    Ok((failure.kind == Kind::Conflict).then_some(failure))
}

fn unreadable(error: &CodecError) -> Failure {
    Failure::new(Kind::Internal, format!("the executor's answer does not read: {error}"))
}

pub(super) fn unknown() -> Failure {
    Failure::new(
        Kind::Unknown,
        "the target does not know this session, or no more: how the command ended cannot be told",
    )
    .hint("on the target: `malai audit` shows what ran, and how it ended")
}

/// A failure after which it cannot be told whether the command ran.
pub(super) fn uncertain(failure: Failure) -> Failure {
    let text = format!("whether the command ran is not known: {}", failure.message);
    Failure { kind: Kind::Unknown, message: text, ..failure }
}
