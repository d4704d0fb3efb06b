//! The heartbeat of a connection that carries sessions: it finds a stall within 2.5 s, and looks for another way at
//! once.
//!
//! Whatever comes from the peer on the path in use is a sign of life; pings see to it that something does. When this
//! machine has lost one of its addresses, another connection is looked for at once if that took the path away, and
//! otherwise if a ping is not answered soon. A connection that is silent is *stalled*: no new session takes it, and
//! another one is looked for, in both directions. Once there is one, and the old one has not recovered, the callers'
//! sockets are closed, so that they attach over the new one; without a new one the same happens after a while, so that
//! they can say so. A connection without sessions has no heartbeat, and one whose sessions are over within half a
//! second sends no ping.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::PathId;
use iroh::{EndpointAddr, Watcher};
use malai_protocol::peer::Close;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clusters::membership::Membership;
use crate::clusters::peers::Peers;
use crate::clusters::peers::dial;
use crate::net::pool::{PeerConn, SessionGuard};
use crate::net::relays::Relays;
use crate::net::{close, ping};
use crate::runtime::duty;

/// Sets how often malai looks whether something came.
const SIGN_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Sets the time between an answer and the next ping.
const PEER_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Sets how long nothing has to come for a connection to be stalled: three pings, or what QUIC sent again for them, were
/// lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds how long the ping of a machine that lost an address may take before its connection is stalled.
const MOVED_PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the same in round trips, on a path where they take long.
const MOVED_PING_ROUND_TRIPS: u32 = 3;
/// Sets how recently another path must have come into use for a lost address to have taken the path away: iroh changes
/// the path first, and tells the new addresses when it has asked its relay for them.
const PATH_CHANGE_TIME: Duration = Duration::from_secs(4);
/// Bounds how long a relay may take to rescue a stalled connection before that is closed.
const RELAY_RESCUE_TIMEOUT: Duration = Duration::from_millis(250);
/// Sets how long after a stall a connection without a relay to fall back on is closed: the peer may be at another address
/// by now, and iroh looks for that only when the dead path is forgotten.
const DIRECT_RESCUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds how long after the last sign of life callers are told, whether or not there is another connection.
const CALLERS_TOLD_TIMEOUT: Duration = Duration::from_secs(6);
/// Bounds how long streams may take to leave a stalled connection once there is another. Those that callers on this
/// machine opened leave at once; the peer may not have noticed, and learns it from the close.
const STREAMS_LEAVE_TIMEOUT: Duration = Duration::from_millis(100);

/// Counts a session on this connection for as long as the guard lives, with a heartbeat. `None` when there are `most`.
pub(crate) fn enter(membership: &Arc<Membership>, conn: &Arc<PeerConn>, most: u32) -> Option<SessionGuard> {
    let guard = conn.enter(most)?;
    if conn.begin_pulse() {
        let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
        let (tasks, cancel) = (membership.tasks.clone(), membership.cancel.clone());
        tasks.spawn(duty::keep("heartbeat", cancel, move || {
            let (membership, conn) = (Arc::clone(&membership), Arc::clone(&conn));
            async move {
                tokio::select! {
                    () = membership.cancel.cancelled() => {}
                    _ = conn.conn.closed() => {}
                    () = beat(&membership, &conn) => {}
                }
            }
        }));
    }
    Some(guard)
}

/// Holds what was heard on a connection, and when.
#[derive(Debug, Clone)]
struct Heard {
    signs: u64,
    at: Instant,
}

impl Heard {
    fn new(conn: &PeerConn) -> Self {
        Self { signs: conn.signs(), at: Instant::now() }
    }

    /// Returns how long nothing has come.
    fn silence(&mut self, conn: &PeerConn) -> Duration {
        let signs = conn.signs();
        if signs != self.signs {
            *self = Self { signs, at: Instant::now() };
        }
        self.at.elapsed()
    }

    /// Waits until something comes.
    async fn again(mut self, conn: &PeerConn) {
        let before = self.signs;
        let mut look = tokio::time::interval(SIGN_LOOK_INTERVAL / 5);
        while self.signs == before {
            look.tick().await;
            self.silence(conn);
        }
    }
}

/// Beats until no session is left.
async fn beat(membership: &Arc<Membership>, conn: &Arc<PeerConn>) {
    let mut heard = Heard::new(conn);
    let (mut own, mut in_use) = (OwnAddresses::of(&membership.peers), InUse::new(conn));
    let mut looks = tokio::time::interval_at(Instant::now() + SIGN_LOOK_INTERVAL, SIGN_LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pings, mut next_ping) = (None, Instant::now() + PEER_HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = async { pings.as_mut().expect("there is one").await }, if pings.is_some() => {
                (pings, next_ping) = (None, Instant::now() + PEER_HEARTBEAT_INTERVAL);
            }
        }
        if conn.sessions() == 0 && conn.end_pulse() {
            return;
        }
        let taken = in_use.is_new(conn);
        if own.lost_one() && conn.callable() {
            moved(membership, conn, &mut heard, taken).await;
            pings = None;
        }
        if heard.silence(conn) >= STALL_TIMEOUT {
            tracing::info!(peer = %conn.peer.short(), cluster = %membership.alias, "nothing comes from there: looking for another way");
            let again = heard.clone().again(conn);
            stalled(membership, conn, &mut heard, again, RELAY_RESCUE_TIMEOUT).await;
            pings = None;
        }
        // One ping at a time; where it is answered the next follows. An agent is not asked: it asks.
        if pings.is_none() && Instant::now() >= next_ping && conn.callable() {
            pings = Some(Box::pin(ping(&conn.conn, STALL_TIMEOUT)));
        }
    }
}

