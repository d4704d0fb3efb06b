//! The link: the connection that a machine keeps to its cluster manager.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Membership, dial};

/// One attempt, in which the dialling itself repeats.
const ATTEMPT: Duration = Duration::from_secs(15);
/// The longest pause between attempts: a manager that comes back is found within it, at the latest.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Keeps the link until the membership ends. On the cluster manager there is nothing to keep.
pub(crate) async fn run(membership: Arc<Membership>) {
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = keep(&membership) => {}
    }
}

async fn keep(membership: &Arc<Membership>) {
    let mut snapshots = membership.watch();
    let mut pause = Duration::from_millis(500);
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
                pause = Duration::from_millis(500);
                let why = conn.conn.closed().await;
                tracing::info!(cluster = %membership.alias, "link to the cluster manager lost: {why}");
                // A connection that was replaced by another leaves the link in place.
                if membership.pool.live(manager).is_some() {
                    continue;
                }
            }
            Err(failure) => tracing::info!(cluster = %membership.alias, "no link: {failure}"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = snapshots.changed() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
