//! The relay's own endpoint: it hears a peer that shows a header which one of its clusters signed, and fetches a newer
//! snapshot from it. Nothing else is served here: no session, no snapshot, no address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use iroh::endpoint::{Connection, PortmapperConfig, QuicTransportConfig, RecvStream, SendStream, VarInt, presets};
use iroh::{Endpoint, RelayMode};
use malai_protocol::codec::{Frame, Kind as FrameKind, MAX_HELLO};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{ALPN, Announce, Close, Hello, unknown_need};
use malai_protocol::snapshot::{Header, Order};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clusters::{Cluster, Clusters};
use crate::net::limits::handshakes::{Handshake, Handshakes};
use crate::net::limits::tally::Tally;
use crate::net::{Frames, Unsupported, bare_hello, close, endpoint, machine_id, send, spoken};
use crate::store::secret::Secret;

/// Bounds how long a peer may take to greet, from its first packet on.
const RELAY_HELLO_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds how long it may take after that to tell what is newer, and to read the answer.
const RELAY_TELL_TIMEOUT: Duration = Duration::from_secs(15);
/// Bounds the connections that are heard at once, beyond those of cluster managers.
const MAX_HEARD_CONNECTIONS: usize = 64;
/// Bounds how many handshakes one address may begin at once.
const MAX_HANDSHAKE_BURST: u32 = 16;
/// Sets the pace of one address after that.
const HANDSHAKE_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds the connections of the manager of one cluster: by its cluster key, by its machine key, and those that are being
/// replaced.
const MAX_CONNECTIONS_PER_MANAGER: usize = 4;
/// Sets the least time between two announcements of a manager on average.
const MIN_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds how long the last frame may take to arrive.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds what may be on its way on one connection: of strangers only a greeting comes, and snapshots wait a round trip
/// more.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Sets how long a connection on which nothing is heard lives.
const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Is all that a peer hears that is not heard itself.
const NOT_HEARD: &str = "not of a cluster that this relay serves";

/// Binds the relay's endpoint at UDP `listen`; for an unspecified IPv6 address, at IPv4 too.
///
/// # Errors
/// [`Kind::Internal`] when the port is taken.
pub(crate) async fn bind(key: &Secret, listen: SocketAddr) -> Result<Endpoint, Failure> {
    let fail = |e: &dyn std::fmt::Display| {
        Failure::new(Kind::Internal, format!("cannot bind UDP {listen}: {e}"))
            .hint("another program may hold the port: `ss -ulpn` shows which")
    };
    let mut transport = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    if let Ok(idle) = CONNECTION_IDLE_TIMEOUT.try_into() {
        transport = transport.max_idle_timeout(Some(idle));
    }
    let mut builder = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(transport.build())
        .clear_ip_transports();
    let both = listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if both {
        builder = builder.bind_addr((Ipv4Addr::UNSPECIFIED, listen.port())).map_err(|e| fail(&e))?;
    }
    if !both || std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        builder = builder.bind_addr(listen).map_err(|e| fail(&e))?;
    }
    endpoint::bound(builder, key).await.map_err(|e| fail(&e))
}

/// Hears peers for the clusters of a relay.
#[derive(Debug)]
pub(crate) struct Ear {
    clusters: Arc<Clusters>,
    handshakes: Handshakes,
    places: Semaphore,
    managers: Vec<AtomicUsize>,
    unheard: Tally<MachineId>,
}

impl Ear {
    /// Hears for these clusters.
    pub(crate) fn new(clusters: &Arc<Clusters>) -> Arc<Self> {
        let managers = clusters.all().iter().map(|_| AtomicUsize::new(0)).collect();
        let clusters = Arc::clone(clusters);
        let (handshakes, places) =
            (Handshakes::of_public(HANDSHAKE_INTERVAL, MAX_HANDSHAKE_BURST), Semaphore::new(MAX_HEARD_CONNECTIONS));
        Arc::new(Self { clusters, handshakes, places, managers, unheard: Tally::default() })
    }

    /// Hears until `cancel`, and closes the endpoint.
    pub(crate) async fn run(self: Arc<Self>, endpoint: Endpoint, cancel: CancellationToken) {
        let tasks = TaskTracker::new();
        let serve = |handshake| {
            let ear = Arc::clone(&self);
            async move { ear.connection(handshake).await }
        };
        self.handshakes.accept(&endpoint, &tasks, &cancel, serve).await;
        tasks.close();
        tasks.wait().await;
        crate::net::endpoint::close(&endpoint, Duration::ZERO).await;
    }

