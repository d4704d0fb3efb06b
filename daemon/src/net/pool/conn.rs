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
    /// The same, by a clock that nobody sets.
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

    /// The peer offers a snapshot. True when it has to be fetched by the caller: nobody fetches from this peer now.
    pub(crate) fn offer(&self, header: Header) -> bool {
        let mut offers = self.offers.lock();
        offers.newest = Some(header);
        !std::mem::replace(&mut offers.fetching, true)
    }

    /// What is to be fetched next. After `None` another has to fetch.
    pub(crate) fn next_offer(&self) -> Option<Header> {
        let mut offers = self.offers.lock();
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
        self.met.store(true, Ordering::Release);
    }

    /// Whether the peer has said what it is.
    pub(crate) fn is_met(&self) -> bool {
        self.met.load(Ordering::Acquire)
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

    /// Whether streams may be opened towards the peer. One that dialled may be an agent until it has greeted; only daemons
    /// can be dialled.
    pub(crate) fn callable(&self) -> bool {
        (self.dialed || self.is_met()) && !self.is_caller_only() && self.conn.close_reason().is_none()
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

    /// Where the peer is reached over this connection, without relays.
    pub(crate) fn remote_sockets(&self) -> Vec<SocketAddr> {
        let paths = self.conn.paths();
        let sockets = paths.iter().filter_map(|path| match path.remote_addr() {
            TransportAddr::Ip(addr) => Some(canonical(*addr)),
            _ => None,
        });
        sockets.collect()
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

    /// The callers whose sessions run over it have to attach again.
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

/// One session on a connection; leaving is its drop.
#[derive(Debug)]
#[must_use = "dropping the guard ends the count"]
pub(crate) struct SessionGuard {
    conn: Arc<PeerConn>,
    /// Since it entered.
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
