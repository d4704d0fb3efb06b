//! Coming back to a session: attachments, requests that were sent again, and callers that went away for good.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::Request;
use malai_protocol::audit::Event;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::Gone;
use malai_protocol::plan::{Attachment, CallerGone, Decided, Known, SessionName};
use malai_protocol::session::{Attach, ExecSpec, Resend};
use malai_protocol::sessions::Summary;
use tokio::time::{Instant, sleep};

use super::admit::{SYNC_WAIT, decided, entry, write_refusal};
use super::live::LiveTable;
use super::{Opened, begin};
use crate::clock::now_ms;
use crate::membership::Membership;
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
    attend(membership, caller, session, generation, "attaching to").await?;
    let executor = membership.shared.executor.get().await?;
    if is_elsewhere(membership, caller, &session, &executor).await? {
        return Err(unknown());
    }
    let Attach { follower, number, out_offset, from_end, binding, take_over, .. } = *ask;
    let attachment = Attachment { session, by: caller, follower: Some(follower), number, binding };
    match executor.resume(Resume { attachment, out_offset, from_end, take_over, resend: None }).await? {
        Resumed::Attached { first, stream } => {
            tracing::info!(session = %session.id.short(), peer = %caller.short(), number, answer = ?first.kind, "attached");
            Ok(Opened { executor, attachment, first: Some(first), stream })
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
    attend(membership, name.caller, name, generation, "attaching to").await.map_err(uncertain)?;
    let number = resend.number;
    let binding = !spec.detach;
    let attachment = Attachment { session: name, by: name.caller, follower: spec.follower, number, binding };
    let until = Instant::now() + SETTLE;
    loop {
        let executor = membership.shared.executor.get().await.map_err(uncertain)?;
        let resume = Resume { attachment, out_offset: 0, from_end: false, take_over: false, resend: Some(resend) };
        if let Resumed::Attached { first, stream } = executor.resume(resume).await.map_err(uncertain)? {
            return Ok(Opened { executor, attachment, first: Some(first), stream });
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
    attend(membership, peer, session, 0, "ending").await?;
    decided_on(&membership.live, peer, session).await;
    let Some(executor) = membership.shared.executor.running().await else { return Ok(()) };
    if is_elsewhere(membership, peer, &session, &executor).await? {
        return Ok(());
    }
    tracing::info!(session = %session.id.short(), peer = %peer.short(), number = gone.number, "its caller is gone");
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

/// Decides whether the caller may follow and end this session; a refusal goes to the audit.
pub(super) async fn attend(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    generation: u64,
    doing: &str,
) -> Result<(), Failure> {
    let request = Request::Attend { owner: &session.caller };
    let Err(failure) = decided(membership, &caller, generation, &request, Instant::now() + SYNC_WAIT).await else {
        return Ok(());
    };
    let name = SessionName { caller, id: session.id };
    let line = entry(membership, name, &nothing_run(), Event::Refused);
    let doing = format!("{doing} a session of {}: ", session.caller);
    Err(write_refusal(membership, name, line, failure, &doing))
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
    Failure { kind: Kind::Unknown, message: text, hint: failure.hint }
}
