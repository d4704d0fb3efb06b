//! `malai machine leave`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;

/// Leave a cluster: forget its config and this machine's key
#[derive(Debug, clap::Args)]
pub(super) struct Leave {
    /// The cluster's alias
    cluster: String,
    /// Leave even if this machine is the manager: its cluster key is then lost for ever
    #[arg(long)]
    force: bool,
}

impl Leave {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = Request::MachineLeave { cluster: self.cluster.clone(), force: self.force };
        let Response::Done = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&serde_json::json!({ "left": self.cluster }))?;
        }
        cx.out.note(&format!("left {}", self.cluster));
        cx.out.hint(&format!(
            "its config still names this machine; on the manager: malai cluster remove {} NAME",
            self.cluster
        ));
        Ok(0)
    }
}
