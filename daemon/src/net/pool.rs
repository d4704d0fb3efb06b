//! The connections to the other machines of one cluster: one for each, usable in both directions.
//!
//! Two machines that dial each other at the same moment end up with two connections. Both sides prefer the one dialled
//! by the machine with the smaller key, and the other is closed once nothing runs on it. A connection of an earlier
//! life of a peer's daemon is closed as soon as the new life says hello.

mod account;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use iroh::endpoint::{Connection, PathId};
use iroh::{RelayUrl, TransportAddr};
use malai_protocol::id::{Incarnation, MachineId};
use malai_protocol::peer::Close;
use malai_protocol::snapshot::Header;
use tokio::sync::{Notify, watch};

use account::{Departed, Told};

use super::budget::Budget;
use super::close;
use super::pace::Pace;
use super::ways::Trail;
use crate::clock::now_ms;
use crate::metrics::Counters;

/// Connections from one machine at once. It needs one; some more are of its earlier lives, or on their way out.
const MOST: usize = 16;
/// Snapshots that one machine may be in the middle of fetching from here. It needs one; some more are of connections on
/// their way out.
const PULLS: usize = 4;

/// One connection to a machine.
#[derive(Debug)]
pub(crate) struct PeerConn {
    /// The connection.
    pub(crate) conn: Connection,
    /// Whom it leads to.
    pub(crate) peer: MachineId,
    /// This side dialled.
    pub(crate) dialed: bool,
    /// Since when, milliseconds since the epoch.
    pub(crate) since_ms: u64,
    boot: OnceLock<Incarnation>,
    executor: OnceLock<Incarnation>,
    greeted: AtomicBool,
    met: AtomicBool,
    caller_only: AtomicBool,
    sessions: AtomicU32,
    pulsing: AtomicBool,
    stalled: AtomicBool,
    given_up: Notify,
    offers: Mutex<Offers>,
    trail: OnceLock<Trail>,
}

/// The snapshot that the peer offers.
#[derive(Debug, Default)]
struct Offers {
    newest: Option<Header>,
    fetching: bool,
}

impl PeerConn {
    /// Wraps a connection whose handshake is done.
    pub(crate) fn new(conn: Connection, peer: MachineId, dialed: bool) -> Arc<Self> {
        Arc::new(Self {
            conn,
            peer,
            dialed,
            since_ms: now_ms(),
            boot: OnceLock::new(),
            executor: OnceLock::new(),
            greeted: AtomicBool::new(false),
            met: AtomicBool::new(false),
            caller_only: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            pulsing: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            given_up: Notify::new(),
            offers: Mutex::default(),
            trail: OnceLock::new(),
        })
    }

    /// The peer offers a snapshot. True when it has to be fetched by the caller: nobody fetches from this peer now.
    pub(crate) fn offer(&self, header: Header) -> bool {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.newest = Some(header);
        !std::mem::replace(&mut offers.fetching, true)
    }

