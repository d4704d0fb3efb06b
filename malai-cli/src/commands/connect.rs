//! `malai connect`.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::local::{self, Request};
use malai_protocol::session::Reached;
use malai_protocol::target::Target;
use serde::Serialize;

use super::Context;
use crate::duration;

/// Connect to a machine, and show how it was found
///
/// Connects as a command would. With --at it makes a new connection to that one address, has the machine prove its key and
/// answer, and closes it. Works for every machine of the cluster, without a grant. While --at tries a relay that this machine
/// uses, other traffic through that relay waits.
#[derive(Debug, clap::Args)]
pub(crate) struct Connect {
    /// Try this address and no other: IP:PORT, or the URL of a relay
    #[arg(long, value_name = "ADDR")]
    at: Option<String>,
    /// How long to wait for the machine's answer
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    connect_timeout: Duration,
    /// The machine: web01.company
    target: String,
}

/// Is the answer of `malai connect --json`.
#[derive(Serialize)]
struct Connected<'a> {
    target: String,
    #[serde(flatten)]
    reached: &'a Reached,
}

impl Connect {
    /// Has the daemon connect, and shows how it did.
    ///
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        // A connection runs no command, so the user does not matter.
        let target = Target { user: None, ..self.target.parse()? };
        let request = Request::Connect(local::Connect {
            machine: target.machine.clone(),
            cluster: target.cluster.clone(),
            at: self.at,
            connect_timeout_ms: duration::millis(self.connect_timeout),
        });
        let reached = ask!(cx, Agent, request => Connected);
        let target = target.to_string();
        if cx.out.json {
            cx.out.document(&Connected { target, reached: &reached })?;
        } else {
            cx.out.row(&format!("{target}: {}", reached.words()))?;
        }
        Ok(0)
    }
}
