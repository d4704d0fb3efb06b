//! `malai cluster pending`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;
use crate::{output, timestamp};

/// List the machines that knock and wait to be approved
#[derive(Debug, clap::Args)]
pub(super) struct Pending {
    /// The cluster's alias
    cluster: String,
}

impl Pending {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = Request::ClusterPending { cluster: self.cluster.clone() };
        let Response::Pending(list) = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&list)?;
            return Ok(0);
        }
        if list.is_empty() {
            cx.out.note(&format!("nobody knocks at {}", self.cluster));
            return Ok(0);
        }
        let now = timestamp::now_ms();
        let mut rows = vec![["ID52", "CALLS ITSELF", "FROM", "LAST KNOCK", "FIRST"].map(String::from).to_vec()];
        rows.extend(list.iter().map(|one| {
            let ago = |ms| format!("{} ago", timestamp::ago(ms, now));
            vec![one.id.to_string(), one.hostname.clone(), one.from.clone(), ago(one.last_ms), ago(one.since_ms)]
        }));
        output::table(&rows).iter().try_for_each(|line| cx.out.row(line))?;
        cx.out.hint(&format!(
            "compare the id52 with the one shown there, then: malai cluster approve {} ID52 --name NAME",
            self.cluster
        ));
        Ok(0)
    }
}
