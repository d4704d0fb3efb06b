//! Answers `malai status` and `malai daemon status`: only with what is known by evidence.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use malai_protocol::local::{ClusterState, ClusterStatus, Connection, DaemonStatus, MachineStatus, Role, Status};
use malai_protocol::peer::Close;
use malai_protocol::session::Reached;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::clusters::join::knock::Waiting;
use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::clusters::{Cluster, Clusters, Served};
use crate::net::endpoint::own_addresses;
use crate::net::pool::PeerConn;
use crate::net::{close, ping};

/// Bounds how long a machine may take to answer, and so the whole status. A machine that takes longer is not shown as
/// connected.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the machines that are dialled at once, for all CLIs together. Those that find no place in time are shown as not
/// asked.
static DIALS: Semaphore = Semaphore::const_new(512);
/// Bounds the machines of a cluster in which connections that a status made are kept for the commands that follow. In a
/// larger cluster they would cost too much memory and too many keep-alives.
const MAX_KEPT_PROBE_MACHINES: usize = 64;
/// Bounds how many of this machine's addresses are shown.
const MAX_SHOWN_ADDRESSES: usize = 32;

/// Says how machines are asked.
#[derive(Debug, Clone, Copy)]
struct How {
    /// Dials those without a connection.
    probe: bool,
    deadline: Instant,
}

