//! Accepts connections at the machine key. A member's is served; a stranger may show one snapshot header.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Close, Hello, unknown_need};
use malai_protocol::snapshot::{Order, order};
use tokio::sync::Semaphore;

use super::greet::{Announced, Greeted};
use crate::clusters::config::sync;
use crate::clusters::membership::Membership;
use crate::clusters::peers::serve;
use crate::net::limits::handshakes::{Handshake, Handshakes};
use crate::net::limits::pace::RateLimit;
use crate::net::pool::PeerConn;
use crate::net::{Frames, Unsupported, close, machine_id, send, spoken};

/// Is all that a stranger hears.
const NOT_A_MEMBER: &str = "not a member of the cluster";
/// Bounds how long a stranger may take for its Hello.
const STRANGER_HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the strangers that are heard at once; more are closed unheard. They have places of their own, so that they keep
/// no member from coming in.
const MAX_STRANGERS: usize = 64;
/// Sets the least time between two greetings of one stranger's key.
const STRANGER_INTERVAL: Duration = Duration::from_secs(1);

/// Counts the strangers that are heard, and how often each greets.
#[derive(Debug)]
struct Strangers {
    places: Semaphore,
    visits: RateLimit<MachineId>,
}

/// Accepts until the endpoint closes or the membership ends.
pub(crate) async fn run(membership: Arc<Membership>) {
    let strangers = Strangers { places: Semaphore::new(MAX_STRANGERS), visits: RateLimit::new(STRANGER_INTERVAL, 1) };
    let strangers = Arc::new(strangers);
    let serve = |handshake| {
        let (membership, strangers) = (Arc::clone(&membership), Arc::clone(&strangers));
        async move { connection(&membership, handshake, &strangers).await }
    };
    Handshakes::of_members().accept(&membership.peers.endpoint, &membership.tasks, &membership.cancel, serve).await;
}

async fn connection(membership: &Arc<Membership>, handshake: Handshake, strangers: &Strangers) {
    let conn = match handshake.finish().await {
        Ok(conn) => conn,
        Err(error) => {
            membership.counters.handshakes_failed.one();
            return tracing::debug!("handshake failed: {error:#}");
        }
    };
    membership.counters.handshakes_ok.one();
    let Some(peer) = machine_id(&conn.remote_id()) else { return };
    if membership.is_member(&peer) {
        membership.peers.refused.forget(&peer);
        return serve::spawn(membership, &PeerConn::new(conn, peer, false));
    }
    match introduce(membership, &conn, peer, strangers).await {
        Ok(Some(accepted)) => {
            membership.peers.refused.forget(&peer);
            tracing::info!(peer = %accepted.peer.short(), "introduced itself with a newer snapshot");
        }
        Ok(None) => refuse(membership, &conn, peer, "not in the snapshot"),
        Err(error) => refuse(membership, &conn, peer, &format!("{error:#}")),
    }
}

fn refuse(membership: &Membership, conn: &Connection, peer: MachineId, why: &str) {
    if let Some(left_out) = membership.peers.refused.refused(peer) {
        tracing::info!(peer = %peer.short(), cluster = %membership.alias, left_out, "connection refused: {why}");
    }
    membership.counters.connections_refused.one();
    close(conn, Close::NotAMember, NOT_A_MEMBER);
}

/// Reads a stranger's one Hello. When it shows a newer snapshot that makes it a member, the connection is served, and
/// the stream goes on as its control stream.
async fn introduce(
    membership: &Arc<Membership>,
    conn: &Connection,
    peer: MachineId,
    strangers: &Strangers,
) -> anyhow::Result<Option<Arc<PeerConn>>> {
    let Ok(_place) = strangers.places.try_acquire() else { anyhow::bail!("too many strangers at once") };
    if !strangers.visits.allows(peer) {
        anyhow::bail!("greets too often");
    }
    let (mut send_half, recv) = tokio::time::timeout(STRANGER_HELLO_TIMEOUT, conn.accept_bi()).await??;
    let mut frames = Frames::new(recv, MAX_HELLO);
    match listen(membership, conn, peer, &mut send_half, &mut frames).await {
        Ok(Some((peer_conn, greeted))) => {
            serve::spawn_introduced(membership, &peer_conn, greeted, (send_half, frames));
            Ok(Some(peer_conn))
        }
        turned_away => {
            // Before the stream is dropped, whose end the stranger would see first.
            match turned_away.as_ref().err().and_then(|error| error.downcast_ref::<Unsupported>()) {
                // Whether it may become a member, a message of another version does not tell.
                Some(unsupported) => close(conn, Close::Unsupported, &unsupported.to_string()),
                None => close(conn, Close::NotAMember, NOT_A_MEMBER),
            }
            turned_away.map(|_| None)
        }
    }
}

/// Returns what the stranger's greeting says, where it makes it a member.
async fn listen(
    membership: &Arc<Membership>,
    conn: &Connection,
    peer: MachineId,
    send_half: &mut SendStream,
    frames: &mut Frames<RecvStream>,
) -> anyhow::Result<Option<(Arc<PeerConn>, Greeted)>> {
    let hello: Hello = spoken(&frames.next(STRANGER_HELLO_TIMEOUT).await?, Kind::PeerHello, "PeerHello")?;
    let Some(header) = hello.header.as_ref().filter(|_| !hello.caller_only && unknown_need(&hello.needs).is_none())
    else {
        return Ok(None);
    };
    let header = header.verify(&membership.cluster)?;
    if order(&header, Some(membership.held().snapshot.header())) != Order::Newer {
        return Ok(None);
    }
    let told = Announced::now(membership);
    // The body is asked for on a stream of ours; nothing else of the stranger is read meanwhile.
    send(send_half, Frame::control(Kind::PeerHello, &membership.hello())?).await?;
    let peer_conn = PeerConn::new(conn.clone(), peer, false);
    tokio::time::timeout(crate::net::FIRST_FRAME_TIMEOUT, sync::fetch(membership, &peer_conn, &header)).await??;
    Ok(membership.is_member(&peer).then_some((peer_conn, Greeted { hello, told })))
}
