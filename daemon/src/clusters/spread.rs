//! After a snapshot was signed: who holds it, within a bounded time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use malai_protocol::local::Publication;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;

/// Bounds how long `rescan` waits for the machines.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits up to 5 s for the other machines to hold what is held here, dialling those that are not connected, and lists
/// by name who does and who was not reached. In an agent nothing is published.
pub(crate) async fn spread(membership: &Arc<Membership>) -> Publication {
    let held = membership.held();
    let generation = held.generation();
    let mut missing: BTreeMap<String, MachineId> = BTreeMap::new();
    let mut holding = Vec::new();
    for (name, machine) in &held.config.machines {
        if machine.id == membership.me {
            holding.push(name.to_string());
        } else {
            missing.insert(name.to_string(), machine.id);
        }
    }
    let published = !membership.host.agent;
    if published {
        wait(membership, generation, &mut missing, &mut holding).await;
    }
    holding.sort();
    Publication { generation, published, holding, missing: missing.into_keys().collect() }
}

async fn wait(
    membership: &Arc<Membership>,
    generation: u64,
    missing: &mut BTreeMap<String, MachineId>,
    holding: &mut Vec<String>,
) {
    let deadline = Instant::now() + SPREAD_TIMEOUT;
    let mut changes = membership.peers.pool.watch();
    let mut dials = JoinSet::new();
    for id in missing.values().copied().filter(|id| membership.peers.pool.live(*id).is_none()) {
        let membership = Arc::clone(membership);
        dials.spawn(async move { dial::connect(&membership, id, deadline).await.is_ok() });
    }
    loop {
        missing.retain(|name, id| {
            let has = membership.peers.pool.seen(*id).generation.is_some_and(|held| held >= generation);
            if has {
                holding.push(name.clone());
            }
            !has
        });
        if missing.is_empty() {
            return;
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
