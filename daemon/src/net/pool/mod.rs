//! The connections to the other machines of one cluster: one for each, usable in both directions.
//!
//! Two machines that dial each other at the same moment end up with two connections. Both sides prefer the one dialled
//! by the machine with the smaller key, and the other is closed once nothing runs on it. A connection of an earlier
//! life of a peer's daemon is closed as soon as the new life says hello.

mod account;
mod conn;
mod lives;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use iroh::TransportAddr;
use malai_protocol::id::{Incarnation, MachineId};
use malai_protocol::peer::Close;
use tokio::sync::{Notify, watch};

use account::{Departed, Told};
pub(crate) use conn::{PeerConn, SessionGuard};
use lives::Lives;
pub(crate) use lives::PeerLife;

use super::close;
use crate::net::counters::Counters;
use crate::net::limits::budget::Budget;
use crate::net::limits::pace::StreamPace;
use crate::runtime::clock::now_ms;

/// Bounds the connections from one machine. It needs one; a few more are of its earlier lives, or end soon.
const MAX_CONNECTIONS_PER_MACHINE: usize = 16;
/// Bounds the snapshots that one machine may be fetching from here. It needs one; a few more are of connections that end
/// soon.
const MAX_PULLS_PER_MACHINE: usize = 4;

/// Holds what is known of one machine.
#[derive(Debug, Default)]
struct Peer {
    conns: Vec<Arc<PeerConn>>,
    generation: Option<u64>,
    addresses: BTreeSet<TransportAddr>,
    /// Whether the addresses are from the cache: the machine has not told its own to this daemon yet.
    is_recalled: bool,
    last_seen_ms: Option<u64>,
    told: Option<Told>,
    /// Says how it went, when it was connected and is no more.
    departed: Option<Departed>,
    lives: Lives,
    /// It was connected before.
    known: bool,
    dial: Arc<tokio::sync::Mutex<()>>,
    undecided: Arc<Budget>,
    pulls: Arc<Pulls>,
    streams: Arc<StreamPace>,
}

/// Counts the snapshots that a machine fetches: each holds one of these.
#[derive(Debug, Default)]
pub(crate) struct Pulls;

/// Says what the pool knows of one machine.
#[derive(Debug, Default)]
pub(crate) struct PeerSeen {
    /// Is the generation that the machine last told.
    pub(crate) generation: Option<u64>,
    /// Is when it was last heard, milliseconds since the epoch.
    pub(crate) last_seen_ms: Option<u64>,
}

/// Holds all connections of one cluster's endpoint.
#[derive(Debug)]
pub(crate) struct Pool {
    me: MachineId,
    counters: Arc<Counters>,
    peers: Mutex<HashMap<MachineId, Peer>>,
    changed: watch::Sender<u64>,
    /// It was seen that two machines hold one key.
    twins_seen: watch::Sender<u64>,
    /// Wakes when addresses were told that are not in the cache.
    learnt: Notify,
    /// Counts the sessions that wait for a connection.
    waiting: AtomicU32,
}

/// Counts a session that waits for a connection, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the waiting"]
pub(crate) struct WaitingSession<'a>(&'a Pool);

