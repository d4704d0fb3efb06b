//! `malai connect`: the question. [`crate::session::Reached`] is the answer.

use serde::{Deserialize, Serialize};

/// Carries what `malai connect` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The machine's name.
    pub machine: String,
    /// The cluster's alias; absent = the only cluster that has such a machine.
    #[serde(default)]
    pub cluster: Option<String>,
    /// The only way to try, `IP:PORT` or the URL of a relay; absent = every way, as a command does.
    #[serde(default)]
    pub at: Option<String>,
    /// How long it may take, in milliseconds.
    pub connect_timeout_ms: u64,
}
