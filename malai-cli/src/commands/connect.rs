//! `malai connect`.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::local::{self, Request, Response};
use malai_protocol::session::Reached;
use malai_protocol::target::Target;
use serde::Serialize;

use super::Context;
use crate::client::{self, Otherwise};
use crate::duration;

/// Connect to a machine, and show which way it was found
///
/// As a command would, or with --at by one address only: then a new connection is made that knows no other way, the
/// machine proves its key and answers over it, and it is closed. Any machine of the cluster may be asked; no grant is needed.
/// While a relay is tried that this machine uses, what else goes through it waits.
#[derive(Debug, clap::Args)]
pub(crate) struct Connect {
    /// Try this address and no other: IP:PORT, or the URL of a relay
    #[arg(long, value_name = "ADDR")]
    at: Option<String>,
    /// How long to wait until the machine answers
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    connect_timeout: Duration,
    /// The machine: web01.company
    target: String,
}

/// `malai connect --json`.
#[derive(Serialize)]
struct Connected<'a> {
    target: String,
    #[serde(flatten)]
    reached: &'a Reached,
}

impl Connect {
    /// Has the daemon connect, and tells how.
    ///
    /// # Errors
    /// Why the machine was not reached.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        // Whom a command would run as is nothing to a connection.
        let target = Target { user: None, ..self.target.parse()? };
        let request = Request::Connect(local::Connect {
            machine: target.machine.clone(),
            cluster: target.cluster.clone(),
            at: self.at,
            connect_timeout_ms: duration::millis(self.connect_timeout),
        });
        let Response::Connected(reached) = client::request(&cx.home, request, Otherwise::Agent, cx.out)? else {
            return Err(client::unexpected());
        };
        let target = target.to_string();
        if cx.out.json {
            cx.out.document(&Connected { target, reached: &reached })?;
        } else {
            cx.out.row(&format!("{target}: {}", reached.words()))?;
        }
        Ok(0)
    }
}
