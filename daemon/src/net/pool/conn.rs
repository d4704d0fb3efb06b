//! One connection to a machine: what is known of it, and who uses it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, PathId};
use iroh::{RelayUrl, TransportAddr};
use malai_protocol::id::{Incarnation, MachineId};
use malai_protocol::snapshot::Header;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::net::finding::hearsay::canonical;
use crate::net::finding::ways::Trail;
use crate::runtime::clock::now_ms;

/// Is one connection to a machine.
#[derive(Debug)]
pub(crate) struct PeerConn {
    /// Is the connection.
    pub(crate) conn: Connection,
    /// Is the key of the machine at its other end.
    pub(crate) peer: MachineId,
    /// This side dialled.
    pub(crate) dialed: bool,
    /// Is when it was made, milliseconds since the epoch.
    pub(crate) since_ms: u64,
    /// Is the same by a clock that no one can set.
    pub(super) made_at: Instant,
    pub(super) boot: OnceLock<Incarnation>,
    executor: OnceLock<Incarnation>,
    greeted: AtomicBool,
    met: AtomicBool,
    caller_only: AtomicBool,
    sessions: AtomicU32,
    /// Wakes when the last session has left.
    emptied: Notify,
    pulsing: AtomicBool,
    stalled: AtomicBool,
    /// Changes when the callers whose sessions run over it have to attach again.
    given_up: watch::Sender<()>,
    offers: Mutex<Offers>,
    trail: OnceLock<Trail>,
}

