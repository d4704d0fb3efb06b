//! Getting back into the network, while a session needs it.
//!
//! Two things that a connection's own heartbeat cannot do. A target whose caller is lost dials that caller: when it was the
//! target's address that changed, only the target knows. And an endpoint whose relay is gone is rebuilt: iroh's link to a
//! relay comes back after a pause of up to 16 s, which only a new endpoint does not make (docs/decisions/0008). The new one
//! is bound within a tenth of a second, so that a network that comes back meanwhile is not missed. While other peers are
//! heard, their connections are worth more than an attempt: then the relay has to be back first.

mod back;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iroh::Watcher;
use iroh::endpoint::RelayStatus;
use malai_protocol::id::MachineId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Membership, dial};
use back::Back;

/// How long one attempt to find a caller may take.
const REDIAL: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// An endpoint is rebuilt when its relay is down and nothing was heard of any peer for so long.
const SILENCE: Duration = Duration::from_secs(3);
/// And not before it had so long a time to find its relay.
const PATIENCE: Duration = Duration::from_secs(4);
/// A link to a relay that was cut looks as if it were there, for a while: when nothing is heard for so long, an endpoint is
/// rebuilt all the same.
const DOUBT: Duration = Duration::from_secs(8);
/// Unless it is as new as this: its link to the relay is new, too, and so is there.
const NEW: Duration = Duration::from_secs(30);

/// Recovers until the membership ends.
pub(crate) async fn run(membership: Arc<Membership>) {
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = watch(&membership) => {}
    }
}

async fn watch(membership: &Arc<Membership>) {
    let begun = Instant::now();
    let (mut packets, mut heard) = (membership.pool.packets(), begun);
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut redials, mut relay) = (JoinSet::new(), Back::default());
    loop {
        wanted(membership).await;
        ticks.tick().await;
        redial(membership, &mut redials);
        let now = membership.pool.packets();
        if now != packets {
            (packets, heard) = (now, Instant::now());
        }
        let is_up = relay_is_up(membership);
        let is_back = relay.is_back(membership, is_up);
        let (silence, age) = if is_up { (DOUBT, NEW) } else { (SILENCE, PATIENCE) };
        let has_relays = membership.held().config.network.relays.as_ref().is_none_or(|relays| !relays.is_empty());
        if has_relays && (is_back || heard.elapsed() >= silence) && begun.elapsed() >= age {
            let why = if is_back { "the relay is back" } else { "no peer is heard" };
            tracing::info!(cluster = %membership.alias, "{why}: the endpoint is rebuilt");
            return membership.rebuild();
        }
    }
}

/// Waits until a session needs the network and does not have it.
async fn wanted(membership: &Membership) {
    let (mut pool, mut live) = (membership.pool.watch(), membership.live.watch());
    while !membership.pool.wants_recovery() && lost_callers(membership).is_empty() {
        let changed = tokio::select! {
            changed = pool.changed() => changed,
            changed = live.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The other machines whose sessions here nobody follows.
fn lost_callers(membership: &Membership) -> BTreeSet<MachineId> {
    let mut callers = membership.live.unfollowed();
    callers.remove(&membership.me);
    callers
}

/// Dials the callers of sessions here that nobody follows, each once at a time.
fn redial(membership: &Arc<Membership>, redials: &mut JoinSet<()>) {
    while redials.try_join_next().is_some() {}
    if !redials.is_empty() {
        return;
    }
    for caller in lost_callers(membership) {
        if membership.pool.live(caller).is_some() {
            continue;
        }
        let membership = Arc::clone(membership);
        redials.spawn(async move {
            if let Err(failure) = dial::connect(&membership, caller, Instant::now() + REDIAL).await {
                tracing::debug!(peer = %caller.short(), "a caller that was lost is not found: {failure}");
            }
        });
    }
}

fn relay_is_up(membership: &Membership) -> bool {
    membership.endpoint.home_relay_status().get().iter().any(RelayStatus::is_connected)
}