    async fn connection(&self, handshake: Handshake) {
        let until = Instant::now() + RELAY_HELLO_TIMEOUT;
        let conn = match handshake.finish().await {
            Ok(conn) => conn,
            Err(error) => return tracing::debug!("handshake failed: {error:#}"),
        };
        let Ok(place) = self.places.try_acquire() else { return close(&conn, Close::Busy, "too many at once") };
        let Some(peer) = machine_id(&conn.remote_id()) else { return };
        let heard = match timeout_at(until, self.greeted(&conn, peer)).await {
            Ok(Ok(greeted)) => self.heard(&conn, peer, greeted, place).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!("it did not greet within {} s", RELAY_HELLO_TIMEOUT.as_secs())),
        };
        match heard {
            Ok(()) => close(&conn, Close::Done, "heard"),
            Err(error) => {
                if let Some(left_out) = self.unheard.refused(peer) {
                    tracing::info!(peer = %peer.short(), left_out, "not heard: {error:#}");
                }
                match error.downcast_ref::<Unsupported>() {
                    Some(unsupported) => close(&conn, Close::Unsupported, &unsupported.to_string()),
                    None => close(&conn, Close::NotAMember, NOT_HEARD),
                }
            }
        }
    }

    /// Reads the greeting. Only a peer that can have something to tell gets further: with a header that one of the clusters signed,
    /// newer than what is held, or of a machine of that cluster.
    async fn greeted(&self, conn: &Connection, peer: MachineId) -> anyhow::Result<Greeted<'_>> {
        let (send_half, recv) = conn.accept_bi().await?;
        let mut frames = Frames::new(recv, MAX_HELLO);
        let hello: Hello = spoken(&frames.next(RELAY_HELLO_TIMEOUT).await?, FrameKind::PeerHello, "PeerHello")?;
        if let Some(need) = unknown_need(&hello.needs) {
            anyhow::bail!("it needs a feature that this version does not have: {}", need.escape_debug());
        }
        let signed = hello.header.as_ref();
        let (cluster, header) = signed
            .and_then(|header| self.clusters.signer(header))
            .ok_or_else(|| anyhow::anyhow!("its header is not signed by a cluster of this relay"))?;
        let is_old = matches!(cluster.order(&header), Order::Same | Order::Older);
        anyhow::ensure!(!is_old || cluster.has(&peer), "it is not a machine of the cluster, and brings nothing newer");
        Ok(Greeted { cluster, header, send_half, frames })
    }

    /// Answers the greeting, fetches what is newer, and stays with a manager for what it announces.
    async fn heard(
        &self,
        conn: &Connection,
        peer: MachineId,
        greeted: Greeted<'_>,
        place: tokio::sync::SemaphorePermit<'_>,
    ) -> anyhow::Result<()> {
        let Greeted { cluster, header, mut send_half, frames } = greeted;
        timeout(RELAY_TELL_TIMEOUT, async {
            let answer = bare_hello(cluster.held().map(|held| held.snapshot.signed_header().clone()), true);
            send(&mut send_half, Frame::control(FrameKind::PeerHello, &answer)?).await?;
            self.learn(cluster, conn, &header, &mut send_half).await
        })
        .await??;
        let Some(_stays) = cluster.is_manager(&peer).then(|| self.stay(cluster)).flatten() else {
            send_half.finish()?;
            // The side that greeted closes when it has read the last frame.
            drop(timeout(LAST_FRAME_TIMEOUT, conn.closed()).await);
            return Ok(());
        };
        drop(place);
        self.follow(cluster, conn, send_half, frames).await
    }

    /// Fetches what this header announces, and says what is held then.
    async fn learn(
        &self,
        cluster: &Cluster,
        conn: &Connection,
        header: &Header,
        send_half: &mut SendStream,
    ) -> anyhow::Result<()> {
        self.clusters.fetch(cluster, conn, header).await?;
        let Some(held) = cluster.held() else { return Ok(()) };
        let announce = Announce::of(held.snapshot.signed_header().clone());
        send(send_half, Frame::control(FrameKind::Announce, &announce)?).await?;
        Ok(())
    }

    /// Stays on the line with a manager: what it announces is fetched at once.
    async fn follow(
        &self,
        cluster: &Cluster,
        conn: &Connection,
        mut send_half: SendStream,
        mut frames: Frames<RecvStream>,
    ) -> anyhow::Result<()> {
        tracing::info!(cluster = %cluster.name, "the cluster manager is on the line");
        loop {
            let frame = tokio::select! {
                _ = conn.closed() => return Ok(()),
                frame = frames.next_unbounded() => frame,
            };
            let Some(frame) = frame else { return Ok(()) };
            let announce: Announce = frame?.expect(FrameKind::Announce, "Announce")?;
            let header = announce.header.verify(&cluster.id)?;
            timeout(RELAY_TELL_TIMEOUT, self.learn(cluster, conn, &header, &mut send_half)).await??;
            tokio::time::sleep(MIN_ANNOUNCE_INTERVAL).await;
        }
    }

    /// Returns a place for a manager's connection, given back when it is dropped.
    fn stay(&self, cluster: &Cluster) -> Option<Stays<'_>> {
        let at = self.clusters.all().iter().position(|one| one.id == cluster.id)?;
        Stays::take(self.managers.get(at)?)
    }
}

/// Holds what a peer greeted with.
struct Greeted<'c> {
    cluster: &'c Cluster,
    header: Header,
    send_half: SendStream,
    frames: Frames<RecvStream>,
}

/// Counts a manager's connection, until it is dropped.
#[derive(Debug)]
struct Stays<'e>(&'e AtomicUsize);

impl<'e> Stays<'e> {
    /// Takes a place, where one is free.
    fn take(count: &'e AtomicUsize) -> Option<Self> {
        let taken = count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_CONNECTIONS_PER_MANAGER).then_some(n + 1));
        // Not made before it is granted: its end gives a place back.
        taken.is_ok().then(|| Self(count))
    }
}

impl Drop for Stays<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_finds_no_place_frees_none() {
        let count = AtomicUsize::new(0);
        let mut places: Vec<_> =
            (0..MAX_CONNECTIONS_PER_MANAGER).map(|_| Stays::take(&count).expect("a place")).collect();
        for _ in 0..2 {
            assert!(Stays::take(&count).is_none(), "{MAX_CONNECTIONS_PER_MANAGER} are taken");
        }
        drop(places.pop());
        assert!(Stays::take(&count).is_some(), "one was given back");
    }
}
