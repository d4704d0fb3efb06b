//! The caller's side of a session: resolve the name, find a connection, write one header, and copy.

mod absent;
mod farewell;
pub(crate) mod resolve;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use iroh::endpoint::{ConnectionError, ReadError, RecvStream, SendStream};
use malai_protocol::codec::{Frame, Kind, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::local::SessionTarget;
use malai_protocol::peer::{Close, Gone, Open, RESET_CALLER_GONE, RESET_PROTOCOL};
use malai_protocol::scan::{Direction, Scanner};
use malai_protocol::session::Sent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::clusters::Clusters;
use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::clusters::peers::pulse;
use crate::clusters::peers::removed;
use crate::clusters::peers::twins;
use crate::net::copy::{End, pump};
use crate::net::counters::Counters;
use crate::net::endpoint::MAX_SESSIONS_PER_CONNECTION;
use crate::net::pool::{PeerConn, SessionGuard};
use crate::net::{FIRST_FRAME_TIMEOUT, Frames, closed_with, code, send};
use crate::target;
use absent::Absent;
use farewell::Farewells;

/// Bounds how long the target may take to close a stream whose caller is gone. After that it is told over another one.
const GONE_DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds what is read of a CLI's input while its target is still dialled.
const MAX_EARLY_INPUT_BYTES: usize = 64 * 1024;
/// Bounds how long a machine is dialled, so that the time of the end fits into a clock.
const MAX_DIAL_TIME: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// Sets how long a machine is looked for before it counts as away. From then on it is no sign that this machine's own
/// network is broken, for which the endpoint would be rebuilt.
const DIAL_AWAY_AFTER: Duration = Duration::from_secs(60);
/// Bounds how long a CLI that reads nothing any more may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes requests to other machines for the CLIs of this one, and remembers those whose end the target has to learn.
#[derive(Debug)]
pub(crate) struct Caller {
    clusters: Arc<Clusters>,
    farewells: Farewells,
    absent: Absent,
    tasks: TaskTracker,
}

impl Caller {
    /// Makes a caller with nothing to do.
    pub(crate) fn new(clusters: Arc<Clusters>) -> Arc<Self> {
        let (farewells, absent, tasks) = (Farewells::default(), Absent::default(), TaskTracker::new());
        Arc::new(Self { clusters, farewells, absent, tasks })
    }

    /// Returns whether no target has to be told that a caller is gone, nor may have to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.farewells.is_empty() && self.absent.is_empty()
    }

    /// Stops watching CLIs and telling targets of those that are gone.
    pub(crate) async fn shutdown(&self) {
        self.farewells.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Serves one session of a CLI: `frames` and `writer` are the two halves of its socket, from which the request was read.
///
/// # Errors
/// What went wrong with the CLI's socket or the stream; refusals are answered, and are no errors.
pub(crate) async fn session(
    caller: &Arc<Caller>,
    target: &SessionTarget,
    frames: Frames<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> anyhow::Result<()> {
    let clusters = &caller.clusters;
    if let Some(gone) = &target.attachment {
        caller.absent.returned(gone);
    }
    let (membership, id) = match resolve::resolve(clusters, target) {
        Ok(found) => found,
        Err(failure) => return refuse(&mut writer, &failure).await,
    };
    if id == membership.me {
        return here(membership, target, frames, writer).await;
    }
    // A caller that comes back has to meet its running command, and either machine answers it with the truth.
    if !came_before(target)
        && let Some(failure) = twins::refusal(&membership, id)
    {
        return refuse(&mut writer, &failure).await;
    }
    let mut frames = frames;
    frames.set_cap(MAX_EXEC);
    let first = frames.next(FIRST_FRAME_TIMEOUT).await?;
    if !matches!(first.kind, Kind::Exec | Kind::Attach) && !target::ask::is_question(first.kind) {
        anyhow::bail!("a session began with {:?}", first.kind);
    }
    let (mut reader, mut head) = frames.into_parts();
    let patience = Patience::with(target, &membership, id);
    let (cluster, counters) = (membership.cluster, Arc::clone(&membership.counters));
    // The cluster may have been loaded again meanwhile.
    let not_a_member = Refusal { clusters: Arc::clone(clusters), cluster };
    let cli = absent::process(&writer);
    let opened = tokio::select! {
        opened = reach(clusters, target, membership, id, &patience) => Some(opened),
        () = closed(&mut reader, &mut head) => None,
    };
    let left = match opened {
        Some(Ok((conn, mut entered, send_half, recv))) => {
            let _calling = matches!(first.kind, Kind::Exec | Kind::Attach).then(|| counters.calling());
            let attached = Attached { reader, head, writer, send_half, recv, counters };
            attached.follow(first, target, &conn, &mut entered, &not_a_member).await.unwrap_or_else(Left::Lost)
        }
        Some(Err(failure)) => match refuse(&mut writer, &failure).await {
            Ok(()) if came_before(target) => Left::Lost(failure.into()),
            Ok(()) => Left::InGoodOrder,
            Err(_) => unsent(target, &head),
        },
        None => unsent(target, &head),
    };
    match (left, target.attachment) {
        (Left::Untold, Some(gone)) => farewell::keep(caller, cluster, id, gone),
        (Left::Lost(why), Some(gone)) => {
            tracing::debug!(session = %gone.id.short(), "a CLI has to come back: {why:#}");
            // It sees that only when its socket is closed, and by then it is watched.
            absent::watch(caller, cluster, id, gone, cli);
        }
        (Left::Lost(why), None) => return Err(why),
        _ => {}
    }
    Ok(())
}

/// Returns whether a command of this CLI may run already.
fn came_before(target: &SessionTarget) -> bool {
    target.attachment.is_some_and(|attachment| attachment.number > 1)
}

/// Returns when the CLI has closed its socket. What it sends meanwhile is kept, up to a bound.
async fn closed(reader: &mut OwnedReadHalf, head: &mut BytesMut) {
    while head.len() < MAX_EARLY_INPUT_BYTES {
        head.reserve(MAX_EARLY_INPUT_BYTES / 16);
        match reader.read_buf(head).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    std::future::pending().await
}

/// Says how the CLI left that closed its socket before its request was sent. Earlier attachments of it may have a command
/// that runs.
fn unsent(target: &SessionTarget, head: &BytesMut) -> Left {
    let mut scanner = Scanner::new(Direction::ToTarget);
    let in_good_order = scanner.feed(head).is_ok() && scanner.last() == Some(Kind::Goodbye);
    if came_before(target) && !in_good_order { Left::Untold } else { Left::InGoodOrder }
}

/// Serves a session on this very machine.
async fn here(
    membership: Arc<Membership>,
    target: &SessionTarget,
    frames: Frames<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> anyhow::Result<()> {
    match membership.host.executor.get().await {
        Ok(executor) => {
            tell_sent(target.attachment, Sent { met: Some(executor.incarnation()), reached: None }, &mut writer).await?
        }
        Err(failure) => return refuse(&mut writer, &failure).await,
    }
    let (me, generation) = (membership.me, membership.held().generation());
    target::session(membership, me, generation, target::cli_is_gone, frames, writer).await
}

/// Tells the CLI that its request is on its way, and what it meets. One that did not say which attachment it makes
/// never comes back, and does not know this frame.
async fn tell_sent(attachment: Option<Gone>, sent: Sent, writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    if attachment.is_some() {
        writer.write_all(&Frame::control(Kind::Sent, &sent)?.to_bytes()).await?;
    }
    Ok(())
}

/// Tells the CLI why nothing was started.
pub(crate) async fn refuse(writer: &mut OwnedWriteHalf, failure: &Failure) -> anyhow::Result<()> {
    writer.write_all(&Frame::control(Kind::Refused, failure)?.to_bytes()).await?;
    writer.shutdown().await?;
    Ok(())
}

/// Makes the answer to a CLI whose target does not know this machine.
struct Refusal {
    clusters: Arc<Clusters>,
    cluster: ClusterId,
}

impl Refusal {
    async fn failure(&self) -> Failure {
        match self.clusters.by_id(&self.cluster) {
            Some(membership) => removed::refused(&membership).await,
            None => removed::unknown_here(),
        }
    }
}

type Opened = (Arc<PeerConn>, SessionGuard, SendStream, RecvStream);

/// Returns a stream to the target. When its cluster is loaded again meanwhile, the waiting goes on there.
async fn reach(
    clusters: &Clusters,
    target: &SessionTarget,
    mut membership: Arc<Membership>,
    id: MachineId,
    patience: &Patience,
) -> Result<Opened, Failure> {
    loop {
        let failure = match open(&membership, id, patience).await {
            Err(failure) if membership.cancel.is_cancelled() && Instant::now() < patience.deadline => failure,
            opened => return opened.map_err(|failure| patience.explain(failure)),
        };
        // With it the old sockets would stay open.
        drop(membership);
        clusters.settled().await;
        membership = match resolve::resolve(clusters, target) {
            Ok((next, same)) if same == id && !next.cancel.is_cancelled() => next,
            _ => return Err(failure),
        };
    }
}

async fn open(membership: &Arc<Membership>, id: MachineId, patience: &Patience) -> Result<Opened, Failure> {
    let deadline = patience.deadline;
    let connecting = async {
        match patience.waits {
            true => dial::answering(membership, id, deadline).await,
            false => dial::connect(membership, id, deadline).await,
        }
    };
    tokio::pin!(connecting);
    let waiting = membership.peers.pool.wait();
    let soon = timeout(DIAL_AWAY_AFTER, &mut connecting).await;
    drop(waiting);
    let found = match soon {
        Ok(found) => found,
        Err(_) => connecting.await,
    };
    let conn = match found {
        Err(failure) if failure.kind == FailureKind::NotAMember => return Err(removed::refused(membership).await),
        found => found?,
    };
    let busy = || {
        Failure::new(
            FailureKind::Busy,
            format!("this connection already carries {MAX_SESSIONS_PER_CONNECTION} sessions"),
        )
    };
    let counted = pulse::enter(membership, &conn, MAX_SESSIONS_PER_CONNECTION).ok_or_else(busy)?;
    let opened = async {
        let (mut send_half, recv) = conn.conn.open_bi().await?;
        let open = Open { cluster: membership.cluster, generation: membership.held().generation() };
        send(&mut send_half, Frame::control(Kind::Open, &open)?).await?;
        anyhow::Ok((send_half, recv))
    };
    match tokio::time::timeout_at(deadline, opened).await {
        Ok(Ok((send_half, recv))) => Ok((conn, counted, send_half, recv)),
        Ok(Err(error)) => match conn.conn.close_reason().as_ref().and_then(closed_with) {
            Some(Close::NotAMember | Close::Removed) => Err(removed::refused(membership).await),
            Some(Close::Unsupported) => Err(other_version()),
            _ => Err(Failure::new(FailureKind::Unreachable, format!("the connection was lost: {error:#}"))),
        },
        Err(_) => Err(Failure::new(FailureKind::Unreachable, "no stream could be opened in time")),
    }
}

/// Returns the failure where the target closed the connection because it does not understand this machine.
fn other_version() -> Failure {
    let message =
        format!("the target speaks another version of the protocol than malai {} on this machine", crate::VERSION);
    Failure::new(FailureKind::Unsupported, message)
        .hint("compare `malai --version` on both, and install the same malai")
}

/// Says how long a machine is dialled.
struct Patience {
    deadline: Instant,
    /// Whether the machine is known to be gone, and is dialled for a shorter time than another.
    gone: bool,
    /// Is the CLI waits for the machine, which has to answer before anything is sent.
    waits: bool,
}

impl Patience {
    fn with(target: &SessionTarget, membership: &Membership, id: MachineId) -> Self {
        let asked = Duration::from_millis(target.connect_timeout_ms).min(MAX_DIAL_TIME);
        let short = target.gone_timeout_ms.map(Duration::from_millis).filter(|short| *short < asked);
        let short = short.filter(|_| membership.peers.pool.is_gone(id, &membership.peers.own_addresses()));
        Self { deadline: Instant::now() + short.unwrap_or(asked), gone: short.is_some(), waits: target.wait }
    }

    fn explain(&self, failure: Failure) -> Failure {
        if !self.gone || failure.kind != FailureKind::Unreachable {
            return failure;
        }
        failure.hint("wait until it is back: --wait; or try longer: --connect-timeout 10s")
    }
}

/// Holds a CLI, and the stream of its session.
struct Attached {
    reader: OwnedReadHalf,
    /// Is what was read of it already.
    head: BytesMut,
    writer: OwnedWriteHalf,
    send_half: SendStream,
    recv: RecvStream,
    counters: Arc<Counters>,
}

/// Says how an attachment ended on this side.
enum Left {
    /// The CLI knows how, or the target knows that the CLI is gone.
    InGoodOrder,
    /// The CLI is gone for good, and it is not certain that the target knows.
    Untold,
    /// The attachment is lost, and the CLI will come back; why.
    Lost(anyhow::Error),
}

impl Attached {
    /// Passes the first frame on, and then copies until one of both is done.
    async fn follow(
        mut self,
        first: Frame,
        target: &SessionTarget,
        conn: &PeerConn,
        entered: &mut SessionGuard,
        not_a_member: &Refusal,
    ) -> anyhow::Result<Left> {
        let begins = first.kind == Kind::Exec && target.attachment.is_none_or(|attachment| attachment.number == 1);
        if send(&mut self.send_half, first).await.is_err() {
            // It never had all of the request. What it said last is still on its way.
            let (end, writer) = pump(Direction::ToCaller, BytesMut::new(), self.recv, self.writer).await;
            return finish(end, writer, not_a_member).await;
        }
        self.counters.called.add(u64::from(begins));
        let sent = Sent { met: conn.executor(), reached: Some(conn.reached()) };
        // When the CLI is gone already, its own end of the socket tells so below.
        if let Err(error) = tell_sent(target.attachment, sent, &mut self.writer).await {
            tracing::debug!("the CLI was not told that its request is sent: {error:#}");
        }
        self.copy(entered, not_a_member).await
    }

    async fn copy(self, entered: &mut SessionGuard, not_a_member: &Refusal) -> anyhow::Result<Left> {
        let Self { reader, head, writer, mut send_half, mut recv, .. } = self;
        let up_end = {
            let up = pump(Direction::ToTarget, head, reader, &mut send_half);
            let down = pump(Direction::ToCaller, BytesMut::new(), &mut recv, writer);
            tokio::pin!(up, down);
            tokio::select! {
                // The CLI attaches again, over another connection.
                () = entered.given_up() => anyhow::bail!("the connection is stalled"),
                (end, writer) = &mut down => {
                    // A CLI that takes nothing is gone; and one may be gone when its stream is lost. Whether it left in
                    // good order, its own frames tell.
                    let patience = if matches!(end, End::Write(_)) { GOODBYE_TIMEOUT } else { Duration::ZERO };
                    match (end, timeout(patience, up).await) {
                        (End::Write(_) | End::Read(_), Ok((End::Eof { last }, _))) => End::Eof { last },
                        (End::Write(error), _) => End::Read(error),
                        (end, _) => return finish(end, writer, not_a_member).await,
                    }
                }
                (end, _) = &mut up => match end {
                    // The target stopped reading: what it said last is still on its way.
                    End::Write(_) => {
                        let (end, writer) = down.await;
                        return finish(end, writer, not_a_member).await;
                    }
                    end => end,
                },
            }
        };
        match up_end {
            End::Eof { last: Some(Kind::Goodbye) } => {
                send_half.finish()?;
                Ok(Left::InGoodOrder)
            }
            End::Eof { .. } | End::Read(_) | End::Write(_) => Ok(gone(send_half, recv).await),
            End::Protocol(error) => {
                let _closed = send_half.reset(code(RESET_PROTOCOL));
                Err(error.into())
            }
        }
    }
}

/// Resets the stream of a CLI that is gone, which overtakes what is still under way. The target ends its side of the stream
/// in good order when it has passed that on, and in no other way.
async fn gone(mut send_half: SendStream, mut recv: RecvStream) -> Left {
    let _closed = send_half.reset(code(RESET_CALLER_GONE));
    let ended = async {
        loop {
            match recv.read_chunk(usize::MAX).await {
                Ok(Some(_)) => {}
                Ok(None) => return Left::InGoodOrder,
                Err(_) => return Left::Untold,
            }
        }
    };
    timeout(GONE_DELIVERY_TIMEOUT, ended).await.unwrap_or(Left::Untold)
}

/// Closes the CLI's socket when the target has sent its last frame, or is lost: the CLI draws the conclusion itself.
async fn finish(end: End, mut writer: OwnedWriteHalf, not_a_member: &Refusal) -> anyhow::Result<Left> {
    match end {
        End::Eof { last: Some(last) } if is_last_word(last) => {
            writer.shutdown().await?;
            Ok(Left::InGoodOrder)
        }
        End::Eof { .. } => anyhow::bail!("the target ended the stream before its last frame"),
        End::Read(error) if refused_as_stranger(&error) => {
            refuse(&mut writer, &not_a_member.failure().await).await?;
            Ok(Left::InGoodOrder)
        }
        End::Read(error) => anyhow::bail!("the attachment is lost: {error}"),
        End::Write(error) => anyhow::bail!("the CLI is gone: {error}"),
        End::Protocol(error) => Err(error.into()),
    }
}

/// Returns whether the CLI does not come back after this.
fn is_last_word(kind: Kind) -> bool {
    matches!(kind, Kind::Exit | Kind::Refused | Kind::Superseded | Kind::Listed | Kind::Killed)
}

/// Returns whether the target closed the connection because it does not know this machine: then it read nothing of the
/// request.
fn refused_as_stranger(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::ConnectionLost(lost)) if closed_as_stranger(lost))
}

fn closed_as_stranger(error: &ConnectionError) -> bool {
    closed_with(error) == Some(Close::NotAMember)
}
