//! One connection to a machine, from its handshake to its end: greetings, announcements, and the streams that the peer
//! opens.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream};
use malai_protocol::codec::{CodecError, Frame, Kind, MAX_CONTROL};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{Close, Gone, Open, Pull, RESET_LOST, RESET_PROTOCOL};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::greet::Greeted;
use crate::clusters::membership::Membership;
use crate::clusters::peers::directory;
use crate::clusters::peers::greet;
use crate::clusters::peers::pulse;
use crate::net::endpoint::MAX_SESSIONS_PER_CONNECTION;
use crate::net::limits::budget::Exceeded;
use crate::net::limits::pace::StreamPace;
use crate::net::pool::PeerConn;
use crate::net::pull::SNAPSHOT_BODY_TIMEOUT;
use crate::net::{FIRST_FRAME_TIMEOUT, FrameError, Frames, abandon, close, code, is_protocol_error, send};
use crate::runtime::duty;
use crate::store::held::Held;
use crate::target;

/// Sets how long a connection that another one replaced is kept without a session: by then both sides know of both.
const SPARE_CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Bounds how long a removed machine keeps its connection, for the records of the sessions that are being ended. It is
/// served nothing else meanwhile.
const REMOVED_CLOSE_TIMEOUT: Duration = Duration::from_secs(7);
/// Sets how long such a connection must have been without a session before it is closed: by then the machine has heard
/// every refusal, too.
const REMOVED_IDLE_TIME: Duration = Duration::from_millis(500);
/// Is the message for a machine that the config does not have any more.
const REMOVED_MESSAGE: &str = "not a member of the cluster any more";

/// Serves a connection that the peer dialled in tasks of the membership until it ends; its control stream comes to us.
pub(crate) fn spawn(membership: &Arc<Membership>, conn: &Arc<PeerConn>) {
    let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
    begin(&membership.tasks.clone(), membership, conn, std::future::pending());
}

/// Serves a connection that we dialled. The control stream is open before anybody else can find the connection: a peer
/// that does not know us yet reads the first stream only, and has to find the greeting there.
pub(crate) fn spawn_dialed(membership: &Arc<Membership>, conn: &Arc<PeerConn>, control: (SendStream, RecvStream)) {
    let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
    let (m, c) = (Arc::clone(&membership), Arc::clone(&conn));
    let followed = async move { greet::control(&m, &c, control).await };
    begin(&membership.tasks.clone(), membership, conn, followed);
}

/// Serves a connection whose greeting was read already: a stranger's that showed itself to be a member.
pub(crate) fn spawn_introduced(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    greeted: Greeted,
    control: (SendStream, Frames<RecvStream>),
) {
    let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
    let (m, c) = (Arc::clone(&membership), Arc::clone(&conn));
    let followed = async move { greet::introduced(&m, &c, greeted, control).await };
    begin(&membership.tasks.clone(), membership, conn, followed);
}

/// Adds the connection to the pool, and serves it with this control stream; closes it when the machine has too many.
fn begin(
    tasks: &TaskTracker,
    membership: Arc<Membership>,
    conn: Arc<PeerConn>,
    control: impl Future<Output = (Close, String)> + Send + 'static,
) {
    if !membership.peers.pool.add(&conn) {
        if let Some(left_out) = membership.peers.refused.refused(conn.peer) {
            let (peer, cluster) = (conn.peer.short(), &membership.alias);
            tracing::info!(%peer, %cluster, left_out, "connection refused: too many from this machine");
        }
        return close(&conn.conn, Close::Busy, "too many connections from this machine");
    }
    tasks.spawn(async move { run(&membership, &conn, control).await });
}

