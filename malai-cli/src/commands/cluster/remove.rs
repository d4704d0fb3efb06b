//! `malai cluster remove`.

use malai_protocol::failure::Failure;
use malai_protocol::local::Request;

use crate::commands::Context;

/// Take a machine out of a cluster
///
/// From then on it can run nothing, and nothing is run on it.
#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// The cluster's alias
    cluster: String,
    /// The machine's name
    machine: String,
}

impl Remove {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, machine } = self;
        super::change(cx, &cluster.clone(), Request::ClusterRemove { cluster, machine }, "removed")
    }
}
