//! `malai cluster approve`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterApprove, Request};

use crate::commands::Context;

/// Let in a machine that knocks
#[derive(Debug, clap::Args)]
pub(super) struct Approve {
    /// The cluster's alias
    cluster: String,
    /// Its id52, or at least its first 12 characters if only one knocking machine has them
    id: String,
    /// Its name; default: its host name
    #[arg(long)]
    name: Option<String>,
    /// A group that it becomes a member of. May be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The user that commands run as there; default: `username` of `[defaults]`, else its daemon's account, but never root
    #[arg(long, value_name = "USER")]
    username: Option<String>,
}

impl Approve {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, id, name, groups, username } = self;
        let request = Request::ClusterApprove(ClusterApprove { cluster: cluster.clone(), id, name, groups, username });
        super::change(cx, &cluster, request, "approved").map(|_| 0)
    }
}