async fn run(membership: &Arc<Membership>, conn: &Arc<PeerConn>, control: impl Future<Output = (Close, String)>) {
    let streams = TaskTracker::new();
    let served = async {
        tokio::select! {
            () = membership.cancel.cancelled() => (Close::Shutdown, "the daemon shuts down".to_owned()),
            why = control => why,
            why = accept(membership, conn, &streams) => why,
            why = retire(membership, conn) => why,
        }
    };
    // Whatever happens, the pool must not keep a connection that no task serves.
    let why = duty::caught(served).await.unwrap_or_else(|| (Close::Done, "a fault in malai ended it".to_owned()));
    tracing::debug!(peer = %conn.peer.short(), cluster = %membership.alias, "connection ends: {}", why.1);
    close(&conn.conn, why.0, &why.1);
    greet::parted(membership, conn);
    membership.peers.pool.remove(conn, &membership.peers.own_addresses());
    streams.close();
    streams.wait().await;
}

/// Accepts the streams that the peer opens, at its machine's pace.
async fn accept(membership: &Arc<Membership>, conn: &Arc<PeerConn>, streams: &TaskTracker) -> (Close, String) {
    let pace = membership.peers.pool.streams(conn.peer);
    loop {
        match next_stream(&conn.conn, &pace).await {
            Ok((send, recv)) => {
                streams.spawn(stream(Arc::clone(membership), Arc::clone(conn), send, recv));
            }
            Err(error) => return (Close::Done, error.to_string()),
        }
    }
}

/// Returns the next stream that the peer opens, when its turn has come.
async fn next_stream(conn: &Connection, pace: &StreamPace) -> Result<(SendStream, RecvStream), ConnectionError> {
    let stream = conn.accept_bi().await?;
    pace.turn().await;
    Ok(stream)
}

/// Waits until this connection has no use any more.
async fn retire(membership: &Arc<Membership>, conn: &Arc<PeerConn>) -> (Close, String) {
    let mut snapshots = membership.watch();
    let mut changes = membership.peers.pool.watch();
    let mut spare_since = None;
    loop {
        if !membership.is_member(&conn.peer) && removed(membership, conn).await {
            return (Close::Removed, REMOVED_MESSAGE.to_owned());
        }
        let is_spare = membership.peers.pool.is_spare(conn);
        let now = Instant::now();
        spare_since = (is_spare && conn.sessions() == 0).then(|| spare_since.unwrap_or(now));
        let spare_until = spare_since.unwrap_or(now) + SPARE_CONNECTION_TIME;
        if now >= spare_until {
            return (Close::Replaced, "another connection to this machine is used".to_owned());
        }
        tokio::select! {
            _ = snapshots.changed() => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(spare_until), if is_spare => {}
        }
    }
}

/// Waits until a machine that is not in the config any more has the records of its sessions. Returns false when it is in
/// the config again.
async fn removed(membership: &Membership, conn: &PeerConn) -> bool {
    let mut snapshots = membership.watch();
    let idle = async {
        loop {
            conn.emptied().await;
            tokio::time::sleep(REMOVED_IDLE_TIME).await;
            if conn.sessions() == 0 {
                return;
            }
        }
    };
    let is_back = |held: &Arc<Held>| held.config.machine_by_id(&conn.peer).is_some();
    tokio::select! {
        () = idle => true,
        () = tokio::time::sleep(REMOVED_CLOSE_TIMEOUT) => true,
        back = snapshots.wait_for(is_back) => back.is_err(),
    }
}

