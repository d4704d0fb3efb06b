//! Counts for `malai metrics`: plain numbers that only grow, one set for each cluster. They outlive the connections that
//! they count, and the endpoint when it is bound again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use malai_protocol::id::{ClusterId, Incarnation};
use parking_lot::Mutex;

/// Holds a number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Total(AtomicU64);

impl Total {
    /// Counts one more.
    pub(crate) fn one(&self) {
        self.add(1);
    }

    /// Counts this many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Returns what was counted up to now.
    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the greater of `now` and what it returned before: while an endpoint is bound again, its connections are
    /// counted nowhere for a moment, and a total must not go back.
    fn at_least(&self, now: u64) -> u64 {
        self.0.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

/// Holds what is counted for one cluster.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Counts connections that this machine dialled.
    pub(crate) dialed: Total,
    /// Counts connections that peers dialled.
    pub(crate) accepted: Total,
    /// Counts handshakes that succeeded.
    pub(crate) handshakes_ok: Total,
    /// Counts handshakes that failed.
    pub(crate) handshakes_failed: Total,
    /// Counts connections to a machine to which all earlier ones were lost.
    pub(crate) reconnects: Total,
    /// Counts refused connections of keys that are not members.
    pub(crate) connections_refused: Total,
    /// Counts commands that this machine refused.
    pub(crate) sessions_refused: Total,
    /// Counts commands that were sent to their targets.
    pub(crate) called: Total,
    /// Counts commands that were handed to the executor.
    pub(crate) served: Total,
    /// Counts bytes sent over connections that have ended.
    pub(crate) sent: Total,
    /// Counts bytes received over connections that have ended.
    pub(crate) received: Total,
    told_sent: Total,
    told_received: Total,
    calling: AtomicU64,
}

/// Counts one session that a command on this machine follows, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub(crate) struct Calling(Arc<Counters>);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.calling.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// Counts a session that a command on this machine follows, for as long as the guard lives.
    pub(crate) fn calling(self: &Arc<Self>) -> Calling {
        self.calling.fetch_add(1, Ordering::Relaxed);
        Calling(Arc::clone(self))
    }

    /// Returns how many sessions commands on this machine follow.
    pub(crate) fn calling_now(&self) -> u64 {
        self.calling.load(Ordering::Relaxed)
    }

    /// Returns the bytes sent, of which `now` are counted at this moment.
    pub(crate) fn told_sent(&self, now: u64) -> u64 {
        self.told_sent.at_least(now)
    }

    /// Returns the bytes received, of which `now` are counted at this moment.
    pub(crate) fn told_received(&self, now: u64) -> u64 {
        self.told_received.at_least(now)
    }
}

/// Holds the counters of all clusters of this daemon, and of its executors.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    clusters: Mutex<BTreeMap<ClusterId, Arc<Counters>>>,
    /// Is the life of the executor that answered last, and how many panics it reported.
    executor: Mutex<Option<(Incarnation, u64)>>,
    executor_panics: Total,
}

impl Registry {
    /// Returns the counters of a cluster.
    pub(crate) fn of(&self, cluster: ClusterId) -> Arc<Counters> {
        let mut all = self.clusters.lock();
        Arc::clone(all.entry(cluster).or_default())
    }

    /// Takes in how many panics an executor reported; returns those of all executors that were asked.
    pub(crate) fn executor_panics(&self, told: Option<(Incarnation, u64)>) -> u64 {
        if let Some((executor, panics)) = told {
            let mut last = self.executor.lock();
            let before = last.filter(|(of, _)| *of == executor).map_or(0, |(_, panics)| panics);
            self.executor_panics.add(panics.saturating_sub(before));
            *last = Some((executor, panics));
        }
        self.executor_panics.so_far()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_never_goes_back_when_connections_are_counted_nowhere_for_a_moment() {
        let counters = Counters::default();
        assert_eq!([7, 3, 9].map(|now| counters.told_sent.at_least(now)), [7, 7, 9]);
    }

    #[test]
    fn the_panics_of_executors_add_up_over_their_lives() {
        let (registry, life) = (Registry::default(), |number| Incarnation::from_bytes([number; 16]));
        let told = [None, Some((life(1), 2)), Some((life(1), 3)), None, Some((life(2), 1)), Some((life(2), 1))];
        assert_eq!(told.map(|told| registry.executor_panics(told)), [0, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn a_session_that_is_followed_is_counted_until_it_is_not() {
        let counters = Arc::<Counters>::default();
        let (one, other) = (counters.calling(), counters.calling());
        assert_eq!(counters.calling.load(Ordering::Relaxed), 2);
        drop(one);
        drop(other);
        assert_eq!(counters.calling.load(Ordering::Relaxed), 0);
    }
}
