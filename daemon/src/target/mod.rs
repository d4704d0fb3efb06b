//! The target's side of a session: read the request, decide, hand a plan to the executor, and copy.
//!
//! There is no other way to execution. The order is fixed: register in the table of live sessions, decide, write the
//! audit, compare generations, and only then send the plan; a snapshot that arrives later finds the session in the
//! table. An attachment to a session that runs already, and a request that was sent again, come by [`attach`]; questions
//! about sessions by [`ask`]. What a machine may do with a session of another one is watched over by [`visit`].

pub(crate) mod admit;
pub(crate) mod ask;
pub(crate) mod attach;
pub(crate) mod ended;
pub(crate) mod live;
pub(crate) mod refusals;
pub(crate) mod sessions;
mod visit;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use malai_protocol::codec::{Frame, FrameCodec, Kind, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::plan::{Attachment, CallerGone, SessionName};
use malai_protocol::scan::Direction;
use malai_protocol::session::ExecSpec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::Framed;

use crate::clusters::membership::Membership;
use crate::executor::Connection;
use crate::net::copy::{End, pump};
use crate::net::limits::budget::weight;
use crate::net::{FIRST_FRAME_TIMEOUT, FrameError, Frames, is_caller_gone};
use crate::supervisor::Executor;
use visit::Visit;

/// The attachment that a request makes which is sent for the first time.
const FIRST_ATTACHMENT: u32 = 1;
/// How long a caller that takes nothing any more may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether the way in which the caller's frames ended means that the caller is gone for good: otherwise its attachment is
/// lost.
pub(crate) type IsGone = fn(&End) -> bool;

/// For a CLI on this machine: its socket closed without a goodbye.
pub(crate) fn cli_is_gone(end: &End) -> bool {
    match end {
        End::Eof { last } => *last != Some(Kind::Goodbye),
        End::Read(_) => true,
        End::Write(_) | End::Protocol(_) => false,
    }
}

/// For another machine: its daemon says so by a reset.
pub(crate) fn peer_says_gone(end: &End) -> bool {
    matches!(end, End::Read(error) if is_caller_gone(error))
}

/// One session of `caller`, whose daemon holds `generation`. Reads the request from `frames` and answers on `writer`.
///
/// # Errors
/// What went wrong with the stream; refusals are answered, and are no errors.
pub(crate) async fn session<R, W>(
    membership: Arc<Membership>,
    caller: MachineId,
    generation: u64,
    is_gone: IsGone,
    mut frames: Frames<R>,
    writer: W,
) -> anyhow::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    frames.set_cap(MAX_EXEC);
    let first = match frames.next(FIRST_FRAME_TIMEOUT).await {
        Err(FrameError::Exceeded(exceeded)) => {
            drop(frames);
            return refuse(writer, &exceeded.into()).await;
        }
        first => first?,
    };
    if ask::is_question(first.kind) {
        return ask::answer(membership, caller, generation, first, frames, writer).await;
    }
    let opened = if first.kind == Kind::Attach {
        attach::attach(&membership, caller, generation, &first.decode()?).await
    } else {
        let spec: ExecSpec = first.expect(Kind::Exec, "Exec, Attach, or a question")?;
        let name = SessionName { caller, id: spec.id };
        match (frames.raise(weight(&spec)), spec.resend) {
            (Err(exceeded), resend) => {
                let failure = admit::turn_away(&membership, name, &spec, exceeded.into());
                Err(if resend.is_some() { attach::uncertain(failure) } else { failure })
            }
            (Ok(()), Some(resend)) => attach::resend(&membership, name, generation, spec, resend).await,
            (Ok(()), None) => begin(&membership, name, generation, spec).await.map_err(|refused| refused.failure),
        }
    };
    // What comes from this very machine is followed here as well.
    let _calling = (opened.is_ok() && caller == membership.me).then(|| membership.counters.calling());
    let _following = opened.as_ref().ok().map(|opened| membership.live.follow(opened.attachment.session));
    // A session outlasts the membership when the cluster is taken in anew; with it the old sockets would stay open.
    drop(membership);
    match opened {
        Ok(Opened { visit: Some(visit), attachment, first, stream, .. }) => {
            visit.follow(attachment, first, stream, frames, writer).await
        }
        Ok(opened) => copy(opened, is_gone, frames, writer).await,
        Err(failure) => {
            drop(frames);
            refuse(writer, &failure).await
        }
    }
}

