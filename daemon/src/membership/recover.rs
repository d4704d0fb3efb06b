//! Getting back into the network, while a session needs it.
//!
//! Two things that a connection's own heartbeat cannot do. A target whose caller is lost dials that caller: when it was the
//! target's address that changed, only the target knows. And an endpoint whose relay is gone is rebuilt: iroh's link to a
//! relay comes back after a pause of up to 16 s, which only a new endpoint does not make (docs/decisions/0008). The new one
//! is bound within a tenth of a second, so that a network that comes back meanwhile is not missed. While other peers are
//! heard, or no session needs anything, connections are worth more than an attempt: then the relay has to be back first.

mod back;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::MachineId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep};

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
/// A caller's CLI tries every second: it is here within so long after its daemon has a connection.
const EXPECTED: Duration = Duration::from_secs(2);
/// With so many connections that no session uses, an endpoint is rebuilt for a relay alone: it may be how callers come.
const FEW: usize = 2;

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
        let is_wanted = tokio::select! {
            biased;
            () = wanted(membership) => true,
            () = back::missed(membership) => false,
        };
        if is_wanted {
            ticks.tick().await;
            if !is_wanted_now(membership) {
                continue;
            }
            redial(membership, &mut redials);
        }
        let is_back = relay.is_back(membership, is_wanted);
        if !is_wanted {
            if is_back && begun.elapsed() >= PATIENCE && costs_little(membership) {
                return rebuild(membership, "the relay is back");
            }
            continue;
        }
        let now = membership.pool.packets();
        if now != packets {
            (packets, heard) = (now, Instant::now());
        }
        let (silence, age) = if back::is_up(membership) { (DOUBT, NEW) } else { (SILENCE, PATIENCE) };
        if has_relays(membership) && begun.elapsed() >= age {
            if is_back {
                return rebuild(membership, "the relay is back");
            }
            if heard.elapsed() >= silence {
                return rebuild(membership, "no peer is heard");
            }
        }
    }
}

fn rebuild(membership: &Membership, why: &str) {
    tracing::info!(cluster = %membership.alias, "{why}: the endpoint is rebuilt");
    membership.rebuild();
}

fn has_relays(membership: &Membership) -> bool {
    membership.held().config.network.relays.as_ref().is_none_or(|relays| !relays.is_empty())
}

/// Whether nothing is lost with the connections that there are but the time to make them again.
fn costs_little(membership: &Membership) -> bool {
    let conns = membership.pool.all();
    conns.len() <= FEW && conns.iter().all(|conn| conn.sessions() == 0)
}

/// Waits until a session needs the network and does not have it.
async fn wanted(membership: &Membership) {
    let (mut pool, mut live) = (membership.pool.watch(), membership.live.watch());
    while !is_wanted_now(membership) {
        let is_expected = !unfollowed(membership).is_empty();
        let changed = tokio::select! {
            changed = pool.changed() => changed,
            changed = live.changed() => changed,
            () = sleep(LOOK), if is_expected => Ok(()),
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn is_wanted_now(membership: &Membership) -> bool {
    membership.pool.wants_recovery() || !lost_callers(membership).is_empty()
}

/// The other machines whose sessions here nobody follows.
fn unfollowed(membership: &Membership) -> BTreeSet<MachineId> {
    let mut callers = membership.live.unfollowed();
    callers.remove(&membership.me);
    callers
}

/// Those of them that do not have a connection so new that its sessions are still expected.
fn lost_callers(membership: &Membership) -> BTreeSet<MachineId> {
    let mut callers = unfollowed(membership);
    callers.retain(|caller| !membership.pool.is_just_back(*caller, EXPECTED));
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
