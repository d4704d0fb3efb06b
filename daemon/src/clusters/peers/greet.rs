//! Hello and Announce: which machine holds which snapshot, and where each can be reached.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{RecvStream, SendStream};
use iroh::{TransportAddr, Watcher};
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::peer::{Announce, Close, Hello, MAX_ADDRESSES};
use malai_protocol::snapshot::{SignedHeader, SnapshotError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clusters::config::sync;
use crate::clusters::membership::Membership;
use crate::clusters::peers::removed;
use crate::clusters::peers::twins;
use crate::net::endpoint::parse_address;
use crate::net::pool::PeerConn;
use crate::net::{FIRST_FRAME_TIMEOUT, Frames, Unsupported, closed_with, greeting, is_protocol_error, send};
use crate::runtime::alarms::AlarmCause;
use crate::store::held::Held;

/// Sets the least time between two announcements of a peer on average. More is a flood.
const MIN_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// Sets how often the manager looks whether another machine still holds the key of a peer that it warned.
const TWIN_LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// Serves the control stream on the side that dialled and opened it: greets, and follows it. Ends when the stream does.
pub(crate) async fn control(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    (mut send_half, recv): (SendStream, RecvStream),
) -> (Close, String) {
    let told = Announced::now(membership);
    let greeted = async {
        send(&mut send_half, Frame::control(Kind::PeerHello, &membership.hello())?).await?;
        let mut frames = Frames::new(recv, MAX_HELLO);
        let hello = greeting(&frames.next(FIRST_FRAME_TIMEOUT).await?)?;
        meet(membership, conn, &hello)?;
        follow(membership, conn, told, (send_half, frames)).await
    };
    end(greeted.await)
}

/// Serves the control stream on the side that accepted: answers the greeting and follows the stream.
pub(crate) async fn answer(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    first: &Frame,
    mut send_half: SendStream,
    mut frames: Frames<RecvStream>,
) {
    frames.set_cap(MAX_HELLO);
    let told = Announced::now(membership);
    let greeted = async {
        let hello = greeting(first)?;
        meet(membership, conn, &hello)?;
        send(&mut send_half, Frame::control(Kind::PeerHello, &membership.hello())?).await?;
        follow(membership, conn, told, (send_half, frames)).await
    };
    let (code, reason) = end(greeted.await);
    tracing::debug!(peer = %conn.peer.short(), cluster = %membership.alias, "connection ends: {reason}");
    crate::net::close(&conn.conn, code, &reason);
}

/// Serves the control stream of a stranger that turned out to be a member: both sides have greeted already.
pub(crate) async fn introduced(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    Greeted { hello, told }: Greeted,
    (send_half, frames): (SendStream, Frames<RecvStream>),
) -> (Close, String) {
    match meet(membership, conn, &hello) {
        Ok(()) => end(follow(membership, conn, told, (send_half, frames)).await),
        Err(error) => end(Err(error)),
    }
}

/// Remembers what the greeting told the peer, and hears of every later change. It is made before the greeting is.
#[derive(Debug)]
pub(crate) struct Announced {
    snapshots: watch::Receiver<Arc<Held>>,
    generation: u64,
    /// Holds where this machine can be reached.
    addresses: Vec<String>,
    /// Says where another machine with the peer's key was met.
    twin: Option<String>,
}

impl Announced {
    /// Begins with what is held now.
    pub(crate) fn now(membership: &Membership) -> Self {
        let mut snapshots = membership.watch();
        let generation = snapshots.borrow_and_update().generation();
        Self { snapshots, generation, addresses: membership.hello().addresses, twin: None }
    }

    /// Returns what is to be told of this snapshot, and of this machine.
    fn announce(&self, held: &Held) -> Announce {
        let header = held.snapshot.signed_header().clone();
        Announce { addresses: self.addresses.clone(), twin: self.twin.clone(), ..Announce::of(header) }
    }
}

/// Holds both greetings of a connection.
#[derive(Debug)]
pub(crate) struct Greeted {
    /// Is the peer's greeting.
    pub(crate) hello: Hello,
    /// Remembers what ours told.
    pub(crate) told: Announced,
}

fn end(result: anyhow::Result<()>) -> (Close, String) {
    match result {
        Ok(()) => (Close::Done, "the control stream ended".to_owned()),
        Err(error) if error.is::<Unsupported>() => (Close::Unsupported, error.to_string()),
        Err(error) if is_protocol_error(&error) => (Close::Protocol, error.to_string()),
        Err(error) => (Close::Done, error.to_string()),
    }
}

/// Notes how a connection ended: where the cluster manager does not have this machine, an administrator has to know.
pub(crate) fn parted(membership: &Membership, conn: &PeerConn) {
    let code = conn.conn.close_reason().as_ref().and_then(closed_with);
    if membership.manager_id() != Some(conn.peer) || !matches!(code, Some(Close::Removed | Close::NotAMember)) {
        return;
    }
    let text = format!("{}; {}", removed::says_manager(membership), removed::hint(membership));
    membership.raise(AlarmCause::Removed, text);
}

/// Notes what a greeting says.
fn meet(membership: &Arc<Membership>, conn: &Arc<PeerConn>, hello: &Hello) -> anyhow::Result<()> {
    if hello.caller_only {
        conn.set_caller_only();
    }
    if let Some(executor) = hello.executor {
        conn.set_executor(executor);
    }
    if let Some(boot) = hello.boot
        && membership.peers.pool.booted(conn, boot)
    {
        twins::seen(membership, conn.peer);
    }
    if membership.manager_id() == Some(conn.peer) {
        membership.clear(AlarmCause::Removed);
        // It says again what it knows.
        membership.clear(AlarmCause::TwoMachines);
    }
    conn.set_met();
    tracing::info!(peer = %conn.peer.short(), dialed = conn.dialed, "connected");
    membership.peers.pool.greeted(conn, hello);
    hear(membership, conn, hello.header.as_ref(), &hello.addresses)?;
    Ok(())
}

/// Notes the peer's snapshot and addresses, and fetches the snapshot when it is newer.
fn hear(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    header: Option<&SignedHeader>,
    addresses: &[String],
) -> Result<(), SnapshotError> {
    let told = addresses.iter().take(MAX_ADDRESSES).filter_map(|text| parse_address(text));
    let (hearsay, sockets) = (membership.peers.hearsay(&membership.held().config.network), conn.remote_sockets());
    let addresses: Vec<TransportAddr> = told.filter(|addr| hearsay.admits(addr, |ip| sockets.contains(&ip))).collect();
    let header = header.map(|header| header.verify(&membership.cluster)).transpose()?;
    membership.peers.pool.told(conn.peer, header.as_ref().map(|header| header.generation), &addresses);
    if let Some(header) = header {
        sync::offered(membership, conn, header);
    }
    Ok(())
}

/// Follows the control stream: tells our changes, hears theirs.
async fn follow(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    mut told: Announced,
    (mut send_half, mut frames): (SendStream, Frames<RecvStream>),
) -> anyhow::Result<()> {
    let pace = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(pace);
    let mut twins_seen = membership.peers.pool.watch_twins();
    let mut own_addresses = membership.peers.endpoint.watch_addr();
    loop {
        if let Some(announce) = twins::news(membership, conn, &mut told.twin) {
            send(&mut send_half, Frame::control(Kind::Announce, &announce)?).await?;
        }
        tokio::select! {
            // What was received before would still be read, at its pace.
            _ = conn.conn.closed() => return Ok(()),
            changed = told.snapshots.changed() => {
                changed?;
                let held = Arc::clone(&told.snapshots.borrow_and_update());
                // A machine that it does not have is closed, and told so by the code.
                if held.generation() != told.generation && held.config.machine_by_id(&conn.peer).is_some() {
                    told.generation = held.generation();
                    told.addresses = membership.hello().addresses;
                    send(&mut send_half, Frame::control(Kind::Announce, &told.announce(&held))?).await?;
                }
            }
            // A peer that learns this at once finds this machine when its own address changes next.
            changed = own_addresses.updated() => {
                changed?;
                let (addresses, held) = (membership.hello().addresses, membership.held());
                let is_news = !addresses.is_empty() && addresses != told.addresses;
                if is_news && held.generation() == told.generation {
                    told.addresses = addresses;
                    send(&mut send_half, Frame::control(Kind::Announce, &told.announce(&held))?).await?;
                }
            }
            seen = twins_seen.changed() => seen?,
            () = tokio::time::sleep(TWIN_LOOK_INTERVAL), if told.twin.is_some() => {}
            frame = async { pace.as_mut().await; frames.next_unbounded().await } => {
                let Some(frame) = frame else { return Ok(()) };
                let announce: Announce = frame?.expect(Kind::Announce, "Announce")?;
                if membership.is_member(&conn.peer) {
                    hear(membership, conn, Some(&announce.header), &announce.addresses)?;
                    twins::told(membership, conn, announce.twin.as_deref());
                }
                pace.as_mut().reset(Instant::now() + MIN_ANNOUNCE_INTERVAL);
            }
        }
    }
}
