//! What a daemon has counted since it started.

use serde::{Deserialize, Serialize};

/// Answers [`super::Request::Metrics`]. Totals count from the start of the daemon and never go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The daemon's malai version.
    pub version: String,
    /// Faults of malai itself: tasks and threads of the daemon that panicked.
    #[serde(default)]
    pub panics: u64,
    /// The same of its executor.
    #[serde(default)]
    pub executor_panics: u64,
    /// Lines that the log of the daemon lacks, and that of its executor.
    #[serde(default)]
    pub lost_log_lines: u64,
    /// All clusters of this home that have a config.
    pub clusters: Vec<ClusterMetrics>,
}

/// Describes one cluster in [`Metrics`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMetrics {
    /// Its name here.
    pub alias: String,
    /// The generation held.
    #[serde(default)]
    pub generation: u64,
    /// Whether there is a live connection to the cluster manager; absent on the manager itself.
    #[serde(default)]
    pub link_up: Option<bool>,
    /// Connections to other machines that are there now.
    #[serde(default)]
    pub connections: u64,
    /// Connections that this machine dialled.
    #[serde(default)]
    pub dialed: u64,
    /// Connections that other machines dialled.
    #[serde(default)]
    pub accepted: u64,
    /// Handshakes that came to their end, in both directions.
    #[serde(default)]
    pub handshakes_ok: u64,
    /// Handshakes that did not.
    #[serde(default)]
    pub handshakes_failed: u64,
    /// Connections to a machine to which all earlier ones were lost.
    #[serde(default)]
    pub reconnects: u64,
    /// Connections of keys that are no members.
    #[serde(default)]
    pub connections_refused: u64,
    /// Commands that this machine's config did not allow, or that it could not take.
    #[serde(default)]
    pub sessions_refused: u64,
    /// Sessions that commands here follow now.
    #[serde(default)]
    pub called_now: u64,
    /// Commands that were sent from here to their machines, this one too.
    #[serde(default)]
    pub called: u64,
    /// Sessions on this machine now.
    #[serde(default)]
    pub served_now: u64,
    /// Commands that were handed to this machine's executor.
    #[serde(default)]
    pub served: u64,
    /// Bytes sent over connections, with all that QUIC adds.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes received over connections, with all that QUIC adds.
    #[serde(default)]
    pub received_bytes: u64,
}
