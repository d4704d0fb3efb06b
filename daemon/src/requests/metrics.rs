//! Answers `malai metrics`: what is counted, as it stands.

use malai_protocol::local::{ClusterMetrics, Metrics};

use crate::clusters::Clusters;
use crate::clusters::host::Host;
use crate::clusters::membership::Membership;
use crate::runtime::duty;

/// Returns all that is counted.
pub(crate) async fn metrics(clusters: &Clusters) -> Metrics {
    let executor_panics = executor_panics(clusters.host()).await;
    let lost_log_lines = clusters.host().lost_log().await.map_or(0, |lost| lost.lines);
    let clusters = clusters.ready().iter().map(|membership| cluster(membership)).collect();
    let version = crate::VERSION.to_owned();
    Metrics { version, panics: duty::panics(), executor_panics, lost_log_lines, clusters }
}

/// Returns how many panics the executors of this daemon reported.
pub(crate) async fn executor_panics(host: &Host) -> u64 {
    let told = match host.executor.current() {
        Some(executor) => executor.panics().await.map(|panics| (executor.incarnation(), panics)),
        None => None,
    };
    host.metrics.executor_panics(told)
}

fn cluster(membership: &Membership) -> ClusterMetrics {
    let (pool, counters) = (&membership.peers.pool, &membership.counters);
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
        called_now: counters.calling_now(),
        called: counters.called.so_far(),
        served_now: u64::try_from(membership.live.len()).unwrap_or(u64::MAX),
        served: counters.served.so_far(),
        sent_bytes: counters.told_sent(traffic.sent),
        received_bytes: counters.told_received(traffic.received),
    }
}
