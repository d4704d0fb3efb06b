//! What the pool keeps of machines besides their connections: what they told of themselves, how much went over their
//! connections, and which of them are known to have gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iroh::endpoint::ConnectionError;
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Close, Hello};

use super::{Peer, PeerConn, Pool};
use crate::net::closed_with;
use crate::net::endpoint::CONNECTION_IDLE_TIMEOUT;
use crate::runtime::clock::now_ms;

/// Sets for how long a machine that is gone is believed to be still away. Later it may have come back unnoticed.
const GONE_BELIEVED_TIME: Duration = Duration::from_secs(300);
/// Sets how long a daemon that said goodbye may take to restart. After that its machine is gone.
const DAEMON_RESTART_TIME: Duration = Duration::from_secs(5);
/// Bounds what is kept of a peer's version.
const MAX_VERSION_CHARS: usize = 32;

/// Counts bytes over connections, with all that QUIC adds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Says how a machine went.
#[derive(Debug)]
pub(super) struct Departed {
    at: Instant,
    /// It fell silent, and these were this machine's own addresses then; absent = it said goodbye.
    silent: Option<BTreeSet<SocketAddr>>,
}

impl Departed {
    fn by(why: &ConnectionError, own: &BTreeSet<SocketAddr>) -> Option<Self> {
        let at = Instant::now();
        match why {
            ConnectionError::TimedOut => Some(Self { at, silent: Some(own.clone()) }),
            ended if closed_with(ended) == Some(Close::Shutdown) => Some(Self { at, silent: None }),
            _ => None,
        }
    }

    /// Whether the machine is still to be taken to be away, by one that has these addresses now. Where this machine had
    /// no network, or another one, it was this one that went.
    fn is_believed(&self, own: &BTreeSet<SocketAddr>) -> bool {
        let since = self.at.elapsed();
        let own_network = |then: &BTreeSet<SocketAddr>| then == own && own.iter().any(|a| !a.ip().is_loopback());
        since < GONE_BELIEVED_TIME && self.silent.as_ref().map_or(since >= DAEMON_RESTART_TIME, own_network)
    }
}

/// Says what a machine told of itself when it greeted.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Is its malai version: its own words.
    pub(crate) malai: String,
    /// Says how far its clock was ahead of this machine's, in milliseconds, give or take the time of a round trip.
    pub(crate) ahead_ms: Option<i64>,
    /// When, milliseconds since the epoch.
    pub(crate) at_ms: u64,
    /// Is when, by a clock that no one can set.
    pub(crate) at: Instant,
}

impl PeerConn {
    /// Bytes over this connection.
    pub(crate) fn traffic(&self) -> Traffic {
        let stats = self.conn.stats();
        Traffic { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
    }
}

impl Pool {
    /// Notes what a machine greeted with.
    pub(crate) fn greeted(&self, conn: &PeerConn, hello: &Hello) {
        let at_ms = now_ms();
        // What it told was on its way for half a round trip.
        let way = i64::try_from(conn.rtt().as_millis() / 2).unwrap_or(i64::MAX);
        let ahead = |clock: u64| clock.cast_signed().saturating_sub(at_ms.cast_signed()).saturating_add(way);
        let malai = hello.malai.chars().take(MAX_VERSION_CHARS).collect();
        let told = Told { malai, ahead_ms: hello.clock_ms.map(ahead), at_ms, at: Instant::now() };
        self.lock().entry(conn.peer).or_default().told = Some(told);
    }

    /// Returns what a machine told when it greeted last.
    pub(crate) fn told_of(&self, id: MachineId) -> Option<Told> {
        self.lock().get(&id)?.told.clone()
    }

    /// Returns how many connections there are, and what went over them and over those that have ended.
    pub(crate) fn traffic(&self) -> (u64, Traffic) {
        let peers = self.lock();
        let before = Traffic { sent: self.counters.sent.so_far(), received: self.counters.received.so_far() };
        let conns = peers.values().flat_map(|peer| &peer.conns);
        conns.fold((0, before), |(count, sum), conn| {
            let Traffic { sent, received } = conn.traffic();
            (count + 1, Traffic { sent: sum.sent + sent, received: sum.received + received })
        })
    }

    /// Takes a connection out, at a machine that has these addresses; when it was the last one, how it ended tells whether
    /// the peer has gone.
    pub(crate) fn remove(&self, conn: &PeerConn, own: &BTreeSet<SocketAddr>) {
        let why = conn.conn.close_reason();
        if let Some(peer) = self.lock().get_mut(&conn.peer) {
            let before = peer.conns.len();
            peer.conns.retain(|other| !std::ptr::eq(&raw const **other, conn));
            if peer.conns.len() < before {
                let Traffic { sent, received } = conn.traffic();
                self.counters.sent.add(sent);
                self.counters.received.add(received);
            }
            if let Some(why) = &why {
                peer.heard_until(why);
            }
            if !peer.conns.iter().any(|conn| conn.callable()) {
                peer.departed = why.and_then(|why| Departed::by(&why, own));
            }
        }
        self.touch();
    }

    /// Whether a machine is known to have gone, by its own goodbye or by its silence, and no other's word. `own` are the
    /// addresses of this machine.
    pub(crate) fn is_gone(&self, id: MachineId, own: &BTreeSet<SocketAddr>) -> bool {
        let peers = self.lock();
        let departed = peers.get(&id).and_then(|peer| peer.departed.as_ref());
        departed.is_some_and(|departed| departed.is_believed(own))
    }
}

impl Peer {
    /// A connection that ended so was alive until then: an idle one carries nothing that would be noted otherwise.
    fn heard_until(&mut self, why: &ConnectionError) {
        let silence = match why {
            ConnectionError::TimedOut => CONNECTION_IDLE_TIMEOUT,
            ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => Duration::ZERO,
            _ => return,
        };
        let at = now_ms().saturating_sub(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
        self.last_seen_ms = self.last_seen_ms.max(Some(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|a| a.parse().expect("an address")).collect()
    }

    fn departed(ago: Duration, silent: Option<&[&str]>) -> Departed {
        Departed { at: Instant::now().checked_sub(ago).expect("the machine runs for longer"), silent: silent.map(own) }
    }

    const HERE: &[&str] = &["192.0.2.7:4001", "127.0.0.1:4001"];

    #[test]
    fn a_machine_that_fell_silent_has_gone_for_five_minutes() {
        for (ago, gone) in [(0, true), (299, true), (301, false)] {
            let departed = departed(Duration::from_secs(ago), Some(HERE));
            assert_eq!(departed.is_believed(&own(HERE)), gone, "{ago} s");
        }
    }

    #[test]
    fn a_goodbye_counts_when_a_restart_would_be_over() {
        for (ago, gone) in [(0, false), (4, false), (6, true), (301, false)] {
            let departed = departed(Duration::from_secs(ago), None);
            assert_eq!(departed.is_believed(&own(HERE)), gone, "{ago} s");
        }
    }

    #[test]
    fn where_this_machine_lost_or_changed_its_network_the_other_one_is_not_said_to_have_gone() {
        let silent = |then: &[&str]| departed(Duration::ZERO, Some(then));
        assert!(!silent(&["127.0.0.1:4001"]).is_believed(&own(&["127.0.0.1:4001"])), "it has none");
        assert!(!silent(&[]).is_believed(&own(HERE)), "it had none");
        assert!(!silent(HERE).is_believed(&own(&["198.51.100.3:4001"])), "it has another");
    }
}