impl Drop for WaitingSession<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    /// Makes an empty pool of this machine.
    pub(crate) fn new(me: MachineId, counters: Arc<Counters>) -> Self {
        Self {
            me,
            counters,
            peers: Mutex::default(),
            changed: watch::Sender::new(0),
            twins_seen: watch::Sender::new(0),
            learnt: Notify::new(),
            waiting: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Peer>> {
        self.peers.lock()
    }

    /// Wakes those that watch.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Returns what wakes whenever a connection comes or goes, or a machine tells a generation.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts a session that waits for a connection, for as long as the guard lives.
    pub(crate) fn wait(&self) -> WaitingSession<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.touch();
        WaitingSession(self)
    }

    /// Returns whether a session waits for a connection.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Returns whether a session needs the network and does not have it.
    pub(crate) fn wants_recovery(&self) -> bool {
        self.is_waited_for() || self.all().iter().any(|c| c.is_stalled() && c.sessions() > 0)
    }

    /// Counts the packets that came from any peer over the connections that there are.
    pub(crate) fn packets(&self) -> u64 {
        self.all().iter().map(|conn| conn.packets()).fold(0, u64::wrapping_add)
    }

    /// Adds a connection. Returns false when the machine has too many already.
    #[must_use = "a connection that was not added has to be closed"]
    pub(crate) fn add(&self, conn: &Arc<PeerConn>) -> bool {
        let mut peers = self.lock();
        let peer = peers.entry(conn.peer).or_default();
        if !conn.dialed && peer.conns.len() >= MAX_CONNECTIONS_PER_MACHINE {
            return false;
        }
        let again = std::mem::replace(&mut peer.known, true) && peer.conns.is_empty();
        peer.conns.push(Arc::clone(conn));
        peer.departed = None;
        drop(peers);
        if conn.dialed { &self.counters.dialed } else { &self.counters.accepted }.one();
        self.counters.reconnects.add(u64::from(again));
        self.heard(conn.peer);
        self.touch();
        true
    }

    /// Notes that something was heard of this machine now.
    pub(crate) fn heard(&self, id: MachineId) {
        self.lock().entry(id).or_default().last_seen_ms = Some(now_ms());
    }

    /// Notes the name of the peer's process: connections of earlier ones are dead, unless two machines hold its key, which
    /// would throw each other out for ever. Returns true when this shows for the first time that two machines hold it.
    pub(crate) fn booted(&self, conn: &Arc<PeerConn>, boot: Incarnation) -> bool {
        let (path, _) = conn.path();
        let (comes_back, stale) = {
            let mut peers = self.lock();
            let peer = peers.entry(conn.peer).or_default();
            // Only earlier connections count: with this one, a machine that has just restarted would seem to have two lives.
            let had_twins = peer.is_ambiguous();
            if conn.boot.set(boot).is_err() {
                return false;
            }
            let comes_back = peer.lives.greeted(boot, conn.made_at, path);
            let dead = |c: &&Arc<PeerConn>| c.boot.get().is_some_and(|b| *b != boot) && c.since_ms <= conn.since_ms;
            let is_one = !comes_back && !had_twins;
            let stale: Vec<_> = if is_one { peer.conns.iter().filter(dead).cloned().collect() } else { Vec::new() };
            (comes_back, stale)
        };
        for conn in stale {
            close(&conn.conn, Close::Replaced, "an earlier life of the peer");
        }
        if comes_back {
            self.twins_seen.send_modify(|n| *n = n.wrapping_add(1));
        }
        comes_back
    }

    /// Notes which generation the machine told that it holds, and where it can be reached.
    pub(crate) fn told(&self, id: MachineId, generation: Option<u64>, addresses: &[TransportAddr]) {
        let mut peers = self.lock();
        let peer = peers.entry(id).or_default();
        if generation.is_some() {
            peer.generation = generation;
        }
        let addresses: BTreeSet<_> = addresses.iter().cloned().collect();
        let learnt = !addresses.is_empty() && addresses != peer.addresses;
        if learnt {
            peer.addresses = addresses;
            peer.is_recalled = false;
        }
        peer.last_seen_ms = Some(now_ms());
        drop(peers);
        if learnt {
            self.learnt.notify_one();
        }
        self.touch();
    }

    /// Returns when addresses were learnt since the last call.
    pub(crate) async fn learnt(&self) {
        self.learnt.notified().await;
    }

    /// Takes over what the cache remembers, without overwriting what was heard since.
    pub(crate) fn remember(&self, id: MachineId, last_seen_ms: Option<u64>, addresses: Vec<TransportAddr>) {
        let mut peers = self.lock();
        let peer = peers.entry(id).or_default();
        if peer.addresses.is_empty() {
            peer.addresses = addresses.into_iter().collect();
            peer.is_recalled = true;
        }
        peer.last_seen_ms = peer.last_seen_ms.or(last_seen_ms);
    }

    /// Returns the last known addresses of every machine, for the cache.
    pub(crate) fn known(&self) -> Vec<(MachineId, Option<u64>, Vec<TransportAddr>)> {
        let peers = self.lock();
        let mut known: Vec<_> =
            peers.iter().map(|(id, p)| (*id, p.last_seen_ms, p.addresses.iter().cloned().collect())).collect();
        known.sort_by_key(|(id, ..)| *id);
        known
    }

    /// Returns the last known addresses of a machine, and whether they are only what the cache had.
    pub(crate) fn addresses(&self, id: MachineId) -> (Vec<TransportAddr>, bool) {
        let peers = self.lock();
        let Some(peer) = peers.get(&id) else { return Default::default() };
        (peer.addresses.iter().cloned().collect(), peer.is_recalled)
    }

    /// Returns where a machine is reached now, without relays.
    pub(crate) fn remote_sockets(&self, id: MachineId) -> Vec<SocketAddr> {
        let conns = self.lock().get(&id).map_or_else(Vec::new, |peer| peer.conns.clone());
        conns.iter().flat_map(|conn| conn.remote_sockets()).collect()
    }

    /// Returns what is known of a machine.
    pub(crate) fn seen(&self, id: MachineId) -> PeerSeen {
        self.lock().get(&id).map_or_else(PeerSeen::default, |peer| PeerSeen {
            generation: peer.generation,
            last_seen_ms: peer.last_seen_ms,
        })
    }

    /// Returns the preferred connection over which streams may be opened.
    pub(crate) fn live(&self, id: MachineId) -> Option<Arc<PeerConn>> {
        let peers = self.lock();
        let preferred_side = self.me < id;
        let callable = peers.get(&id)?.conns.iter().filter(|c| c.callable() && !c.is_stalled());
        callable.max_by_key(|c| (c.dialed == preferred_side, c.since_ms)).cloned()
    }

    /// Returns whether there is a connection to this machine that was made within this span.
    pub(crate) fn is_just_back(&self, id: MachineId, span: Duration) -> bool {
        let peers = self.lock();
        let mut conns = peers.get(&id).into_iter().flat_map(|peer| &peer.conns);
        conns.any(|conn| conn.made_at.elapsed() < span && !conn.is_stalled() && conn.conn.close_reason().is_none())
    }

    /// Returns whether another connection to the same machine is preferred to this one. That of another machine with its key is not.
    pub(crate) fn is_spare(&self, conn: &Arc<PeerConn>) -> bool {
        let is_same_life = |live: &PeerConn| match (live.boot.get(), conn.boot.get()) {
            (Some(live), Some(this)) => live == this,
            _ => true,
        };
        self.live(conn.peer).is_some_and(|live| !Arc::ptr_eq(&live, conn) && is_same_life(&live))
    }

    /// Returns the lock under which a machine is dialled, once at a time.
    pub(crate) fn dial_lock(&self, id: MachineId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.lock().entry(id).or_default().dial)
    }

    /// Returns the longest round trip to a machine that is connected.
    pub(crate) fn longest_rtt(&self) -> Duration {
        let rtts = self.all().into_iter().map(|conn| conn.rtt());
        rtts.max().unwrap_or_default()
    }

    /// Returns what counts the requests of this machine until they are decided.
    pub(crate) fn undecided(&self, id: MachineId) -> Arc<Budget> {
        Arc::clone(&self.lock().entry(id).or_default().undecided)
    }

    /// Returns the pace of the streams that this machine opens.
    pub(crate) fn streams(&self, id: MachineId) -> Arc<StreamPace> {
        Arc::clone(&self.lock().entry(id).or_default().streams)
    }

    /// Returns a place for one more snapshot that this machine fetches; dropping it gives the place back.
    pub(crate) fn pull(&self, id: MachineId) -> Option<Arc<Pulls>> {
        let mut peers = self.lock();
        let pulls = &peers.entry(id).or_default().pulls;
        // One is the pool's own. No other place is taken while the pool is locked.
        (Arc::strong_count(pulls) <= MAX_PULLS_PER_MACHINE).then(|| Arc::clone(pulls))
    }

    /// Closes this connection, whose path is dead, and those beside it that use the same path: as long as one is left, iroh
    /// sends all that goes to this machine there.
    pub(crate) fn forget_paths(&self, conn: &Arc<PeerConn>, why: &str) {
        let beside = self.lock().get(&conn.peer).map_or_else(Vec::new, |peer| peer.conns.clone());
        let (path, _) = conn.path();
        for other in beside.iter().filter(|other| Arc::ptr_eq(other, conn) || other.path().0 == path) {
            close(&other.conn, Close::Replaced, why);
        }
    }

    /// Returns every connection.
    pub(crate) fn all(&self) -> Vec<Arc<PeerConn>> {
        self.lock().values().flat_map(|peer| peer.conns.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::machine_id;
    use crate::net::testing::Connected;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_machine_is_just_back_for_a_span_while_its_new_connection_is_open_and_not_stalled() {
        let both = Connected::new().await;
        let me = machine_id(&both.dialled.remote_id()).unwrap();
        let peer = machine_id(&both.accepted.remote_id()).unwrap();
        let (pool, long) = (Pool::new(me, Arc::default()), Duration::from_secs(3600));
        assert!(!pool.is_just_back(peer, long));
        let conn = PeerConn::new(both.accepted.clone(), peer, false);
        assert!(pool.add(&conn));
        assert!(pool.is_just_back(peer, long) && !pool.is_just_back(me, long));
        assert!(!pool.is_just_back(peer, Duration::ZERO), "it is older than that");
        conn.set_stalled(true);
        assert!(!pool.is_just_back(peer, long));
        conn.set_stalled(false);
        conn.conn.close(0u32.into(), b"");
        assert!(!pool.is_just_back(peer, long));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn streams_may_be_opened_towards_who_was_dialled_or_has_greeted_and_is_no_agent() {
        let both = Connected::new().await;
        let (me, peer) =
            (machine_id(&both.dialled.remote_id()).unwrap(), machine_id(&both.accepted.remote_id()).unwrap());
        let pool = Pool::new(me, Arc::default());
        let conn = PeerConn::new(both.accepted.clone(), peer, false);
        assert!(pool.add(&conn));
        assert!(pool.live(peer).is_none(), "it may be an agent");
        conn.set_met();
        assert!(pool.live(peer).is_some());
        conn.set_caller_only();
        assert!(pool.live(peer).is_none());
        assert!(PeerConn::new(both.dialled.clone(), me, true).callable());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_that_entered_before_its_connection_is_given_up_hears_of_it_whenever_it_asks() {
        let both = Connected::new().await;
        let peer = machine_id(&both.dialled.remote_id()).unwrap();
        let conn = PeerConn::new(both.dialled.clone(), peer, true);
        let mut before = conn.enter(8).unwrap();
        conn.give_up();
        let mut after = conn.enter(8).unwrap();
        let soon = |entered| tokio::time::timeout(Duration::from_secs(20), entered);
        soon(before.given_up()).await.unwrap();
        assert!(
            futures_util::FutureExt::now_or_never(after.given_up()).is_none(),
            "it came when the connection was back"
        );
        conn.give_up();
        soon(after.given_up()).await.unwrap();
    }
}