/// Returns the status of all clusters. Asks all machines with a connection at once whether they are there, and with `probe`
/// dials the others as well. Takes two seconds at most.
pub(crate) async fn status(clusters: &Clusters, probe: bool) -> Status {
    let how = How { probe, deadline: Instant::now() + PROBE_TIMEOUT };
    let mut answers = JoinSet::new();
    for (index, (alias, cluster)) in clusters.all().into_iter().enumerate() {
        answers.spawn(async move { (index, one(alias, cluster, how).await) });
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

/// Returns what `malai daemon status` shows.
pub(crate) async fn daemon(clusters: &Clusters) -> DaemonStatus {
    let host = clusters.host();
    let executor = host.executor.current();
    let sessions: usize = host.sessions.tables().all().iter().map(|table| table.len()).sum();
    DaemonStatus {
        pid: std::process::id(),
        version: crate::VERSION.to_owned(),
        agent: host.agent,
        ready: true,
        tree: executor.as_ref().map(crate::supervisor::Executor::tree),
        executor_pid: executor.as_ref().and_then(crate::supervisor::Executor::pid),
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        lost_log: host.lost_log().await,
    }
}

async fn one(alias: String, cluster: Cluster, how: How) -> ClusterStatus {
    match cluster {
        Cluster::Ready(served) => ready(alias, &served, how).await,
        Cluster::Waiting(waiting) => unready(alias, ClusterState::Waiting(waiting.what()), Some(&waiting)),
        Cluster::Broken(failure) => unready(alias, ClusterState::Broken(failure), None),
    }
}

fn unready(alias: String, state: ClusterState, waiting: Option<&Waiting>) -> ClusterStatus {
    ClusterStatus {
        cluster: waiting.map(|w| w.cluster),
        machine_id: waiting.map(|w| w.me),
        ..ClusterStatus::new(alias, state)
    }
}

async fn ready(alias: String, served: &Served, how: How) -> ClusterStatus {
    let membership = &served.membership;
    let agent = membership.host.agent;
    // What they answer may be an alarm.
    let machines = machines(membership, how).await;
    ClusterStatus {
        alias,
        cluster: Some(membership.cluster),
        role: if membership.is_manager { Role::Manager } else { Role::Machine },
        machine: membership.my_name(),
        machine_id: Some(membership.me),
        state: ClusterState::Ready,
        generation: Some(membership.held().generation()),
        alarm: joined(membership.alarms()),
        addresses: if agent { Vec::new() } else { own_addresses(&membership.peers.endpoint, MAX_SHOWN_ADDRESSES) },
        join_addresses: served
            .desk
            .as_ref()
            .map_or_else(Vec::new, |desk| own_addresses(&desk.endpoint, MAX_SHOWN_ADDRESSES)),
        machines,
        relays: membership.peers.relays.states(&membership.peers.endpoint),
        discovery_failures: membership.peers.finding.ways.failures(),
    }
}

/// Joins alarms as `status` shows them.
fn joined(alarms: Vec<String>) -> Option<String> {
    (!alarms.is_empty()).then(|| alarms.join("; "))
}

/// Returns all machines of a cluster, after it asked each whether it is there.
pub(crate) async fn probed(membership: &Arc<Membership>) -> Vec<MachineStatus> {
    machines(membership, How { probe: true, deadline: Instant::now() + PROBE_TIMEOUT }).await
}

/// Says what came of asking one machine.
#[derive(Debug, Default)]
struct Asked {
    /// Says whether it was asked at all.
    probed: bool,
    /// Is the connection over which it answered; absent when it did not.
    connection: Option<Connection>,
}

async fn machines(membership: &Arc<Membership>, how: How) -> Vec<MachineStatus> {
    let held = membership.held();
    let keep = held.config.machines.len() <= MAX_KEPT_PROBE_MACHINES;
    if how.probe {
        membership.peers.nudge();
    }
    let mut asking = JoinSet::new();
    for id in held.config.machines.values().map(|machine| machine.id).filter(|id| *id != membership.me) {
        let membership = Arc::clone(membership);
        asking.spawn(async move { (id, ask(&membership, id, how, keep).await) });
    }
    let mut asked: HashMap<MachineId, Asked> = HashMap::new();
    while let Some(answer) = asking.join_next().await {
        asked.extend(answer.ok());
    }
    let rows = held.config.machines.iter().map(|(name, machine)| {
        let this = machine.id == membership.me;
        let Asked { probed, connection } = asked.remove(&machine.id).unwrap_or_default();
        let seen = membership.peers.pool.seen(machine.id);
        let told = membership.peers.pool.told_of(machine.id);
        MachineStatus {
            name: name.to_string(),
            id: machine.id,
            this,
            manager: *name == held.config.cluster.manager,
            connection,
            generation: if this { Some(held.generation()) } else { seen.generation },
            last_seen_ms: if this { None } else { seen.last_seen_ms },
            probed,
            malai: if this {
                Some(crate::VERSION.to_owned())
            } else {
                told.map(|told| told.malai).filter(|malai| !malai.is_empty())
            },
        }
    });
    rows.collect()
}

/// Asks a machine whether it is there, over its connection, and over a new one where that one does not answer.
async fn ask(membership: &Arc<Membership>, id: MachineId, how: How, keep: bool) -> Asked {
    let live = membership.peers.pool.live(id);
    if !how.probe {
        return match &live {
            Some(conn) if ping(&conn.conn, PROBE_TIMEOUT).await => answered(membership, conn),
            live => Asked { probed: live.is_some(), connection: None },
        };
    }
    let Ok(Ok(_place)) = timeout_at(how.deadline, DIALS.acquire()).await else { return Asked::default() };
    let Ok(conn) = dial::answering(membership, id, how.deadline).await else {
        return Asked { probed: true, connection: None };
    };
    greeted(membership, &conn, how.deadline).await;
    let asked = answered(membership, &conn);
    if !keep && live.is_none() && conn.dialed && conn.sessions() == 0 {
        close(&conn.conn, Close::Done, "it was only asked whether it is there");
    }
    asked
}

/// Waits until the machine has said what it holds and runs; its greeting comes with the first answer or right after it.
async fn greeted(membership: &Membership, conn: &PeerConn, deadline: Instant) {
    let mut changes = membership.peers.pool.watch();
    while membership.peers.pool.told_of(conn.peer).is_none_or(|told| told.at_ms < conn.since_ms) {
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn answered(membership: &Membership, conn: &PeerConn) -> Asked {
    membership.peers.pool.heard(conn.peer);
    let Reached { path, rtt_us, found_by } = conn.reached();
    let traffic = conn.traffic();
    let (sent_bytes, received_bytes) = (traffic.sent, traffic.received);
    Asked {
        probed: true,
        connection: Some(Connection { since_ms: conn.since_ms, path, rtt_us, found_by, sent_bytes, received_bytes }),
    }
}
