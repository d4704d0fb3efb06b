//! What a daemon tells of itself, of its clusters and of their machines.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{ClusterId, MachineId};

/// Answers [`super::Request::DaemonStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The daemon's process id.
    pub pid: u32,
    /// Its malai version.
    pub version: String,
    /// Whether it is an agent, which only calls.
    pub agent: bool,
    /// Whether it serves requests.
    pub ready: bool,
    /// How sessions' processes are found when they end; absent while no executor runs.
    pub tree: Option<Tree>,
    /// The executor's process id; absent while none runs, or when it runs inside the daemon.
    pub executor_pid: Option<u32>,
    /// Live sessions on this machine.
    pub sessions: u32,
    /// Lines that the log of the daemon lacks, and that of its executor; absent = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_log: Option<LostLines>,
}

/// Says how a session's processes are found when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tree {
    /// A cgroup v2 for each session: nothing escapes.
    Cgroup,
    /// Process group, subreaper and an environment marker: docs/security.md says what can escape.
    Marker,
}

/// Lines that were not written to a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostLines {
    /// How many, since the process began.
    pub lines: u64,
    /// Why the last of them was not written.
    pub why: String,
}

/// Answers [`super::Request::Status`] and [`super::Request::Probe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The answering daemon.
    pub daemon: DaemonStatus,
    /// All clusters of this home.
    pub clusters: Vec<ClusterStatus>,
}

/// This machine's part in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It holds the cluster key, and is also a machine.
    Manager,
    /// A machine.
    Machine,
}

/// Says whether a cluster works on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterState {
    /// The cluster works.
    Ready,
    /// The cluster has no config yet, and waits for this.
    Waiting(String),
    /// The cluster does not work, for this reason.
    Broken(Failure),
}

/// Describes one cluster in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name here.
    pub alias: String,
    /// Its key; absent when that cannot be read.
    pub cluster: Option<ClusterId>,
    /// This machine's part.
    pub role: Role,
    /// This machine's name in the config.
    pub machine: Option<String>,
    /// This machine's key.
    pub machine_id: Option<MachineId>,
    /// Whether the cluster works here.
    pub state: ClusterState,
    /// The generation held.
    pub generation: Option<u64>,
    /// What an administrator must look at: a fork, a snapshot made elsewhere. Several are separated by `; `.
    pub alarm: Option<String>,
    /// Where this machine's key is bound and announced.
    pub addresses: Vec<String>,
    /// Where the join endpoint is bound; on managers only.
    pub join_addresses: Vec<String>,
    /// All machines of the config, in its order of names.
    pub machines: Vec<MachineStatus>,
    /// The relays that this machine knows; of iroh's public ones only the one in use.
    #[serde(default)]
    pub relays: Vec<RelayStatus>,
    /// Ways to find machines that failed lately, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discovery_failures: Vec<String>,
}

impl ClusterStatus {
    /// Says of a cluster only how it does; what else is known is put in.
    #[must_use]
    pub fn new(alias: String, state: ClusterState) -> Self {
        Self {
            alias,
            cluster: None,
            role: Role::Machine,
            machine: None,
            machine_id: None,
            state,
            generation: None,
            alarm: None,
            addresses: Vec::new(),
            join_addresses: Vec::new(),
            machines: Vec::new(),
            relays: Vec::new(),
            discovery_failures: Vec::new(),
        }
    }
}

/// Describes one relay in [`ClusterStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its URL.
    pub url: String,
    /// How it does.
    pub state: RelayState,
    /// Why it cannot be used; in part the relay's own words.
    pub error: Option<String>,
}

/// Says how a relay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayState {
    /// There is a connection: this machine is found there.
    Connected,
    /// None of them has answered yet, or this one is being connected.
    Connecting,
    /// Another one is in use.
    Spare,
    /// It cannot be used.
    Failed,
}

/// Describes one machine in [`ClusterStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Its key.
    pub id: MachineId,
    /// It is this machine.
    pub this: bool,
    /// It is the cluster manager.
    pub manager: bool,
    /// A live connection to it, proven by traffic; absent = none, and then it is not known to be online.
    pub connection: Option<Connection>,
    /// The generation that it last told.
    pub generation: Option<u64>,
    /// When something last came from it over a connection, milliseconds since the epoch.
    pub last_seen_ms: Option<u64>,
    /// Whether it was asked, for this answer, if it is there.
    #[serde(default)]
    pub probed: bool,
    /// The malai version that it last told, its own words.
    #[serde(default)]
    pub malai: Option<String>,
}

/// Describes a live connection to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// When it began, milliseconds since the epoch.
    pub since_ms: u64,
    /// The path in use: `direct IP:PORT` or `relay URL`.
    pub path: String,
    /// Round-trip time of that path, in microseconds.
    pub rtt_us: u64,
    /// The source of that path's address, as [`crate::session::Reached::found_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
    /// Bytes sent over it, with all that QUIC adds.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes received over it, with all that QUIC adds.
    #[serde(default)]
    pub received_bytes: u64,
}
