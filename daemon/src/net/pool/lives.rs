//! Which lives of a machine's daemon greeted. A life that comes back after another one was met shows that two machines hold
//! one key: each start of a daemon has a new name for its life.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use malai_protocol::id::{Incarnation, MachineId};
use tokio::sync::watch;

use super::Pool;

/// Bounds the remembered lives of one machine: there may be many copies of one image.
const MAX_REMEMBERED_LIVES: usize = 16;
/// Sets how long two machines count as holders of one key after that was last seen; longer while both are connected.
const TWIN_MEMORY_TIME: Duration = Duration::from_secs(3600);

/// Sets how long requests for such a key are refused after that was last seen; longer while both are connected. It is short,
/// so that the machine that stays is usable soon after the copy has left.
const TWIN_REFUSAL_TIME: Duration = Duration::from_secs(300);

/// Holds one life of a machine's daemon: the time between a start and its end.
#[derive(Debug, Clone)]
pub(crate) struct PeerLife {
    boot: Incarnation,
    /// Is when the connection was made over which it greeted last.
    made_at: Instant,
    /// Is when it greeted last.
    pub(crate) at: Instant,
    /// Is where it was met then: `direct IP:PORT` or `relay URL`.
    pub(crate) path: String,
}

/// Holds the lives of one machine's daemon.
#[derive(Debug, Default)]
pub(super) struct Lives {
    /// Holds the lives that were met, the one that greeted last at the end.
    met: Vec<PeerLife>,
    /// Is when a life last came back after another one.
    came_back: Option<Instant>,
}

impl Lives {
    /// Notes a greeting over a connection that was made at `made_at`. Returns whether the life came back after another one.
    pub(super) fn greeted(&mut self, boot: Incarnation, made_at: Instant, path: String) -> bool {
        let newest = self.met.last();
        // The greeting of an earlier life may be read late.
        if newest.is_some_and(|newest| newest.boot != boot && made_at <= newest.made_at) {
            return false;
        }
        let is_newest = newest.is_some_and(|newest| newest.boot == boot);
        let before = self.met.len();
        self.met.retain(|life| life.boot != boot);
        let comes_back = !is_newest && self.met.len() < before;
        let at = Instant::now();
        self.met.push(PeerLife { boot, made_at, at, path });
        let excess = self.met.len().saturating_sub(MAX_REMEMBERED_LIVES);
        self.met.drain(..excess);
        if comes_back {
            self.came_back = Some(at);
        }
        comes_back
    }

    /// Returns the two lives that were met last, by their addresses, where two machines hold the key. `connected` has the
    /// lives that are connected now.
    pub(super) fn twins(&self, connected: &HashSet<Incarnation>) -> Option<[PeerLife; 2]> {
        self.twins_within(TWIN_MEMORY_TIME, connected)
    }

    /// Returns the same, if that was seen within this time or both are connected.
    fn twins_within(&self, time: Duration, connected: &HashSet<Incarnation>) -> Option<[PeerLife; 2]> {
        let came_back = self.came_back?;
        if came_back.elapsed() >= time && connected.len() < 2 {
            return None;
        }
        let [.., one, other] = &self.met[..] else { return None };
        let mut both = [one.clone(), other.clone()];
        both.sort_by(|a, b| a.path.cmp(&b.path));
        Some(both)
    }

    /// Returns the life that was met last besides this one.
    fn other(&self, boot: Incarnation) -> Option<&PeerLife> {
        self.met.iter().rev().find(|life| life.boot != boot)
    }
}

impl Pool {
    /// Returns the two lives that were met last, where two machines hold this key.
    pub(crate) fn twins(&self, id: MachineId) -> Option<[PeerLife; 2]> {
        self.lock().get(&id)?.twins()
    }

    /// Returns the same, as long as requests for this key are refused.
    pub(crate) fn ambiguous(&self, id: MachineId) -> Option<[PeerLife; 2]> {
        let peers = self.lock();
        let peer = peers.get(&id)?;
        peer.lives.twins_within(TWIN_REFUSAL_TIME, &peer.connected())
    }

    /// Returns every key that two machines hold, with the two lives.
    pub(crate) fn all_twins(&self) -> Vec<(MachineId, [PeerLife; 2])> {
        let peers = self.lock();
        let mut all: Vec<_> = peers.iter().filter_map(|(id, peer)| Some((*id, peer.twins()?))).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }

    /// Returns where another machine was met that holds the key of this connection's peer.
    pub(crate) fn twin_of(&self, conn: &super::PeerConn) -> Option<String> {
        let peers = self.lock();
        let peer = peers.get(&conn.peer)?;
        peer.twins()?;
        Some(peer.lives.other(*conn.boot.get()?)?.path.clone())
    }

    /// Returns a receiver that wakes whenever two machines with one key are seen.
    pub(crate) fn watch_twins(&self) -> watch::Receiver<u64> {
        self.twins_seen.subscribe()
    }
}

