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
use crate::clusters::peers::dial;
use crate::net::pool::{PeerConn, SessionGuard};
use crate::net::{close, ping};
use crate::runtime::duty;

/// Between two looks at what came.
const LOOK: Duration = Duration::from_millis(250);
/// Between an answer and the next ping.
const BEAT: Duration = Duration::from_millis(500);
/// A connection on which nothing came for so long is stalled: three pings, or what QUIC sent again for them, were lost.
const STALL: Duration = Duration::from_secs(2);
/// A connection of a machine that lost an address is stalled when a ping is not answered within so long.
const MOVED: Duration = Duration::from_secs(1);
/// Or within so many round trips, on a path where they take long.
const MOVED_ROUND_TRIPS: u32 = 3;
/// A lost address took the path in use away when another path has been in use for no longer than this: iroh changes the
/// path first, and tells the new addresses when it has asked its relay for them.
const TAKEN: Duration = Duration::from_secs(4);
/// A connection whose relay has not come to the rescue within so long after it stalled is let go.
const LET_GO: Duration = Duration::from_millis(250);
/// Sets how long after a stall a connection without a relay to fall back on is closed: the peer may be at another
/// address by now, and iroh looks for that only when the dead path is forgotten.
const LET_GO_DIRECT: Duration = Duration::from_secs(1);
/// So long after the last sign of life the callers are told, another connection or not.
const TELL: Duration = Duration::from_secs(6);
/// How long streams may take to leave a stalled connection once there is another. Those that callers here opened leave at
/// once; the peer may not have noticed, and learns it from the close.
const LEAVE: Duration = Duration::from_millis(100);

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

/// What was heard on a connection, and when.
#[derive(Debug, Clone)]
struct Heard {
    signs: u64,
    at: Instant,
}

impl Heard {
    fn new(conn: &PeerConn) -> Self {
        Self { signs: conn.signs(), at: Instant::now() }
    }

    /// How long nothing has come.
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
        let mut look = tokio::time::interval(LOOK / 5);
        while self.signs == before {
            look.tick().await;
            self.silence(conn);
        }
    }
}

/// Beats until no session is left.
async fn beat(membership: &Arc<Membership>, conn: &Arc<PeerConn>) {
    let mut heard = Heard::new(conn);
    let (mut own, mut in_use) = (OwnAddresses::of(membership), InUse::new(conn));
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pings, mut next_ping) = (None, Instant::now() + BEAT);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = async { pings.as_mut().expect("there is one").await }, if pings.is_some() => {
                (pings, next_ping) = (None, Instant::now() + BEAT);
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
        if heard.silence(conn) >= STALL {
            tracing::info!(peer = %conn.peer.short(), cluster = %membership.alias, "nothing comes from there: looking for another way");
            let again = heard.clone().again(conn);
            stalled(membership, conn, &mut heard, again, LET_GO).await;
            pings = None;
        }
        // One ping at a time; where it is answered the next follows. An agent is not asked: it asks.
        if pings.is_none() && Instant::now() >= next_ping && conn.callable() {
            pings = Some(Box::pin(ping(&conn.conn, STALL)));
        }
    }
}

/// The addresses of this machine.
struct OwnAddresses<W> {
    watcher: W,
    last: BTreeSet<SocketAddr>,
}

impl OwnAddresses<()> {
    fn of(membership: &Membership) -> OwnAddresses<impl Watcher<Value = EndpointAddr> + use<>> {
        let mut watcher = membership.peers.endpoint.watch_addr();
        let last = watcher.get().ip_addrs().copied().collect();
        OwnAddresses { watcher, last }
    }
}

impl<W: Watcher<Value = EndpointAddr>> OwnAddresses<W> {
    /// Whether one of them is gone since the last call.
    fn lost_one(&mut self) -> bool {
        let now = self.watcher.get().ip_addrs().copied().collect();
        let before = std::mem::replace(&mut self.last, now);
        !before.is_subset(&self.last)
    }
}

/// The path in use, and since when, if another one was before.
struct InUse {
    path: Option<PathId>,
    since: Option<Instant>,
}

impl InUse {
    fn new(conn: &PeerConn) -> Self {
        Self { path: conn.path_in_use(), since: None }
    }

    /// Whether there was another one a moment ago.
    fn is_new(&mut self, conn: &PeerConn) -> bool {
        let path = conn.path_in_use();
        if path != self.path {
            *self = Self { path, since: Some(Instant::now()) };
        }
        self.since.is_some_and(|since| since.elapsed() < TAKEN)
    }
}

/// This machine has lost an address, which took the path away or did not. What was under way on that path is sent again
/// only after seconds, and all that follows waits for it, although the connection came along and answers: so sessions do
/// not wait for it.
async fn moved(membership: &Arc<Membership>, conn: &Arc<PeerConn>, heard: &mut Heard, taken: bool) {
    let patience = MOVED.max(conn.rtt() * MOVED_ROUND_TRIPS);
    let mut answer = Box::pin(ping(&conn.conn, TELL));
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
/// connection, iroh sends to the path that it chose, new connections' handshakes too, and asks nobody where the peer
/// is. So where that path is dead, it tries all ways only after the connection is closed.
async fn forgotten(membership: &Membership, conn: &PeerConn, let_go: Duration) -> &'static str {
    tokio::time::sleep(let_go).await;
    let relay = conn.relay_in_use();
    let has_other = relay.as_ref().is_some_and(|relay| {
        membership.peers.relays.suspect(relay);
        membership.peers.relays.has_other_than(relay)
    });
    if conn.has_relay_to_spare() || has_other {
        return "a relay may reach the peer";
    }
    // An agent can only come back by itself. One that has not greeted may be one, and was asked nothing, so that its silence
    // says nothing. And by a relay nobody is at another address.
    if !conn.callable() || relay.is_some() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LET_GO_DIRECT.saturating_sub(let_go)).await;
    "the peer may be at another address"
}

/// Looks for another way until there is one, or the connection is there again. After `let_go` it is closed where that may
/// open a way by a relay, and after [`LET_GO_DIRECT`] where only that has other addresses looked for.
async fn stalled(
    membership: &Arc<Membership>,
    conn: &Arc<PeerConn>,
    heard: &mut Heard,
    again: impl Future<Output = ()>,
    let_go: Duration,
) {
    conn.set_stalled(true);
    membership.peers.pool.touch();
    let tell = heard.at + TELL;
    let other = async {
        if conn.is_caller_only() {
            // Only an agent itself can open another one.
            std::future::pending::<()>().await;
        }
        let far = Instant::now() + Duration::from_secs(24 * 3600);
        while dial::connect(membership, conn.peer, far).await.is_err() {
            tokio::time::sleep(BEAT).await;
        }
    };
    let found = tokio::select! {
        () = again => None,
        why = forgotten(membership, conn, let_go) => {
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
            drop(tokio::time::timeout(LEAVE, conn.emptied()).await);
            close(&conn.conn, Close::Replaced, "it was stalled, and another connection is used");
            return;
        }
        Some(false) => {
            tracing::info!(peer = %conn.peer.short(), "the callers are told");
            conn.give_up();
            heard.clone().again(conn).await;
        }
    }
    conn.set_stalled(false);
    membership.peers.pool.touch();
}