    /// What is to be fetched next. After `None` another has to fetch.
    pub(crate) fn next_offer(&self) -> Option<Header> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = offers.newest.take();
        offers.fetching = next.is_some();
        next
    }

    /// Whether the peer may greet now: the side that dialled does, once.
    pub(crate) fn may_greet(&self) -> bool {
        !self.dialed && !self.greeted.swap(true, Ordering::Relaxed)
    }

    /// What was known of the peer when this side had dialled it.
    pub(crate) fn set_trail(&self, trail: Trail) {
        self.trail.get_or_init(|| trail);
    }

    /// Absent where the peer dialled.
    pub(crate) fn trail(&self) -> Option<&Trail> {
        self.trail.get()
    }

    /// The peer is an agent: no stream may be opened towards it.
    pub(crate) fn set_caller_only(&self) {
        self.caller_only.store(true, Ordering::Relaxed);
    }

    /// The peer's greeting was taken in.
    pub(crate) fn set_met(&self) {
        self.met.store(true, Ordering::Relaxed);
    }

    /// Whether the peer has said what it is.
    pub(crate) fn is_met(&self) -> bool {
        self.met.load(Ordering::Relaxed)
    }

    /// Whether the peer is an agent.
    pub(crate) fn is_caller_only(&self) -> bool {
        self.caller_only.load(Ordering::Relaxed)
    }

    /// The peer told which life of its executor requests meet.
    pub(crate) fn set_executor(&self, executor: Incarnation) {
        // It greets once: what it said first stands.
        self.executor.get_or_init(|| executor);
    }

    /// The life of the peer's executor. Absent when it did not greet yet, or when none ran then.
    pub(crate) fn executor(&self) -> Option<Incarnation> {
        self.executor.get().copied()
    }

    /// Whether streams may be opened towards the peer.
    pub(crate) fn callable(&self) -> bool {
        !self.is_caller_only() && self.conn.close_reason().is_none()
    }

    /// Packets that came from the peer.
    pub(crate) fn packets(&self) -> u64 {
        self.conn.stats().udp_rx.datagrams
    }

    /// Changes whenever something comes on the path that is in use, or data on any path. Probes of other paths are no
    /// sign that anything gets through.
    pub(crate) fn signs(&self) -> u64 {
        let paths = self.conn.paths();
        let used = paths.iter().find(|path| path.is_selected()).map_or(0, |path| path.stats().udp_rx.datagrams);
        self.conn.stats().frame_rx.stream.wrapping_add(used)
    }

    /// The path in use.
    pub(crate) fn path_in_use(&self) -> Option<PathId> {
        self.conn.paths().iter().find(|path| path.is_selected()).map(|path| path.id())
    }

    /// Whether there is another path than the one in use, by a relay.
    pub(crate) fn has_relay_to_spare(&self) -> bool {
        let paths = self.conn.paths();
        paths.iter().any(|path| path.is_relay() && !path.is_selected())
    }

    /// The relay that the path in use goes by.
    pub(crate) fn relay_in_use(&self) -> Option<RelayUrl> {
        let paths = self.conn.paths();
        paths.iter().find(|path| path.is_selected()).and_then(|path| match path.remote_addr() {
            TransportAddr::Relay(url) => Some(url.clone()),
            _ => None,
        })
    }

    /// True for the one that has to start the heartbeat.
    pub(crate) fn begin_pulse(&self) -> bool {
        !self.pulsing.swap(true, Ordering::SeqCst)
    }

    /// The heartbeat ends. False when a session came meanwhile, for which it has to go on.
    pub(crate) fn end_pulse(&self) -> bool {
        self.pulsing.store(false, Ordering::SeqCst);
        self.sessions() == 0 || !self.begin_pulse()
    }

    /// Nothing comes from the peer: new sessions take another connection.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Whether nothing comes from the peer.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    /// The callers whose sessions run over it are to attach anew.
    pub(crate) fn give_up(&self) {
        self.given_up.notify_waiters();
    }

    /// Waits until callers have to attach anew.
    pub(crate) async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// Counts a session on this connection for as long as the guard lives. `None` when there are `most` already.
    pub(crate) fn enter(self: &Arc<Self>, most: u32) -> Option<SessionGuard> {
        let before = self.sessions.fetch_add(1, Ordering::SeqCst);
        let guard = SessionGuard(Arc::clone(self));
        (before < most).then_some(guard)
    }

    /// How many sessions run over it.
    pub(crate) fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::SeqCst)
    }

    /// The round-trip time of the path in use.
    pub(crate) fn rtt(&self) -> Duration {
        Duration::from_micros(self.path().1)
    }

    /// The path in use, for people, and its round-trip time in microseconds.
    pub(crate) fn path(&self) -> (String, u64) {
        let paths = self.conn.paths();
        let Some(path) = paths.iter().find(|p| p.is_selected()) else { return ("unknown".into(), 0) };
        let text = match path.remote_addr() {
            TransportAddr::Ip(addr) => format!("direct {addr}"),
            TransportAddr::Relay(url) => format!("relay {url}"),
            other => format!("{other:?}"),
        };
        (text, u64::try_from(path.rtt().as_micros()).unwrap_or(u64::MAX))
    }
}

