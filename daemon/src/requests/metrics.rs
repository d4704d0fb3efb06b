//! What is counted, for `malai metrics`: plain numbers that only grow, one set for each cluster. They outlive the
//! connections that they count, and the endpoint when it is bound anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use malai_protocol::id::{ClusterId, Incarnation};
use malai_protocol::local::{ClusterMetrics, Metrics};
use parking_lot::Mutex;

use crate::clusters::Clusters;
use crate::clusters::membership::Membership;
use crate::runtime::duty;
use crate::shared::Shared;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Total(AtomicU64);

impl Total {
    /// One more.
    pub(crate) fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What it is now.
    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// At least this, and what it was at most before: while an endpoint is bound anew, its connections are counted
    /// nowhere for a moment, and a total must not go back.
    fn at_least(&self, now: u64) -> u64 {
        self.0.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

/// What is counted for one cluster.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Connections that this machine dialled.
    pub(crate) dialed: Total,
    /// Connections that others dialled.
    pub(crate) accepted: Total,
    /// Handshakes that came to their end.
    pub(crate) handshakes_ok: Total,
    /// Handshakes that did not.
    pub(crate) handshakes_failed: Total,
    /// Connections to a machine to which all earlier ones were lost.
    pub(crate) reconnects: Total,
    /// Connections of keys that are no members.
    pub(crate) connections_refused: Total,
    /// Commands that were refused here.
    pub(crate) sessions_refused: Total,
    /// Commands that were sent to their targets.
    pub(crate) called: Total,
    /// Commands that were handed to the executor.
    pub(crate) served: Total,
    /// Bytes sent over connections that have ended.
    pub(crate) sent: Total,
    /// Bytes received over connections that have ended.
    pub(crate) received: Total,
    told_sent: Total,
    told_received: Total,
    calling: AtomicU64,
}

/// A session that a command here follows; no more when dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub(crate) struct Calling(Arc<Counters>);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.calling.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// Counts a session that is followed from here, for as long as the guard lives.
    pub(crate) fn calling(self: &Arc<Self>) -> Calling {
        self.calling.fetch_add(1, Ordering::Relaxed);
        Calling(Arc::clone(self))
    }
}

/// The counters of all clusters of this daemon, and of its executors.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    clusters: Mutex<BTreeMap<ClusterId, Arc<Counters>>>,
    /// What the executor that was asked last said.
    executor: Mutex<Option<(Incarnation, u64)>>,
    executor_panics: Total,
}

impl Registry {
    /// A cluster's.
    pub(crate) fn of(&self, cluster: ClusterId) -> Arc<Counters> {
        let mut all = self.clusters.lock();
        Arc::clone(all.entry(cluster).or_default())
    }

    /// Takes in how many panics an executor says that it had; returns those of all executors that were asked.
    fn executor_panics(&self, told: Option<(Incarnation, u64)>) -> u64 {
        if let Some((executor, panics)) = told {
            let mut last = self.executor.lock();
            let before = last.filter(|(of, _)| *of == executor).map_or(0, |(_, panics)| panics);
            self.executor_panics.add(panics.saturating_sub(before));
            *last = Some((executor, panics));
        }
        self.executor_panics.so_far()
    }
}

/// All that is counted, as it stands.
pub(crate) async fn metrics(clusters: &Clusters) -> Metrics {
    let executor_panics = executor_panics(clusters.shared()).await;
    let lost_log_lines = clusters.shared().lost_log().await.map_or(0, |lost| lost.lines);
    let clusters = clusters.ready().iter().map(|membership| cluster(membership)).collect();
    let version = crate::VERSION.to_owned();
    Metrics { version, panics: duty::panics(), executor_panics, lost_log_lines, clusters }
}

/// How many panics the executors of this daemon had, as far as they said so.
pub(crate) async fn executor_panics(shared: &Shared) -> u64 {
    let told = match shared.executor.current() {
        Some(executor) => executor.panics().await.map(|panics| (executor.incarnation(), panics)),
        None => None,
    };
    shared.metrics.executor_panics(told)
}

fn cluster(membership: &Membership) -> ClusterMetrics {
    let (pool, counters) = (&membership.pool, &membership.counters);
    let (connections, traffic) = pool.traffic();
    ClusterMetrics {
        alias: membership.alias.clone(),
        generation: membership.held().generation(),
        link_up: membership.manager_id().map(|manager| pool.live(manager).is_some()),
        connections,
        dialed: counters.dialed.so_far(),
        accepted: counters.accepted.so_far(),
        handshakes_ok: counters.handshakes_ok.so_far(),
        handshakes_failed: counters.handshakes_failed.so_far(),
        reconnects: counters.reconnects.so_far(),
        connections_refused: counters.connections_refused.so_far(),
        sessions_refused: counters.sessions_refused.so_far(),
        called_now: counters.calling.load(Ordering::Relaxed),
        called: counters.called.so_far(),
        served_now: u64::try_from(membership.live.len()).unwrap_or(u64::MAX),
        served: counters.served.so_far(),
        sent_bytes: counters.told_sent.at_least(traffic.sent),
        received_bytes: counters.told_received.at_least(traffic.received),
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
