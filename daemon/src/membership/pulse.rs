//! The heartbeat of a connection that carries sessions: it finds a stall within 3 s, and looks for another way at once.
//!
//! Whatever comes from the peer on the path in use is a sign of life; a ping a second sees to it that something does. A
//! connection that is silent is *stalled*: no new session takes it, and another one is looked for, in both directions. Once
//! there is one, and the old one has not recovered, the callers' sockets are closed, so that they attach over the new one;
//! without a new one the same happens after a while, so that they can say so. A connection without sessions has no
//! heartbeat, and one whose sessions are over within half a second sends no ping.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::peer::Close;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Membership, dial};
use crate::net::pool::{PeerConn, SessionGuard};
use crate::net::{close, ping};

/// Between two looks at what came, and two pings.
const BEAT: Duration = Duration::from_millis(500);
/// A connection on which nothing came for so long is stalled.
const STALL: Duration = Duration::from_millis(2500);
/// A connection whose relay has not come to the rescue within so long after it stalled is let go.
const LET_GO: Duration = Duration::from_millis(500);
/// So long after the last sign of life the callers are told, another connection or not.
const TELL: Duration = Duration::from_secs(6);
/// How long streams may take to leave a stalled connection once there is another. Those that callers here opened leave at
/// once; the peer may not have noticed, and learns it from the close.
const LEAVE: Duration = Duration::from_millis(500);

/// Counts a session on this connection for as long as the guard lives, with a heartbeat. `None` when there are `most`.
pub(crate) fn enter(membership: &Arc<Membership>, conn: &Arc<PeerConn>, most: u32) -> Option<SessionGuard> {
    let guard = conn.enter(most)?;
    if conn.begin_pulse() {
        let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
        membership.tasks.clone().spawn(async move {
            tokio::select! {
                () = membership.cancel.cancelled() => {}
                _ = conn.conn.closed() => {}
                () = beat(&membership, &conn) => {}
            }
        });
    }
    Some(guard)
}

/// What was heard on a connection, and when.
#[derive(Debug)]
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
    async fn again(&mut self, conn: &PeerConn) {
        let before = self.signs;
        let mut look = tokio::time::interval(BEAT / 5);
        while self.signs == before {
            look.tick().await;
            self.silence(conn);
        }
    }
}

/// Beats until no session is left.
async fn beat(membership: &Arc<Membership>, conn: &Arc<PeerConn>) {
    let mut heard = Heard::new(conn);
    let mut ticks = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pings = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = async { pings.as_mut().expect("there is one").await }, if pings.is_some() => {
                pings = None;
                ticks.tick().await;
            }
        }
        if conn.sessions() == 0 && conn.end_pulse() {
            return;
        }
        if heard.silence(conn) >= STALL {
            stalled(membership, conn, &mut heard).await;
            pings = None;
        }
        // One ping at a time; where it is answered the next follows with the next beat. An agent is not asked: it asks.
        if pings.is_none() && conn.callable() {
            pings = Some(Box::pin(ping(&conn.conn, STALL)));
        }
    }
}

/// Looks for another way until there is one, or the connection comes back.
async fn stalled(membership: &Arc<Membership>, conn: &Arc<PeerConn>, heard: &mut Heard) {
    tracing::info!(peer = %conn.peer.short(), cluster = %membership.alias, "nothing comes from there: looking for another way");
    conn.set_stalled(true);
    membership.pool.touch();
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
    // As long as there is a connection, iroh sends to the path that it chose, new connections' handshakes too: where
    // that path is dead and a relay is there, only a closed connection makes it try all ways.
    let let_go = async {
        tokio::time::sleep(LET_GO).await;
        if !conn.has_relay_to_spare() {
            std::future::pending::<()>().await;
        }
    };
    let found = tokio::select! {
        () = heard.again(conn) => None,
        () = let_go => {
            tracing::info!(peer = %conn.peer.short(), "its path is dead and a relay is there: it is let go");
            return close(&conn.conn, Close::Replaced, "its path is dead, and a relay may reach the peer");
        }
        () = other => Some(true),
        () = tokio::time::sleep_until(tell) => Some(false),
    };
    match found {
        None => tracing::info!(peer = %conn.peer.short(), "the connection is back"),
        Some(true) => {
            tracing::info!(peer = %conn.peer.short(), "sessions move to another connection");
            conn.give_up();
            let emptied = async {
                while conn.sessions() > 0 {
                    tokio::time::sleep(BEAT / 5).await;
                }
            };
            // What is left by then is lost with the connection, and attaches again.
            drop(tokio::time::timeout(LEAVE, emptied).await);
            close(&conn.conn, Close::Replaced, "it was stalled, and another connection is used");
            return;
        }
        Some(false) => {
            tracing::info!(peer = %conn.peer.short(), "the callers are told");
            conn.give_up();
            heard.again(conn).await;
        }
    }
    conn.set_stalled(false);
    membership.pool.touch();
}