/// One session on a connection; leaving is its drop.
#[derive(Debug)]
#[must_use = "dropping the guard ends the count"]
pub(crate) struct SessionGuard(Arc<PeerConn>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is known of one machine.
#[derive(Debug, Default)]
struct Peer {
    conns: Vec<Arc<PeerConn>>,
    generation: Option<u64>,
    addresses: BTreeSet<TransportAddr>,
    last_seen_ms: Option<u64>,
    told: Option<Told>,
    /// How it went, when it was connected and is no more.
    departed: Option<Departed>,
    /// It was connected before.
    known: bool,
    dial: Arc<tokio::sync::Mutex<()>>,
    undecided: Arc<Budget>,
    pulls: Arc<Pulls>,
    streams: Arc<Pace>,
}

/// Counts the snapshots that a machine fetches: each holds one of these.
#[derive(Debug, Default)]
pub(crate) struct Pulls;

/// What the pool tells of one machine.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The generation that the machine last told.
    pub(crate) generation: Option<u64>,
    /// When it was last heard, milliseconds since the epoch.
    pub(crate) last_seen_ms: Option<u64>,
}

/// All connections of one cluster's endpoint.
#[derive(Debug)]
pub(crate) struct Pool {
    me: MachineId,
    counters: Arc<Counters>,
    peers: Mutex<HashMap<MachineId, Peer>>,
    changed: watch::Sender<u64>,
    /// Addresses were told that are not in the cache.
    learnt: Notify,
    /// Sessions that wait for a connection.
    waiting: AtomicU32,
}

/// A session that waits for a connection; no more when dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the waiting"]
pub(crate) struct WaitingSession<'a>(&'a Pool);

