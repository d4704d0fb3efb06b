//! `malai cluster list`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterState, ClusterStatus, Request, Role};

use crate::commands::{Context, NO_CLUSTER, NO_CLUSTER_HINT};
use crate::output;

/// List the clusters of this home, and this machine's part in each
#[derive(Debug, clap::Args)]
pub(super) struct List;

impl List {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let clusters = ask!(cx, Disk, Request::ClusterList => Clusters);
        if cx.out.json {
            let objects: Vec<_> = clusters.iter().map(object).collect();
            cx.out.document(&objects)?;
            return Ok(0);
        }
        if clusters.is_empty() {
            cx.out.note(NO_CLUSTER);
            cx.out.hint(NO_CLUSTER_HINT);
            return Ok(0);
        }
        let heads = ["CLUSTER", "ROLE", "MACHINE", "GENERATION", "STATE", "ID52"];
        cx.out.rows(output::table(heads, clusters.iter().map(row)))?;
        Ok(0)
    }
}

fn object(cluster: &ClusterStatus) -> serde_json::Value {
    let ClusterStatus { alias, cluster, role, machine, machine_id, state, generation, .. } = cluster;
    serde_json::json!({
        "alias": alias, "cluster": cluster, "role": role, "machine": machine, "machine_id": machine_id,
        "state": state, "generation": generation,
    })
}

fn row(cluster: &ClusterStatus) -> [String; 6] {
    let role = match cluster.role {
        Role::Manager => "manager",
        Role::Machine => "machine",
    };
    let state = match &cluster.state {
        ClusterState::Ready => "ready",
        ClusterState::Waiting(_) => "waiting",
        ClusterState::Broken(_) => "broken",
    };
    [
        cluster.alias.clone(),
        role.into(),
        output::or_dash(cluster.machine.as_ref()),
        output::or_dash(cluster.generation),
        state.into(),
        output::or_dash(cluster.cluster.as_ref()),
    ]
}
