//! `malai cluster list`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterState, ClusterStatus, Request, Response, Role};

use crate::client::{self, Otherwise};
use crate::commands::Context;
use crate::output;

/// List the clusters of this home, and this machine's part in each
#[derive(Debug, clap::Args)]
pub(super) struct List;

impl List {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let answer = client::request(&cx.home, Request::ClusterList, Otherwise::Disk, cx.out)?;
        let Response::Clusters(clusters) = answer else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            let objects: Vec<_> = clusters.iter().map(object).collect();
            cx.out.document(&objects)?;
            return Ok(0);
        }
        if clusters.is_empty() {
            cx.out.note("no cluster was made or joined here");
            cx.out.hint("make one: malai cluster init company; or join one: malai machine join TOKEN");
            return Ok(0);
        }
        let mut rows = vec![["CLUSTER", "ROLE", "MACHINE", "GENERATION", "STATE", "ID52"].map(String::from).to_vec()];
        rows.extend(clusters.iter().map(row));
        output::table(&rows).iter().try_for_each(|line| cx.out.row(line))?;
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

fn row(cluster: &ClusterStatus) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let role = match cluster.role {
        Role::Manager => "manager",
        Role::Machine => "machine",
    };
    let state = match &cluster.state {
        ClusterState::Ready => "ready",
        ClusterState::Waiting(_) => "waiting",
        ClusterState::Broken(_) => "broken",
    };
    vec![
        cluster.alias.clone(),
        role.into(),
        or_dash(cluster.machine.clone()),
        or_dash(cluster.generation.map(|generation| generation.to_string())),
        state.into(),
        or_dash(cluster.cluster.map(|id| id.to_string())),
    ]
}
