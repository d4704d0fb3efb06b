//! The caller's side of a session: resolve the name, find a connection, write one header, and copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use iroh::endpoint::{ConnectionError, ReadError, RecvStream, SendStream};
use malai_protocol::codec::{Frame, Kind, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::local::SessionTarget;
use malai_protocol::peer::{Close, Open, RESET_CALLER_GONE, RESET_PROTOCOL};
use malai_protocol::scan::Direction;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

use crate::clusters::Clusters;
use crate::copy::{End, pump};
use crate::machine;
use crate::membership::{Membership, dial};
use crate::net::pool::{PeerConn, SessionGuard};
use crate::net::{FIRST_FRAME, Frames, closed_with, code, send};

/// Sessions that this side opens on one connection; the target allows as many.
const MOST: u32 = crate::net::endpoint::MAX_SESSIONS;
/// How long the news that the caller is gone may take to arrive.
const DELIVERY: Duration = Duration::from_secs(10);

/// One session for a CLI: `frames` and `writer` are the two halves of its socket, from which the request was read.
///
/// # Errors
/// What went wrong with the CLI's socket or the stream; refusals are answered, and are no errors.
pub(crate) async fn session(
    clusters: &Clusters,
    target: &SessionTarget,
    frames: Frames<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> anyhow::Result<()> {
    let (membership, id) = match crate::resolve::resolve(clusters, target) {
        Ok(found) => found,
        Err(failure) => return refuse(&mut writer, &failure).await,
    };
    if id == membership.me {
        let generation = membership.held().generation();
        return machine::session(membership, id, generation, machine::cli_is_gone, frames, writer).await;
    }
    let deadline = Instant::now() + Duration::from_millis(target.connect_timeout_ms);
    match open(&membership, id, deadline).await {
        Ok((conn, counted, send_half, recv)) => {
            let result = copy(frames, writer, send_half, recv, &membership.alias).await;
            drop((conn, counted));
            result
        }
        Err(failure) => refuse(&mut writer, &failure).await,
    }
}

/// Tells the CLI why nothing was started.
pub(crate) async fn refuse(writer: &mut OwnedWriteHalf, failure: &Failure) -> anyhow::Result<()> {
    writer.write_all(&Frame::control(Kind::Refused, failure)?.to_bytes()).await?;
    writer.shutdown().await?;
    Ok(())
}

type Opened = (Arc<PeerConn>, SessionGuard, SendStream, RecvStream);

async fn open(
    membership: &Arc<Membership>,
    id: malai_protocol::id::MachineId,
    deadline: Instant,
) -> Result<Opened, Failure> {
    let conn = dial::connect(membership, id, deadline).await?;
    let busy = || Failure::new(FailureKind::Busy, format!("{MOST} sessions run over this connection already"));
    let counted = conn.enter(MOST).ok_or_else(busy)?;
    let opened = async {
        let (mut send_half, recv) = conn.conn.open_bi().await?;
        let open = Open { cluster: membership.cluster, generation: membership.held().generation() };
        send(&mut send_half, Frame::control(Kind::Open, &open)?).await?;
        anyhow::Ok((send_half, recv))
    };
    match tokio::time::timeout_at(deadline, opened).await {
        Ok(Ok((send_half, recv))) => Ok((conn, counted, send_half, recv)),
        Ok(Err(error)) => match conn.conn.close_reason().as_ref().and_then(closed_with) {
            Some(Close::NotAMember) => Err(not_a_member(&membership.alias)),
            _ => Err(Failure::new(FailureKind::Unreachable, format!("the connection was lost: {error:#}"))),
        },
        Err(_) => Err(Failure::new(FailureKind::Unreachable, "no stream could be opened in time")),
    }
}

fn not_a_member(cluster: &str) -> Failure {
    Failure::new(FailureKind::NotAMember, "the target does not know this machine as a member of the cluster").hint(
        format!("`malai status` shows which generation each machine holds; on the manager: `malai rescan {cluster}`"),
    )
}

/// Copies between the CLI and the target until one of them is done.
async fn copy(
    frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    send_half: SendStream,
    recv: RecvStream,
    cluster: &str,
) -> anyhow::Result<()> {
    let up = exec_then_pump(frames, send_half);
    let down = pump(Direction::ToCaller, BytesMut::new(), recv, writer);
    tokio::pin!(up, down);
    let (up_end, mut send_half) = tokio::select! {
        (end, writer) = &mut down => return finish(end, writer, cluster).await,
        ended = &mut up => ended?,
    };
    match up_end {
        End::Eof { last: Some(Kind::Goodbye) } => Ok(send_half.finish()?),
        End::Eof { .. } | End::Read(_) => {
            // The CLI is gone. The reset overtakes whatever is still under way.
            let _closed = send_half.reset(code(RESET_CALLER_GONE));
            // The stream has to outlive the reset's delivery, or its drop would say something else.
            let _stopped = tokio::time::timeout(DELIVERY, send_half.stopped()).await;
            Ok(())
        }
        // The target stopped reading: what it said last is still on its way.
        End::Write(_) => {
            let (end, writer) = down.await;
            finish(end, writer, cluster).await
        }
        End::Protocol(error) => {
            let _closed = send_half.reset(code(RESET_PROTOCOL));
            Err(error.into())
        }
    }
}

/// The first frame is `Exec`, which may be large and comes only once; then the rest is copied.
async fn exec_then_pump(
    mut frames: Frames<OwnedReadHalf>,
    mut send_half: SendStream,
) -> anyhow::Result<(End, SendStream)> {
    frames.set_cap(MAX_EXEC);
    let exec = frames.next(FIRST_FRAME).await?;
    if exec.kind != Kind::Exec {
        anyhow::bail!("a session began with {:?}", exec.kind);
    }
    if let Err(error) = send(&mut send_half, exec).await {
        return Ok((End::Write(std::io::Error::other(error)), send_half));
    }
    let (reader, head) = frames.into_parts();
    Ok(pump(Direction::ToTarget, head, reader, send_half).await)
}

/// The target has said its last word, or is lost: then the CLI's socket is closed, and it draws the conclusion itself.
async fn finish(end: End, mut writer: OwnedWriteHalf, cluster: &str) -> anyhow::Result<()> {
    match end {
        End::Eof { .. } => Ok(writer.shutdown().await?),
        End::Read(error) if refused_as_stranger(&error) => refuse(&mut writer, &not_a_member(cluster)).await,
        End::Read(error) => anyhow::bail!("the attachment is lost: {error}"),
        End::Write(error) => anyhow::bail!("the CLI is gone: {error}"),
        End::Protocol(error) => Err(error.into()),
    }
}

/// The target closed the connection because it does not know this machine: then it read nothing of the request.
fn refused_as_stranger(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::ConnectionLost(lost)) if closed_as_stranger(lost))
}

fn closed_as_stranger(error: &ConnectionError) -> bool {
    closed_with(error) == Some(Close::NotAMember)
}
