//! `malai cluster list`: lists the clusters of a home, from the disk alone.

use malai_protocol::config::Config;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::local::{ClusterState, ClusterStatus};
use malai_protocol::snapshot::Snapshot;

use crate::store::clusters::{self, Cluster};

/// Lists the clusters of this home and this machine's part in each. A broken one is listed as broken.
///
/// # Errors
/// What the disk says about the directory of clusters itself.
pub(super) fn cluster_list(home: &Home) -> Result<Vec<ClusterStatus>, Failure> {
    let found = clusters::list(home)?;
    Ok(found.into_iter().map(|found| one(home, found.alias)).collect())
}

fn one(home: &Home, alias: String) -> ClusterStatus {
    match clusters::load(home, &alias) {
        Ok(cluster) => whole(alias, &cluster),
        Err(failure) => ClusterStatus::new(alias, ClusterState::Broken(failure)),
    }
}

fn whole(alias: String, cluster: &Cluster) -> ClusterStatus {
    let me = cluster.machine_key.id();
    let held = cluster.snapshot.as_ref();
    let state = match held {
        Some(_) => ClusterState::Ready,
        None => ClusterState::Waiting("the daemon knocks at the cluster manager; approve it there".to_owned()),
    };
    let config = held.and_then(|held| Config::read(held.text()).ok());
    ClusterStatus {
        cluster: Some(cluster.id),
        role: cluster.role(),
        machine: config.as_ref().and_then(|c| c.machine_by_id(&me)).map(|(name, _)| name.to_string()),
        machine_id: Some(me),
        generation: held.map(Snapshot::header).map(|header| header.generation),
        ..ClusterStatus::new(alias, state)
    }
}