/// Serves one stream that the peer opened: its first frame says what it is.
async fn stream(membership: Arc<Membership>, conn: Arc<PeerConn>, mut send_half: SendStream, recv: RecvStream) {
    let charge = match membership.peers.pool.undecided(conn.peer).begin() {
        Ok(charge) => charge,
        Err(exceeded) => return turn_away(&conn, recv, &mut send_half, exceeded).await,
    };
    let mut frames = Frames::charged(recv, MAX_CONTROL, charge);
    let first = match frames.next(FIRST_FRAME_TIMEOUT).await {
        Ok(frame) => frame,
        Err(FrameError::Exceeded(exceeded)) => {
            return turn_away(&conn, frames.into_parts().0, &mut send_half, exceeded).await;
        }
        Err(error) => {
            tracing::debug!(peer = %conn.peer.short(), "stream ended before its first frame: {error}");
            let (mut recv, _) = frames.into_parts();
            return abandon(&mut send_half, &mut recv, RESET_PROTOCOL);
        }
    };
    membership.peers.pool.heard(conn.peer);
    if first.kind != Kind::Open {
        frames.settle();
    }
    let result = match first.kind {
        // What asks for a session is refused, and written down, where every such request is.
        kind if kind != Kind::Open && !membership.is_member(&conn.peer) => {
            refuse_removed(&membership, &conn, kind, &mut send_half).await
        }
        Kind::PeerHello if conn.may_greet() => {
            return greet::answer(&membership, &conn, &first, send_half, frames).await;
        }
        Kind::PeerHello => return close(&conn.conn, Close::Protocol, "only the dialling side greets, and once"),
        Kind::Open => session(&membership, &conn, &first, &mut send_half, frames).await,
        Kind::Gone => gone(&membership, &conn, &first, &mut send_half).await,
        Kind::Pull => pull(&membership, &conn, &first, &mut send_half).await,
        Kind::Resolve => directory(&membership, &conn, &first, &mut send_half).await,
        Kind::Ping => answer(&mut send_half, Frame::empty(Kind::Pong)).await,
        got => Err(CodecError::OutOfOrder { got, wanted: "the beginning of a stream" }.into()),
    };
    if let Err(error) = result {
        tracing::debug!(peer = %conn.peer.short(), cluster = %membership.alias, "stream ended: {error:#}");
        let number = if is_protocol_error(&error) { RESET_PROTOCOL } else { RESET_LOST };
        // It fails only when the half is finished or reset already, which is as good.
        let _closed = send_half.reset(code(number));
    }
}

/// Refuses what is not read, since its sender has too much here already.
async fn turn_away(conn: &PeerConn, recv: RecvStream, send_half: &mut SendStream, exceeded: Exceeded) {
    // What came of it is thrown away at once, before the answer waits for anything.
    drop(recv);
    tracing::debug!(peer = %conn.peer.short(), "stream refused: {exceeded}");
    let refused = Frame::control(Kind::Refused, &Failure::from(exceeded));
    let answered = async { answer(send_half, refused?).await };
    if let Err(error) = answered.await {
        tracing::debug!(peer = %conn.peer.short(), "a refusal was not delivered: {error:#}");
    }
}

/// Refuses what a machine asks that is not in the config any more.
async fn refuse_removed(
    membership: &Membership,
    conn: &PeerConn,
    kind: Kind,
    send_half: &mut SendStream,
) -> anyhow::Result<()> {
    if kind == Kind::PeerHello {
        // A greeting has no refusal: the code with which the connection is closed is the answer.
        conn.conn.closed().await;
        return Ok(());
    }
    let failure = Failure::new(FailureKind::NotAMember, REMOVED_MESSAGE)
        .hint(format!("on the cluster manager: `malai cluster invite {}`", membership.alias));
    answer(send_half, Frame::control(Kind::Refused, &failure)?).await
}

async fn answer(send_half: &mut SendStream, frame: Frame) -> anyhow::Result<()> {
    send(send_half, frame).await?;
    send_half.finish()?;
    Ok(())
}

async fn directory(
    membership: &Arc<Membership>,
    conn: &PeerConn,
    first: &Frame,
    send_half: &mut SendStream,
) -> anyhow::Result<()> {
    let told = directory::answer(membership, conn, first).await?;
    answer(send_half, told).await
}