async fn refuse<W: AsyncWrite + Unpin>(mut writer: W, failure: &Failure) -> anyhow::Result<()> {
    writer.write_all(&Frame::control(Kind::Refused, failure)?.to_bytes()).await?;
    writer.shutdown().await?;
    Ok(())
}

/// An attachment at the executor.
#[derive(Debug)]
struct Opened {
    executor: Executor,
    attachment: Attachment,
    /// What the executor answered already.
    first: Option<Frame>,
    stream: Framed<Connection, FrameCodec>,
    /// The session is another machine's.
    visit: Option<Visit>,
}

/// Admits a command, and attaches to it.
async fn begin(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
) -> Result<Opened, admit::Refused> {
    let number = spec.resend.map_or(FIRST_ATTACHMENT, |resend| resend.number);
    let binding = !spec.detach;
    let follower = spec.follower;
    let attachment = Attachment { session: name, by: name.caller, follower, number, binding, watches: false };
    let executor = admit::admit(membership, name, generation, spec).await?;
    // The plan is on its way: whatever goes wrong from here on, the command may have run.
    let stream = executor.attach(attachment).await.map_err(attach::uncertain)?;
    Ok(Opened { executor, attachment, first: None, stream, visit: None })
}

/// Copies between the caller and the executor until one of them is done.
async fn copy<R, W>(opened: Opened, is_gone: IsGone, frames: Frames<R>, writer: W) -> anyhow::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Opened { executor, attachment, first, stream, .. } = opened;
    let parts = stream.into_parts();
    let mut ahead = BytesMut::new();
    if let Some(first) = first {
        first.write_to(&mut ahead);
    }
    ahead.extend_from_slice(&parts.read_buf);
    let (from_executor, to_executor) = tokio::io::split(parts.io);
    let (reader, head) = frames.into_parts();
    let up = pump(Direction::ToTarget, head, reader, to_executor);
    let down = pump(Direction::ToCaller, ahead, from_executor, writer);
    tokio::pin!(up, down);
    let end = tokio::select! {
        (end, writer) = &mut down => match end {
            // A caller that is gone takes nothing any more, and only its own frames tell that it is.
            End::Write(error) => match tokio::time::timeout(LAST_WORDS, up).await {
                Ok((end, _)) if is_gone(&end) => end,
                _ => anyhow::bail!("the attachment is lost: {error}"),
            },
            end => return finish(end, writer).await,
        },
        (end, _to_executor) = &mut up => match end {
            // The executor closed first; what it said last is still on its way to the caller.
            End::Write(_) => {
                let (end, writer) = down.await;
                return finish(end, writer).await;
            }
            end => end,
        },
    };
    match end {
        end if is_gone(&end) => {
            let Attachment { session, follower, number, .. } = attachment;
            executor.caller_gone(CallerGone { session, follower, number }).await?;
            Ok(())
        }
        // The caller has what it wanted; what the executor still sends goes the same way.
        End::Eof { last: Some(Kind::Goodbye) } => Ok(()),
        End::Eof { .. } => anyhow::bail!("the caller's stream ended without a goodbye: the attachment is lost"),
        End::Read(error) | End::Write(error) => anyhow::bail!("the attachment is lost: {error}"),
        End::Protocol(error) => Err(error.into()),
    }
}

/// The executor has said its last word: it is passed on, and then the stream's end.
async fn finish<W: AsyncWrite + Unpin>(end: End, mut writer: W) -> anyhow::Result<()> {
    match end {
        End::Eof { last: Some(Kind::Exit | Kind::Refused | Kind::Superseded) } => Ok(writer.shutdown().await?),
        End::Eof { .. } => anyhow::bail!("the executor gave the attachment up"),
        End::Read(error) => anyhow::bail!("the executor is lost: {error}"),
        End::Write(error) => anyhow::bail!("the attachment is lost: {error}"),
        End::Protocol(error) => Err(error.into()),
    }
}

/// The refusal of a session when the target's own table is full.
pub(crate) fn full() -> Failure {
    Failure::new(FailureKind::Busy, "this machine runs as many sessions as it can hold")
        .hint("on the target: `malai status` shows them; try again when some have ended")
}