/// Holds the addresses of this machine.
struct OwnAddresses<W> {
    watcher: W,
    last: BTreeSet<SocketAddr>,
}

impl OwnAddresses<()> {
    fn of(peers: &Peers) -> OwnAddresses<impl Watcher<Value = EndpointAddr> + use<>> {
        let mut watcher = peers.endpoint.watch_addr();
        let last = watcher.get().ip_addrs().copied().collect();
        OwnAddresses { watcher, last }
    }
}

impl<W: Watcher<Value = EndpointAddr>> OwnAddresses<W> {
    /// Returns whether one of them is gone since the last call.
    fn lost_one(&mut self) -> bool {
        let now = self.watcher.get().ip_addrs().copied().collect();
        let before = std::mem::replace(&mut self.last, now);
        !before.is_subset(&self.last)
    }
}

/// Holds the path in use, and since when, if another one was before.
struct InUse {
    path: Option<PathId>,
    since: Option<Instant>,
}

impl InUse {
    fn new(conn: &PeerConn) -> Self {
        Self { path: conn.path_in_use(), since: None }
    }

    /// Returns whether there was another one a moment ago.
    fn is_new(&mut self, conn: &PeerConn) -> bool {
        let path = conn.path_in_use();
        if path != self.path {
            *self = Self { path, since: Some(Instant::now()) };
        }
        self.since.is_some_and(|since| since.elapsed() < PATH_CHANGE_TIME)
    }
}

/// Reacts when this machine has lost an address, which took the path away or did not. What was under way on that path is sent again
/// only after seconds, and all that follows waits for it, although the connection came along and answers: so sessions do
/// not wait for it.
async fn moved(membership: &Arc<Membership>, conn: &Arc<PeerConn>, heard: &mut Heard, taken: bool) {
    let patience = MOVED_PING_TIMEOUT.max(conn.rtt() * MOVED_PING_ROUND_TRIPS);
    let mut answer = Box::pin(ping(&conn.conn, CALLERS_TOLD_TIMEOUT));
    if !taken && let Ok(true) = tokio::time::timeout(patience, &mut answer).await {
        return;
    }
    tracing::info!(peer = %conn.peer.short(), cluster = %membership.alias, taken, "an address is lost: looking for another way");
    let again = async {
        if taken || !answer.await {
            std::future::pending::<()>().await;
        }
    };
    stalled(membership, conn, heard, again, patience).await;
}

/// Waits until the connection is to be closed for another way to be found, and returns why. As long as there is a
/// connection, iroh sends to the path that it chose, new connections' handshakes too, and does not look for the
/// peer elsewhere. So where that path is dead, it tries all ways only after the connection is closed.
async fn forgotten(relays: &Relays, conn: &PeerConn, let_go: Duration) -> &'static str {
    tokio::time::sleep(let_go).await;
    let relay = conn.relay_in_use();
    let has_other = relay.as_ref().is_some_and(|relay| {
        relays.suspect(relay);
        relays.has_other_than(relay)
    });
    if conn.has_relay_to_spare() || has_other {
        return "a relay may reach the peer";
    }
    // An agent can only come back by itself. One that has not greeted may be one, and was asked nothing, so that its silence
    // says nothing. And one that is reached by a relay is not at another address.
    if !conn.callable() || relay.is_some() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(DIRECT_RESCUE_TIMEOUT.saturating_sub(let_go)).await;
    "the peer may be at another address"
}

/// Looks for another way until there is one, or the connection is there again. After `let_go` it is closed where that may
/// open a way by a relay, and after [`DIRECT_RESCUE_TIMEOUT`] where only that has other addresses looked for.
async fn stalled(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    heard: &mut Heard,
    again: impl Future<Output = ()>,
    let_go: Duration,
) {
    conn.set_stalled(true);
    membership.peers.pool.touch();
    let tell = heard.at + CALLERS_TOLD_TIMEOUT;
    let other = async {
        if conn.is_caller_only() {
            // Only an agent itself can open another one.
            std::future::pending::<()>().await;
        }
        let far = Instant::now() + Duration::from_secs(24 * 3600);
        while dial::connect(membership, conn.peer, far).await.is_err() {
            tokio::time::sleep(PEER_HEARTBEAT_INTERVAL).await;
        }
    };
    let found = tokio::select! {
        () = again => None,
        why = forgotten(&membership.peers.relays, conn, let_go) => {
            tracing::info!(peer = %conn.peer.short(), "its path is dead, and {why}: it is let go");
            return membership.peers.pool.forget_paths(conn, &format!("its path is dead, and {why}"));
        }
        () = other => Some(true),
        () = tokio::time::sleep_until(tell) => Some(false),
    };
    match found {
        None => tracing::info!(peer = %conn.peer.short(), "the connection is back"),
        Some(true) => {
            tracing::info!(peer = %conn.peer.short(), "sessions move to another connection");
            conn.give_up();
            // What is left by then is lost with the connection, and attaches again.
            drop(tokio::time::timeout(STREAMS_LEAVE_TIMEOUT, conn.emptied()).await);
            close(&conn.conn, Close::Replaced, "it was stalled, and another connection is used");
            return;
        }
        Some(false) => {
            tracing::info!(peer = %conn.peer.short(), "callers have to attach again");
            conn.give_up();
            heard.clone().again(conn).await;
        }
    }
    conn.set_stalled(false);
    membership.peers.pool.touch();
}
