//! The target's side of a session: read the request, decide, hand a plan to the executor, and copy.
//!
//! There is no other way to execution. The order is fixed: register in the table of live sessions, decide, write the
//! audit, compare generations, and only then send the plan; a snapshot that arrives later finds the session in the
//! table.

pub(crate) mod admit;
pub(crate) mod live;
pub(crate) mod refusals;

use std::sync::Arc;

use bytes::BytesMut;
use malai_protocol::codec::{Frame, Kind, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::plan::{CallerGone, SessionName};
use malai_protocol::scan::Direction;
use malai_protocol::session::ExecSpec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::copy::{End, pump};
use crate::membership::Membership;
use crate::net::budget::weight;
use crate::net::{FIRST_FRAME, FrameError, Frames, is_caller_gone};
use crate::supervisor::Executor;

/// The first attachment of a session; there is no other yet.
const FIRST_ATTACHMENT: u32 = 1;

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
    let spec: ExecSpec = match frames.next(FIRST_FRAME).await {
        Err(FrameError::Exceeded(exceeded)) => {
            drop(frames);
            return refuse(writer, &exceeded.into()).await;
        }
        first => first?.expect(Kind::Exec, "Exec")?,
    };
    let name = SessionName { caller, id: spec.id };
    let weighed = frames.raise(weight(&spec));
    let attached = async {
        weighed.map_err(|exceeded| admit::turn_away(&membership, name, &spec, exceeded.into()))?;
        let executor = admit::admit(&membership, name, generation, spec).await?;
        let stream = executor.attach(name, FIRST_ATTACHMENT).await?.into_inner();
        Ok::<_, Failure>((executor, stream))
    };
    let attached = attached.await;
    // A session outlasts the membership when the cluster is taken in anew; with it the old sockets would stay open.
    drop(membership);
    match attached {
        Ok((executor, stream)) => copy(&executor, name, stream, is_gone, frames, writer).await,
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

/// Copies between the caller and the executor until one of them is done.
async fn copy<S, R, W>(
    executor: &Executor,
    name: SessionName,
    stream: S,
    is_gone: IsGone,
    frames: Frames<R>,
    writer: W,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (from_executor, to_executor) = tokio::io::split(stream);
    let (reader, head) = frames.into_parts();
    let up = pump(Direction::ToTarget, head, reader, to_executor);
    let down = pump(Direction::ToCaller, BytesMut::new(), from_executor, writer);
    tokio::pin!(up, down);
    tokio::select! {
        (end, writer) = &mut down => finish(end, writer).await,
        (end, _to_executor) = &mut up => match end {
            end if is_gone(&end) => {
                executor.caller_gone(CallerGone { session: name, attachment: FIRST_ATTACHMENT }).await?;
                Ok(())
            }
            // The caller has what it wanted; what the executor still sends goes the same way.
            End::Eof { last: Some(Kind::Goodbye) } => Ok(()),
            End::Eof { .. } => anyhow::bail!("the caller's stream ended without a goodbye: the attachment is lost"),
            End::Read(error) => anyhow::bail!("the attachment is lost: {error}"),
            // The executor closed first; what it said last is still on its way to the caller.
            End::Write(_) => {
                let (end, writer) = down.await;
                finish(end, writer).await
            }
            End::Protocol(error) => Err(error.into()),
        },
    }
}

/// The executor has said its last word: it is passed on, and then the stream's end.
async fn finish<W: AsyncWrite + Unpin>(end: End, mut writer: W) -> anyhow::Result<()> {
    match end {
        End::Eof { last: Some(Kind::Exit | Kind::Refused) } => Ok(writer.shutdown().await?),
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
