//! `malai ping`: the question, and the answer to each ping.

use serde::{Deserialize, Serialize};

/// Bounds how soon the next ping follows, in milliseconds: a person sees no more, and a peer has better things to do.
pub const MIN_PING_INTERVAL_MS: u64 = 100;
/// Stands for the path to the machine that asks.
pub const THIS_MACHINE: &str = "this machine";

/// Carries what `malai ping` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The machine's name.
    pub machine: String,
    /// The cluster's alias; absent = the only cluster that has such a machine.
    #[serde(default)]
    pub cluster: Option<String>,
    /// How long dialling may take before the first ping, in milliseconds.
    pub connect_timeout_ms: u64,
    /// The time between two pings, in milliseconds; at least [`MIN_PING_INTERVAL_MS`].
    pub interval_ms: u64,
    /// How many pings; absent = until the asker leaves.
    #[serde(default)]
    pub count: Option<u64>,
}

/// Says what came of one ping. Answers come as they are known: one overtakes an earlier ping that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingAnswer {
    /// Counts the pings, from 1 on.
    pub seq: u64,
    /// Whether it was answered.
    pub outcome: PingOutcome,
}

/// Says whether a ping was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PingOutcome {
    /// The machine answered.
    Answered {
        /// The time from the ping to its answer, in microseconds.
        rtt_us: u64,
        /// The path in use when the answer came: `direct IP:PORT`, `relay URL`, or [`THIS_MACHINE`].
        path: String,
    },
    /// No answer came, or there was no connection.
    Lost {
        /// How long it was waited for, in milliseconds.
        after_ms: u64,
    },
}

impl PingOutcome {
    /// Tells whether it was answered without a relay between.
    pub fn is_direct(&self) -> bool {
        match self {
            Self::Answered { path, .. } => path.starts_with("direct ") || path == THIS_MACHINE,
            Self::Lost { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_without_a_relay_is_direct() {
        let answered = |path: &str| PingOutcome::Answered { rtt_us: 1, path: path.into() };
        for path in ["direct 192.0.2.7:4001", THIS_MACHINE] {
            assert!(answered(path).is_direct(), "{path}");
        }
        for path in ["relay https://direct.example/", "unknown", ""] {
            assert!(!answered(path).is_direct(), "{path}");
        }
        assert!(!PingOutcome::Lost { after_ms: 1000 }.is_direct());
    }
}
