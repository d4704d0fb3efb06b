//! `malai machine init`.

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::local::{MachineInit, MachineMade, Request};

use crate::commands::Context;

/// Make this machine's key for a cluster, to join without an invite
///
/// Prints on standard output the lines that the cluster's config needs. The daemon then knocks at the manager.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The cluster's id52
    #[arg(value_name = "CLUSTER-ID52")]
    cluster: String,
    /// The cluster's name on this machine
    alias: String,
    /// Never contact any public service
    #[arg(long)]
    private: bool,
    /// A relay to reach the manager through. May be repeated
    #[arg(long = "relay", value_name = "URL")]
    relays: Vec<String>,
    /// The manager's address for newcomers, as `malai status` prints it there. May be repeated
    #[arg(long, value_name = "IP:PORT")]
    at: Vec<String>,
}

impl Init {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, alias, private, relays, at } = self;
        let cluster: ClusterId = cluster.parse().map_err(|e| {
            Failure::new(Kind::Usage, format!("`{cluster}` is not the id52 of a cluster: {e}"))
                .hint("see it on the manager: malai cluster list")
        })?;
        let request = Request::MachineInit(MachineInit { cluster, alias, private, relays, at });
        let made = ask!(cx, Disk, request => Machine);
        let MachineMade { alias, machine_id, name, toml } = &made;
        cx.out.note(&format!("this machine's id52 in {alias}: {machine_id}"));
        if cx.out.json {
            cx.out.document(&made)?;
        } else {
            cx.out.data(&format!("{}\n", toml.trim_end()))?;
        }
        cx.out.hint(&format!(
            "start the daemon here: malai daemon; on the manager: malai cluster approve {alias} {machine_id} --name {name}, \
             or add the lines above to cluster.toml, then: malai rescan {alias}"
        ));
        Ok(0)
    }
}
