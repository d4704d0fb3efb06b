//! `malai cluster init`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterInit, ClusterMade, Request};

use crate::commands::Context;

/// Make a cluster; this machine becomes its manager and first machine
///
/// Prints the cluster's id52 on standard output.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The cluster's name, and its alias here
    cluster: String,
    /// This machine's name; default: from its host name
    #[arg(long)]
    name: Option<String>,
    /// Never contact any public service: no relays, and only mDNS to find machines
    #[arg(long)]
    private: bool,
    /// The user that commands run as on this machine; default: your own account (for root, the config then names root)
    #[arg(long, value_name = "USER")]
    username: Option<String>,
}

impl Init {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, name, private, username } = self;
        // The manager's machine is this one: root asks, so its daemon is root's.
        let is_own = username.is_none() && nix::unistd::geteuid().is_root();
        let username = if is_own { Some("root".to_owned()) } else { username };
        let request = Request::ClusterInit(ClusterInit { cluster, name, private, username });
        let made = ask!(cx, Disk, request => Made);
        let ClusterMade { alias, cluster, machine, machine_id, config, join_addresses } = &made;
        if cx.out.json {
            cx.out.document(&made)?;
        } else {
            cx.out.row(&cluster.to_string())?;
        }
        cx.out.note(&format!("cluster {alias} made; this machine is {machine}.{alias}, id52 {machine_id}"));
        cx.out.note(&format!("its config: {config}"));
        if is_own {
            let section = format!("[machine.{machine}]");
            cx.out.note(&format!(
                "commands on this machine run as root: `username` under {section}, or --username, names another"
            ));
        }
        if join_addresses.is_empty() {
            cx.out.hint(&format!("start the daemon: malai daemon; then: malai cluster invite {alias} --name web01"));
        } else {
            cx.out.note(&format!("newcomers reach it at {}", join_addresses.join(", ")));
            cx.out.hint(&format!("let a machine in: malai cluster invite {alias} --name web01"));
        }
        Ok(0)
    }
}