/// Holds the snapshot that the peer offers.
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
            made_at: Instant::now(),
            boot: OnceLock::new(),
            executor: OnceLock::new(),
            greeted: AtomicBool::new(false),
            met: AtomicBool::new(false),
            caller_only: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            emptied: Notify::new(),
            pulsing: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            given_up: watch::Sender::new(()),
            offers: Mutex::default(),
            trail: OnceLock::new(),
        })
    }

    /// Notes a snapshot that the peer offers. Returns true when no task fetches from this peer now, so that one has to be
    /// started.
    pub(crate) fn offer(&self, header: Header) -> bool {
        let mut offers = self.offers.lock();
        offers.newest = Some(header);
        !std::mem::replace(&mut offers.fetching, true)
    }

    /// Returns what is to be fetched next. After `None` the task has ended.
    pub(crate) fn next_offer(&self) -> Option<Header> {
        let mut offers = self.offers.lock();
        let next = offers.newest.take();
        offers.fetching = next.is_some();
        next
    }

    /// Returns whether the peer may greet now: the side that dialled does, once.
    pub(crate) fn may_greet(&self) -> bool {
        !self.dialed && !self.greeted.swap(true, Ordering::Relaxed)
    }

    /// Notes what was known of the peer when this side had dialled it.
    pub(crate) fn set_trail(&self, trail: Trail) {
        self.trail.get_or_init(|| trail);
    }

    /// Returns that; absent where the peer dialled.
    pub(crate) fn trail(&self) -> Option<&Trail> {
        self.trail.get()
    }

    /// Notes that the peer is an agent: no stream may be opened towards it.
    pub(crate) fn set_caller_only(&self) {
        self.caller_only.store(true, Ordering::Relaxed);
    }

    /// Notes that the peer has greeted.
    pub(crate) fn set_met(&self) {
        self.met.store(true, Ordering::Release);
    }

    /// Returns whether the peer has said what it is.
    pub(crate) fn is_met(&self) -> bool {
        self.met.load(Ordering::Acquire)
    }

    /// Returns whether the peer is an agent.
    pub(crate) fn is_caller_only(&self) -> bool {
        self.caller_only.load(Ordering::Relaxed)
    }

    /// Notes which life of the peer's executor requests meet.
    pub(crate) fn set_executor(&self, executor: Incarnation) {
        // It greets once: what it said first stands.
        self.executor.get_or_init(|| executor);
    }

    /// Returns the life of the peer's executor. Absent when it did not greet yet, or when none ran then.
    pub(crate) fn executor(&self) -> Option<Incarnation> {
        self.executor.get().copied()
    }

    /// Returns whether streams may be opened towards the peer. One that dialled may be an agent until it has greeted; only daemons
    /// can be dialled.
    pub(crate) fn callable(&self) -> bool {
        (self.dialed || self.is_met()) && !self.is_caller_only() && self.conn.close_reason().is_none()
    }

    /// Counts the packets that came from the peer.
    pub(crate) fn packets(&self) -> u64 {
        self.conn.stats().udp_rx.datagrams
    }

    /// Returns a number that changes whenever something comes on the path that is in use, or data on any path. Probes of other paths are no
    /// sign that anything gets through.
    pub(crate) fn signs(&self) -> u64 {
        let paths = self.conn.paths();
        let used = paths.iter().find(|path| path.is_selected()).map_or(0, |path| path.stats().udp_rx.datagrams);
        self.conn.stats().frame_rx.stream.wrapping_add(used)
    }

    /// Returns the path in use.
    pub(crate) fn path_in_use(&self) -> Option<PathId> {
        self.conn.paths().iter().find(|path| path.is_selected()).map(|path| path.id())
    }

    /// Returns whether there is another path than the one in use, by a relay.
    pub(crate) fn has_relay_to_spare(&self) -> bool {
        let paths = self.conn.paths();
        paths.iter().any(|path| path.is_relay() && !path.is_selected())
    }

    /// Returns where the peer is reached over this connection, without relays.
    pub(crate) fn remote_sockets(&self) -> Vec<SocketAddr> {
        let paths = self.conn.paths();
        let sockets = paths.iter().filter_map(|path| match path.remote_addr() {
            TransportAddr::Ip(addr) => Some(canonical(*addr)),
            _ => None,
        });
        sockets.collect()
    }

    /// Returns the relay that the path in use goes by.
    pub(crate) fn relay_in_use(&self) -> Option<RelayUrl> {
        let paths = self.conn.paths();
        paths.iter().find(|path| path.is_selected()).and_then(|path| match path.remote_addr() {
            TransportAddr::Relay(url) => Some(url.clone()),
            _ => None,
        })
    }

    /// Returns true for the session that has to start the heartbeat.
    pub(crate) fn begin_pulse(&self) -> bool {
        !self.pulsing.swap(true, Ordering::SeqCst)
    }

    /// Ends the heartbeat. Returns false when a session came meanwhile, for which it has to go on.
    pub(crate) fn end_pulse(&self) -> bool {
        self.pulsing.store(false, Ordering::SeqCst);
        self.sessions() == 0 || !self.begin_pulse()
    }

    /// Notes whether nothing comes from the peer: then new sessions take another connection.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Returns whether nothing comes from the peer.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    /// Has the callers whose sessions run over it attach again.
    pub(crate) fn give_up(&self) {
        self.given_up.send_replace(());
    }

    /// Counts a session on this connection for as long as the guard lives. `None` when there are `most` already.
    pub(crate) fn enter(self: &Arc<Self>, most: u32) -> Option<SessionGuard> {
        let before = self.sessions.fetch_add(1, Ordering::SeqCst);
        let guard = SessionGuard { conn: Arc::clone(self), given_up: self.given_up.subscribe() };
        (before < most).then_some(guard)
    }

    /// Waits until no session runs over it.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.sessions() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Returns how many sessions run over it.
    pub(crate) fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::SeqCst)
    }

    /// Returns the round-trip time of the path in use.
    pub(crate) fn rtt(&self) -> Duration {
        Duration::from_micros(self.path().1)
    }

    /// Returns the path in use, for people, and its round-trip time in microseconds.
    pub(crate) fn path(&self) -> (String, u64) {
        let paths = self.conn.paths();
        let only = || {
            let mut all = paths.iter();
            all.next().filter(|_| all.next().is_none())
        };
        // For a moment after a path failed, none may be selected.
        let Some(path) = paths.iter().find(|p| p.is_selected()).or_else(only) else { return ("unknown".into(), 0) };
        let text = match path.remote_addr() {
            TransportAddr::Ip(addr) => format!("direct {addr}"),
            TransportAddr::Relay(url) => format!("relay {url}"),
            other => format!("{other:?}"),
        };
        (text, u64::try_from(path.rtt().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Counts one session on a connection, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard ends the count"]
pub(crate) struct SessionGuard {
    conn: Arc<PeerConn>,
    /// Says whether the connection was given up since the session entered.
    given_up: watch::Receiver<()>,
}

impl SessionGuard {
    /// Waits until its caller has to attach again: the connection was given up at any time since the session entered.
    pub(crate) async fn given_up(&mut self) {
        if self.given_up.changed().await.is_err() {
            // The sender lives as long as the connection, which is here.
            std::future::pending().await
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if self.conn.sessions.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.conn.emptied.notify_waiters();
        }
    }
}
