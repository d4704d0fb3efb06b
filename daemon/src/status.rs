//! What `malai status` and `malai daemon status` tell: only what is known by evidence.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use malai_protocol::local::{ClusterState, ClusterStatus, Connection, DaemonStatus, MachineStatus, Role, Status};
use tokio::task::JoinSet;

use crate::clusters::{Cluster, Clusters, Served};
use crate::join::knock::Waiting;
use crate::membership::Membership;
use crate::net::endpoint::own_addresses;
use crate::net::ping;
use crate::net::pool::PeerConn;

/// A machine that does not answer within this time is not shown as connected.
const PING: Duration = Duration::from_secs(2);
/// The most of our own addresses that are shown.
const ADDRESSES: usize = 32;

/// The whole status. Machines with a connection are asked, all at once, whether they are there.
pub(crate) async fn status(clusters: &Clusters) -> Status {
    let mut answers = JoinSet::new();
    for (index, (alias, cluster)) in clusters.all().into_iter().enumerate() {
        answers.spawn(async move { (index, one(alias, cluster).await) });
    }
    let mut found = Vec::new();
    while let Some(answer) = answers.join_next().await {
        match answer {
            Ok(answer) => found.push(answer),
            Err(error) => tracing::error!("a cluster's status failed: {error}"),
        }
    }
    found.sort_by_key(|(index, _)| *index);
    Status { daemon: daemon(clusters).await, clusters: found.into_iter().map(|(_, status)| status).collect() }
}

/// The daemon's own part.
pub(crate) async fn daemon(clusters: &Clusters) -> DaemonStatus {
    let shared = clusters.shared();
    let executor = shared.executor.running().await;
    let sessions: usize = clusters.ready().iter().map(|membership| membership.live.len()).sum();
    DaemonStatus {
        pid: std::process::id(),
        version: crate::VERSION.to_owned(),
        agent: shared.agent,
        ready: true,
        tree: executor.as_ref().map(crate::supervisor::Executor::tree),
        executor_pid: executor.as_ref().and_then(crate::supervisor::Executor::pid),
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
    }
}

async fn one(alias: String, cluster: Cluster) -> ClusterStatus {
    match cluster {
        Cluster::Ready(served) => ready(alias, &served).await,
        Cluster::Waiting(waiting) => unready(alias, ClusterState::Waiting(waiting.what()), Some(&waiting)),
        Cluster::Broken(failure) => unready(alias, ClusterState::Broken(failure), None),
    }
}

fn unready(alias: String, state: ClusterState, waiting: Option<&Waiting>) -> ClusterStatus {
    ClusterStatus {
        alias,
        cluster: waiting.map(|w| w.cluster),
        role: Role::Machine,
        machine: None,
        machine_id: waiting.map(|w| w.me),
        state,
        generation: None,
        alarm: None,
        addresses: Vec::new(),
        join_addresses: Vec::new(),
        machines: Vec::new(),
        relays: Vec::new(),
    }
}

async fn ready(alias: String, served: &Served) -> ClusterStatus {
    let membership = &served.membership;
    let agent = membership.shared.agent;
    ClusterStatus {
        alias,
        cluster: Some(membership.cluster),
        role: if membership.is_manager { Role::Manager } else { Role::Machine },
        machine: membership.my_name(),
        machine_id: Some(membership.me),
        state: ClusterState::Ready,
        generation: Some(membership.held().generation()),
        alarm: membership.alarm(),
        addresses: if agent { Vec::new() } else { own_addresses(&membership.endpoint, ADDRESSES) },
        join_addresses: served.desk.as_ref().map_or_else(Vec::new, |desk| own_addresses(&desk.endpoint, ADDRESSES)),
        machines: machines(membership).await,
        relays: membership.relays.states(&membership.endpoint),
    }
}

async fn machines(membership: &Arc<Membership>) -> Vec<MachineStatus> {
    let held = membership.held();
    let mut pings = JoinSet::new();
    for machine in held.config.machines.values() {
        if let Some(conn) = membership.pool.live(machine.id) {
            pings.spawn(async move { (conn.peer, ping(&conn.conn, PING).await.then_some(conn)) });
        }
    }
    let mut there: Vec<(MachineId, Option<Arc<PeerConn>>)> = Vec::new();
    while let Some(answer) = pings.join_next().await {
        if let Ok(answer) = answer {
            there.push(answer);
        }
    }
    let rows = held.config.machines.iter().map(|(name, machine)| {
        let seen = membership.pool.seen(machine.id);
        let conn = there.iter().find(|(id, _)| *id == machine.id).and_then(|(_, conn)| conn.clone());
        if conn.is_some() {
            membership.pool.heard(machine.id);
        }
        let this = machine.id == membership.me;
        MachineStatus {
            name: name.to_string(),
            id: machine.id,
            this,
            manager: *name == held.config.cluster.manager,
            connection: conn.map(|conn| connection(&conn)),
            generation: if this { Some(held.generation()) } else { seen.generation },
            last_seen_ms: if this { None } else { membership.pool.seen(machine.id).last_seen_ms },
        }
    });
    rows.collect()
}

fn connection(conn: &PeerConn) -> Connection {
    let (path, rtt_us) = conn.path();
    Connection { since_ms: conn.since_ms, path, rtt_us }
}
