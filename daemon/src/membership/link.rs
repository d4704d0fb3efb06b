//! The link: the connection that a machine keeps to its cluster manager.
//!
//! While the manager is away, a machine keeps connections to a few others instead, so that a snapshot which one of them
//! has reaches all.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use tokio::time::Instant;

use super::{Membership, dial};

/// One attempt, in which the dialling itself repeats.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The first pause between attempts; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between attempts: a manager that comes back is found within it, at the latest.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// As many other machines are kept connected while the manager is away.
const SUBSTITUTES: usize = 3;

/// Keeps the link until the membership ends. On the cluster manager there is nothing to keep.
pub(crate) async fn run(membership: Arc<Membership>) {
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = keep(&membership) => {}
    }
}

async fn keep(membership: &Arc<Membership>) {
    let mut snapshots = membership.watch();
    let mut pause = FIRST_PAUSE;
    let mut turn = 0;
    loop {
        let Some(manager) = membership.manager_id() else {
            if snapshots.changed().await.is_err() {
                return;
            }
            continue;
        };
        match dial::connect(membership, manager, Instant::now() + ATTEMPT).await {
            Ok(conn) => {
                tracing::info!(cluster = %membership.alias, "linked to the cluster manager");
                pause = FIRST_PAUSE;
                let why = conn.conn.closed().await;
                tracing::info!(cluster = %membership.alias, "link to the cluster manager lost: {why}");
                // A connection that was replaced by another leaves the link in place.
                if membership.pool.live(manager).is_some() {
                    continue;
                }
            }
            Err(failure) => {
                tracing::info!(cluster = %membership.alias, "no link: {failure}");
                substitute(membership, manager, &mut turn).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = snapshots.changed() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Dials the next of the other machines, unless enough of them are connected.
async fn substitute(membership: &Arc<Membership>, manager: MachineId, turn: &mut usize) {
    let held = membership.held();
    let ids = held.config.machines.values().map(|machine| machine.id);
    let mut others: Vec<MachineId> = ids.filter(|id| *id != manager && *id != membership.me).collect();
    others.sort_unstable();
    let connected = others.iter().filter(|id| membership.pool.live(**id).is_some()).count();
    if others.is_empty() || connected >= SUBSTITUTES.min(others.len()) {
        return;
    }
    // Everybody begins behind itself in the order of keys, so that they do not all dial the same one.
    let start = others.partition_point(|id| *id < membership.me);
    let Some(next) = others.get((start + *turn) % others.len()) else { return };
    *turn = turn.wrapping_add(1);
    if let Err(failure) = dial::connect(membership, *next, Instant::now() + ATTEMPT).await {
        tracing::info!(cluster = %membership.alias, "no substitute for the link: {failure}");
    }
}