impl Drop for WaitingSession<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    /// An empty pool of this machine.
    pub(crate) fn new(me: MachineId, counters: Arc<Counters>) -> Self {
        Self {
            me,
            counters,
            peers: Mutex::default(),
            changed: watch::Sender::new(0),
            learnt: Notify::new(),
            waiting: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever watches.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Wakes whenever a connection comes or goes, or a machine tells a generation.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A session waits for a connection, for as long as the guard lives.
    pub(crate) fn wait(&self) -> WaitingSession<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.touch();
        WaitingSession(self)
    }

    /// Whether a session waits for a connection.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Whether a session needs the network and does not have it.
    pub(crate) fn wants_recovery(&self) -> bool {
        self.is_waited_for() || self.all().iter().any(|c| c.is_stalled() && c.sessions() > 0)
    }

    /// Packets that came from any peer over the connections that there are.
    pub(crate) fn packets(&self) -> u64 {
        self.all().iter().map(|conn| conn.packets()).fold(0, u64::wrapping_add)
    }

    /// Takes a connection in. False when the machine has too many already.
    #[must_use = "a connection that was not taken in has to be closed"]
    pub(crate) fn add(&self, conn: &Arc<PeerConn>) -> bool {
        let mut peers = self.lock();
        let peer = peers.entry(conn.peer).or_default();
        if !conn.dialed && peer.conns.len() >= MOST {
            return false;
        }
        let again = std::mem::replace(&mut peer.known, true) && peer.conns.is_empty();
        peer.conns.push(Arc::clone(conn));
        peer.departed = None;
        drop(peers);
        if conn.dialed { &self.counters.dialed } else { &self.counters.accepted }.one();
        self.counters.reconnects.add(u64::from(again));
        tracing::info!(peer = %conn.peer.short(), dialed = conn.dialed, "connected");
        self.heard(conn.peer);
        self.touch();
        true
    }

    /// Something was heard of this machine now.
    pub(crate) fn heard(&self, id: MachineId) {
        self.lock().entry(id).or_default().last_seen_ms = Some(now_ms());
    }

    /// The peer told the name of its life: connections of earlier lives are dead.
    pub(crate) fn booted(&self, conn: &Arc<PeerConn>, boot: Incarnation) {
        if conn.boot.set(boot).is_err() {
            return;
        }
        let stale: Vec<_> = self.lock().get(&conn.peer).map_or_else(Vec::new, |peer| {
            let dead = |c: &&Arc<PeerConn>| c.boot.get().is_some_and(|b| *b != boot) && c.since_ms <= conn.since_ms;
            peer.conns.iter().filter(dead).cloned().collect()
        });
        for conn in stale {
            close(&conn.conn, Close::Replaced, "an earlier life of the peer");
        }
    }

    /// The machine told the generation it holds and where it can be reached.
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
        }
        peer.last_seen_ms = peer.last_seen_ms.or(last_seen_ms);
    }

    /// Last known addresses of every machine, for the cache.
    pub(crate) fn known(&self) -> Vec<(MachineId, Option<u64>, Vec<TransportAddr>)> {
        let peers = self.lock();
        let mut known: Vec<_> =
            peers.iter().map(|(id, p)| (*id, p.last_seen_ms, p.addresses.iter().cloned().collect())).collect();
        known.sort_by_key(|(id, ..)| *id);
        known
    }

    /// Last known addresses of a machine.
    pub(crate) fn addresses(&self, id: MachineId) -> Vec<TransportAddr> {
        self.lock().get(&id).map_or_else(Vec::new, |peer| peer.addresses.iter().cloned().collect())
    }

    /// What is known of a machine.
    pub(crate) fn seen(&self, id: MachineId) -> Seen {
        self.lock()
            .get(&id)
            .map_or_else(Seen::default, |peer| Seen { generation: peer.generation, last_seen_ms: peer.last_seen_ms })
    }

    /// The preferred connection over which streams may be opened.
    pub(crate) fn live(&self, id: MachineId) -> Option<Arc<PeerConn>> {
        let peers = self.lock();
        let preferred_side = self.me < id;
        let callable = peers.get(&id)?.conns.iter().filter(|c| c.callable() && !c.is_stalled());
        callable.max_by_key(|c| (c.dialed == preferred_side, c.since_ms)).cloned()
    }

    /// Whether another connection to the same machine is preferred to this one.
    pub(crate) fn is_spare(&self, conn: &Arc<PeerConn>) -> bool {
        self.live(conn.peer).is_some_and(|live| !Arc::ptr_eq(&live, conn))
    }

    /// Held while a machine is dialled, so that it is dialled once at a time.
    pub(crate) fn dial_lock(&self, id: MachineId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.lock().entry(id).or_default().dial)
    }

    /// The longest round trip to a machine that is connected.
    pub(crate) fn longest_rtt(&self) -> Duration {
        let rtts = self.all().into_iter().map(|conn| conn.rtt());
        rtts.max().unwrap_or_default()
    }

    /// What requests of this machine take here until they are decided.
    pub(crate) fn undecided(&self, id: MachineId) -> Arc<Budget> {
        Arc::clone(&self.lock().entry(id).or_default().undecided)
    }

    /// The pace of the streams that this machine opens.
    pub(crate) fn streams(&self, id: MachineId) -> Arc<Pace> {
        Arc::clone(&self.lock().entry(id).or_default().streams)
    }

    /// A place for one more snapshot that this machine fetches; dropping it gives the place back.
    pub(crate) fn pull(&self, id: MachineId) -> Option<Arc<Pulls>> {
        let mut peers = self.lock();
        let pulls = &peers.entry(id).or_default().pulls;
        // One is the pool's own. No other place is taken while the pool is locked.
        (Arc::strong_count(pulls) <= PULLS).then(|| Arc::clone(pulls))
    }

    /// Every connection, for the shutdown.
    pub(crate) fn all(&self) -> Vec<Arc<PeerConn>> {
        self.lock().values().flat_map(|peer| peer.conns.iter().cloned()).collect()
    }
}
