//! Questions about this machine's sessions: which there are, how one ended, and to end one.

use std::collections::BTreeMap;
use std::sync::Arc;

use malai_protocol::access::{Act, Decision, Request, decide};
use malai_protocol::audit::Event;
use malai_protocol::codec::{CodecError, Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::plan::{Hello, SessionName};
use malai_protocol::sessions::{Kill, List, Listed, MAX_LISTED, Summary, Wait};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::admit::{SYNC_WAIT, decided};
use super::attach::{attend, is_elsewhere, unknown};
use super::visit::{self, Visit};
use crate::clusters::membership::Membership;
use crate::net::Frames;

/// Whether a session's stream that begins with this frame asks a question, instead of running or following a command.
pub(crate) fn is_question(kind: Kind) -> bool {
    matches!(kind, Kind::List | Kind::Wait | Kind::Kill)
}

/// Answers the question of `caller`, whose daemon holds `generation`, unless it leaves before there is an answer.
///
/// # Errors
/// What went wrong with the stream; refusals are answered, and are no errors.
pub(super) async fn answer<R, W>(
    membership: Arc<Membership>,
    caller: MachineId,
    generation: u64,
    first: Frame,
    mut frames: Frames<R>,
    mut writer: W,
) -> anyhow::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    frames.set_cap(0);
    let answers = tokio::select! {
        answers = found(&membership, caller, generation, &first) => answers,
        // It has nothing more to say: it leaves.
        _ = frames.next_unbounded() => return Ok(()),
    };
    let answers = match answers {
        Ok(answers) => answers,
        Err(failure) => vec![Frame::control(Kind::Refused, &failure)?],
    };
    for answer in answers {
        writer.write_all(&answer.to_bytes()).await?;
    }
    writer.shutdown().await?;
    Ok(())
}

async fn found(
    membership: &Arc<Membership>,
    caller: MachineId,
    generation: u64,
    first: &Frame,
) -> Result<Vec<Frame>, Failure> {
    match first.kind {
        Kind::List => {
            let List {} = first.decode().map_err(malformed)?;
            list(membership, caller, generation).await
        }
        Kind::Wait => {
            let Wait { owner, id } = first.decode().map_err(malformed)?;
            let session = SessionName { caller: owner.unwrap_or(caller), id };
            attend(membership, caller, session, generation, Act::Watch, "waiting for").await?;
            let answer = one(membership, caller, session, Hello::Wait { session }, None);
            match Visit::of(membership, caller, session, Act::Watch) {
                Some(visit) => visit.while_allowed("waiting for", answer).await?,
                None => answer.await,
            }
        }
        _ => {
            let Kill { owner, id, signal } = first.decode().map_err(malformed)?;
            let session = SessionName { caller: owner.unwrap_or(caller), id };
            kill(membership, caller, session, generation, signal).await
        }
    }
}

/// Ends a session, or signals its command.
async fn kill(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    generation: u64,
    signal: Option<u8>,
) -> Result<Vec<Frame>, Failure> {
    let act = Act::of_kill(signal);
    let doing = if act == Act::Kill { "ending" } else { "signalling" };
    attend(membership, caller, session, generation, act, doing).await?;
    let reason = format!("`malai kill` from {}", name(membership, &caller));
    tracing::debug!(session = %session.id.short(), peer = %caller.short(), signal, "asked to end it");
    let event = if act == Act::Kill { Event::Kill } else { Event::Signal };
    let question = Hello::Kill { session, signal, reason };
    let answer = one(membership, caller, session, question, Some((event, signal)));
    match Visit::of(membership, caller, session, act) {
        Some(visit) => visit.while_allowed(doing, answer).await.map_err(|refused| {
            let text = format!("the result of `malai kill` is not known: {}", refused.message);
            Failure { kind: FailureKind::Unknown, message: text, ..refused }
        })?,
        None => answer.await,
    }
}

/// The name that the config has for this key.
fn name(membership: &Membership, id: &MachineId) -> String {
    let held = membership.held();
    held.config.machine_by_id(id).map_or_else(|| id.short(), |(name, _)| name.to_string())
}

/// All sessions of this cluster that the caller may attend.
async fn list(membership: &Arc<Membership>, caller: MachineId, generation: u64) -> Result<Vec<Frame>, Failure> {
    // Its own are decided as any request is; whose else it may see follows from the same snapshot.
    let own = Request::Attend { owner: &caller, act: Act::Watch };
    let (held, _) = decided(membership, &caller, generation, &own, Instant::now() + SYNC_WAIT).await?;
    let known = membership.host.executor.get().await?.inventory().await?;
    let me = membership.host.me(&membership.me);
    let mut owners = BTreeMap::new();
    let mut is_seen = |owner: MachineId| {
        let request = Request::Attend { owner: &owner, act: Act::Watch };
        let decide = || matches!(decide(&held.config, &me, &caller, &request), Decision::Allowed(_));
        *owners.entry(owner).or_insert_with(decide)
    };
    let here = known.into_iter().filter(|known| known.cluster == membership.cluster).map(|known| known.summary);
    let seen: Vec<Summary> = here.filter(|summary| is_seen(summary.owner)).collect();
    let mut parts: Vec<_> =
        seen.chunks(MAX_LISTED).map(|part| Listed { sessions: part.to_vec(), more: true }).collect();
    match parts.last_mut() {
        Some(last) => last.more = false,
        None => parts.push(Listed { sessions: Vec::new(), more: false }),
    }
    parts.iter().map(|part| Frame::control(Kind::Listed, part).map_err(unsendable)).collect()
}

/// The executor's answer about one session that the caller may attend. What is done with another machine's is written
/// down first.
async fn one(
    membership: &Arc<Membership>,
    caller: MachineId,
    session: SessionName,
    question: Hello,
    noted: Option<(Event, Option<u8>)>,
) -> Result<Vec<Frame>, Failure> {
    let executor = membership.host.executor.get().await?;
    if is_elsewhere(membership, caller, &session, &executor).await? {
        return Err(unknown());
    }
    if let Some((event, signal)) = noted
        && session.caller != caller
    {
        visit::note(membership, caller, session, event, signal)?;
    }
    let answer = executor.ask(&question).await?;
    if answer.kind == Kind::Missing { Err(unknown()) } else { Ok(vec![answer]) }
}

fn malformed(error: CodecError) -> Failure {
    Failure::new(FailureKind::Usage, format!("the question does not read: {error}"))
}

fn unsendable(error: CodecError) -> Failure {
    Failure::new(FailureKind::Internal, format!("the sessions cannot be told: {error}"))
}