async fn pull(
    membership: &Membership,
    conn: &PeerConn,
    first: &Frame,
    send_half: &mut SendStream,
) -> anyhow::Result<()> {
    let _wanted: Pull = first.decode()?;
    let Some(_place) = membership.peers.pool.pull(conn.peer) else {
        let failure = Failure::new(FailureKind::Busy, "this machine is already fetching the snapshot");
        return answer(send_half, Frame::control(Kind::Refused, &failure)?).await;
    };
    let held = membership.held();
    if held.config.machine_by_id(&conn.peer).is_none() {
        return refuse_removed(membership, conn, first.kind, send_half).await;
    }
    let answered = async {
        answer(send_half, Frame::control(Kind::Snapshot, &held.snapshot.to_signed())?).await?;
        // Until it is delivered it takes memory here.
        send_half.stopped().await.map_err(anyhow::Error::from)
    };
    match tokio::time::timeout(SNAPSHOT_BODY_TIMEOUT, answered).await {
        Ok(delivered) => delivered.map(|_| ()),
        Err(_) => anyhow::bail!("the snapshot was not taken within {SNAPSHOT_BODY_TIMEOUT:?}"),
    }
}

/// Waits until the sessions of an earlier daemon were taken over, so that none is used before it is decided again.
async fn opened(membership: &Membership) -> anyhow::Result<()> {
    tokio::select! {
        () = membership.host.open.cancelled() => Ok(()),
        () = membership.cancel.cancelled() => anyhow::bail!("the daemon shuts down"),
    }
}

async fn gone(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    first: &Frame,
    send_half: &mut SendStream,
) -> anyhow::Result<()> {
    let gone: Gone = first.decode()?;
    opened(membership).await?;
    match target::attach::gone(membership, conn.peer, &gone).await {
        Ok(()) => answer(send_half, Frame::empty(Kind::Pong)).await,
        // It is to be said again.
        Err(failure) if failure.kind == FailureKind::Internal => Err(failure.into()),
        Err(failure) => answer(send_half, Frame::control(Kind::Refused, &failure)?).await,
    }
}

async fn session(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    first: &Frame,
    send_half: &mut SendStream,
    frames: Frames<RecvStream>,
) -> anyhow::Result<()> {
    let open: Open = first.decode()?;
    opened(membership).await?;
    let refusal = if membership.host.agent {
        Some(
            // Whether the command of an earlier attempt runs there, an agent does not know.
            Failure::new(
                FailureKind::Unreachable,
                "only an agent runs on the target, and an agent accepts no commands",
            )
            .hint("on the target: `malai daemon`"),
        )
    } else if open.cluster != membership.cluster {
        Some(Failure::new(FailureKind::UnknownTarget, "the request names another cluster"))
    } else {
        None
    };
    if let Some(failure) = refusal {
        return answer(send_half, Frame::control(Kind::Refused, &failure)?).await;
    }
    let Some(_counted) = pulse::enter(membership, conn, MAX_SESSIONS_PER_CONNECTION) else {
        let failure = Failure::new(
            FailureKind::Busy,
            format!("this connection already carries {MAX_SESSIONS_PER_CONNECTION} sessions"),
        );
        return answer(send_half, Frame::control(Kind::Refused, &failure)?).await;
    };
    let (same, caller) = (Arc::clone(membership), conn.peer);
    let ended = target::session(same, caller, open.generation, target::peer_says_gone, frames, &mut *send_half).await;
    if ended.is_ok() && !membership.is_member(&caller) {
        // The connection is closed when no session is left: first the peer has to have the last word of this one.
        let _delivered = tokio::time::timeout(REMOVED_CLOSE_TIMEOUT, send_half.stopped()).await;
    }
    ended
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::net::testing::Connected;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_is_taken_at_once_and_one_of_a_machine_that_had_too_many_is_not() {
        let Connected { accepted, dialled, .. } = &Connected::new().await;
        let open = async || {
            let (mut send, recv) = dialled.open_bi().await.unwrap();
            send.write_all(&[Kind::Ping as u8]).await.unwrap();
            (send, recv)
        };
        let _first = open().await;
        assert!(timeout(Duration::from_secs(10), next_stream(accepted, &StreamPace::default())).await.is_ok());
        let _second = open().await;
        let early = timeout(Duration::from_millis(500), next_stream(accepted, &StreamPace::exhausted())).await;
        assert!(early.is_err(), "it had its turn a minute early");
    }
}
