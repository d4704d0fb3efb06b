//! `malai cluster pending`.

use malai_protocol::failure::Failure;
use malai_protocol::local::Request;

use crate::commands::Context;
use crate::{output, timestamp};

/// List the machines that knock and wait to be approved
#[derive(Debug, clap::Args)]
pub(super) struct Pending {
    /// The cluster's alias
    cluster: String,
}

impl Pending {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = Request::ClusterPending { cluster: self.cluster.clone() };
        let list = ask!(cx, Disk, request => Pending);
        if cx.out.json {
            cx.out.document(&list)?;
            return Ok(0);
        }
        if list.is_empty() {
            cx.out.note(&format!("no machine knocks at {}", self.cluster));
            return Ok(0);
        }
        let now = timestamp::now_ms();
        let ago = |ms| format!("{} ago", timestamp::ago(ms, now));
        let rows = list.iter().map(|one| {
            [one.id.to_string(), one.hostname.clone(), one.from.clone(), ago(one.last_ms), ago(one.since_ms)]
        });
        cx.out.rows(output::table(["ID52", "CALLS ITSELF", "FROM", "LAST KNOCK", "FIRST"], rows))?;
        cx.out.hint(&format!(
            "compare the id52 with the one shown there, then: malai cluster approve {} ID52 --name NAME",
            self.cluster
        ));
        Ok(0)
    }
}
