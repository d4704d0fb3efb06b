//! How a machine comes into a cluster: questions to its own daemon, and their answers.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{ClusterId, MachineId};

/// Carries what `malai machine init` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInit {
    /// The cluster's key.
    pub cluster: ClusterId,
    /// The alias.
    pub alias: String,
    /// No public service is ever contacted.
    pub private: bool,
    /// Relays to be used.
    pub relays: Vec<String>,
    /// Addresses of the manager's join endpoint.
    pub at: Vec<String>,
}

/// Answers [`Request::MachineInit`](super::Request::MachineInit).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineMade {
    /// The cluster's alias.
    pub alias: String,
    /// This machine's key.
    pub machine_id: MachineId,
    /// Its name, from the host name.
    pub name: String,
    /// The lines that the manager's config needs.
    pub toml: String,
}

/// Answers [`Request::MachineJoin`](super::Request::MachineJoin).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The cluster's alias here.
    pub alias: String,
    /// Its key.
    pub cluster: ClusterId,
    /// This machine's name in it.
    pub machine: String,
    /// This machine's key.
    pub machine_id: MachineId,
    /// The generation received.
    pub generation: u64,
    /// Why no command runs on this machine yet: its `username` and its daemon's account do not go together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Failure>,
}