impl super::Peer {
    fn twins(&self) -> Option<[PeerLife; 2]> {
        self.lives.twins(&self.connected())
    }

    /// Returns the lives that are connected.
    fn connected(&self) -> HashSet<Incarnation> {
        let open = self.conns.iter().filter(|conn| conn.conn.close_reason().is_none());
        open.filter_map(|conn| conn.boot.get().copied()).collect()
    }

    /// Returns whether a request could meet either of two machines with its key.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.lives.twins_within(TWIN_REFUSAL_TIME, &self.connected()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::PeerConn;
    use super::*;
    use crate::net::machine_id;
    use crate::net::testing::Connected;

    const NOBODY: fn() -> HashSet<Incarnation> = HashSet::new;

    fn boot(number: u8) -> Incarnation {
        Incarnation::from_bytes([number; 16])
    }

    /// Greetings of these lives, each over a connection that was made at this second.
    fn met(greetings: &[(u8, u64)]) -> Lives {
        let (mut lives, begin) = (Lives::default(), Instant::now());
        for (number, second) in greetings {
            lives.greeted(boot(*number), begin + Duration::from_secs(*second), format!("direct 192.0.2.{number}:4001"));
        }
        lives
    }

    #[test]
    fn a_life_that_comes_back_after_another_one_shows_two_machines() {
        let twins = met(&[(2, 1), (1, 2), (2, 3)]).twins(&NOBODY()).expect("two");
        assert_eq!(twins.map(|life| life.path), ["direct 192.0.2.1:4001", "direct 192.0.2.2:4001"]);
        assert!(met(&[(1, 1), (2, 2), (3, 3), (1, 4)]).twins(&NOBODY()).is_some());
    }

    #[test]
    fn restarts_and_repeated_and_late_greetings_show_one_machine() {
        for greetings in [
            &[(1, 1), (2, 2), (3, 3), (4, 4)][..],
            &[(1, 1), (1, 2), (2, 3), (2, 4)],
            // The greeting over an older connection is read after that of the next life.
            &[(1, 1), (2, 3), (1, 2), (2, 4)],
            &[(2, 3), (1, 2), (2, 4)],
        ] {
            assert!(met(greetings).twins(&NOBODY()).is_none(), "{greetings:?}");
        }
    }

    #[test]
    fn what_was_seen_an_hour_ago_counts_while_both_are_connected() {
        let mut lives = met(&[(1, 1), (2, 2), (1, 3)]);
        lives.came_back = Instant::now().checked_sub(TWIN_MEMORY_TIME);
        assert!(lives.twins(&NOBODY()).is_none());
        assert!(lives.twins(&HashSet::from([boot(1)])).is_none());
        assert!(lives.twins(&HashSet::from([boot(1), boot(2)])).is_some());
    }

    #[test]
    fn requests_are_refused_for_five_minutes_after_one_of_both_has_left() {
        let mut lives = met(&[(1, 1), (2, 2), (1, 3)]);
        let refused = |lives: &Lives, connected: &HashSet<Incarnation>| {
            lives.twins_within(TWIN_REFUSAL_TIME, connected).is_some()
        };
        assert!(refused(&lives, &NOBODY()));
        lives.came_back = Instant::now().checked_sub(TWIN_REFUSAL_TIME);
        assert!(!refused(&lives, &HashSet::from([boot(1)])));
        assert!(refused(&lives, &HashSet::from([boot(1), boot(2)])));
        assert!(lives.twins(&HashSet::from([boot(1)])).is_some(), "it is an alarm for longer");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_machine_that_starts_anew_long_after_a_copy_has_left_is_one_machine() {
        let (first, second) = (Connected::new().await, Connected::new().await);
        let me = machine_id(&first.dialled.remote_id()).expect("a key");
        let peer = machine_id(&first.accepted.remote_id()).expect("a key");
        let pool = Pool::new(me, Arc::default());
        let before = PeerConn::new(first.accepted.clone(), peer, false);
        assert!(pool.add(&before) && !pool.booted(&before, boot(1)));
        pool.lock().entry(peer).or_default().lives.came_back = Instant::now().checked_sub(TWIN_MEMORY_TIME);
        // It was killed: its connection is there for a while.
        let after = PeerConn::new(second.accepted.clone(), peer, false);
        assert!(pool.add(&after) && !pool.booted(&after, boot(2)));
        assert!(before.conn.close_reason().is_some() && after.conn.close_reason().is_none());
        assert!(pool.ambiguous(peer).is_none() && pool.all_twins().is_empty());
    }

    #[test]
    fn a_machine_that_names_ever_new_lives_takes_no_more_room() {
        let greetings: Vec<_> = (0..=255).map(|number| (number, u64::from(number))).collect();
        assert_eq!(met(&greetings).met.len(), MAX_REMEMBERED_LIVES);
    }
}
