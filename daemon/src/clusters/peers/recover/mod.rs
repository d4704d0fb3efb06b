//! Getting back into the network, while a session needs it.
//!
//! Two things that a connection's own heartbeat cannot do. A target whose caller is lost dials that caller: when it was the
//! target's address that changed, only the target knows. And an endpoint whose relay is gone is rebuilt: iroh's link to a
//! relay comes back after a pause of up to 16 s, which only a new endpoint does not make (docs/decisions/0008). The new one
//! is bound within a tenth of a second, so that a network that comes back meanwhile is not missed. While other peers are
//! heard, or no session needs anything, connections are worth more than an attempt: then the relay has to be back first.

mod back;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use malai_protocol::id::MachineId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep};

use crate::clusters::membership::Membership;
use crate::clusters::peers::Peers;
use crate::clusters::peers::dial;
use crate::runtime::backoff::Backoff;
use back::Back;

/// Bounds one attempt to find a caller.
const REDIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Sets the time between two looks at what is lost.
const RECOVERY_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Sets how long no peer has to be heard for an endpoint whose relay is down to be rebuilt.
const REBUILD_SILENCE: Duration = Duration::from_secs(3);
/// Sets the least age of such an endpoint: it must have had time to find its relay.
const REBUILD_MIN_AGE: Duration = Duration::from_secs(4);
/// Sets the same silence for an endpoint whose relay seems to be there: for a while a link that was cut looks as if it
/// were up.
const LINKED_REBUILD_SILENCE: Duration = Duration::from_secs(8);
/// Sets the least age of that one: while its link to the relay is new, the relay is there.
const LINKED_REBUILD_MIN_AGE: Duration = Duration::from_secs(30);
/// Sets how long sessions of a caller may take to come back after its daemon has a connection: its CLI tries every
/// second.
const CALLER_RETURN_TIME: Duration = Duration::from_secs(2);
/// Sets the first pause after a caller that was lost was not found.
const REDIAL_MIN_INTERVAL: Duration = RECOVERY_LOOK_INTERVAL;
/// Bounds that pause. The caller itself tries every second: this finds it where only this machine's address changed.
const REDIAL_MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Sets the first pause between rebuilding an endpoint that hears no peer, and the next time.
const REBUILD_MIN_INTERVAL: Duration = REBUILD_MIN_AGE;
/// Bounds that pause. A relay that is back is noticed without it.
const REBUILD_MAX_INTERVAL: Duration = Duration::from_secs(600);
/// Bounds the connections that may be lost when an endpoint is rebuilt for a relay alone, where no session uses them:
/// callers may come by that relay.
const MAX_SPARED_CONNECTIONS: usize = 2;

/// Recovers until the membership ends.
pub(crate) async fn run(membership: Arc<Membership>) {
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = watch(&membership) => {}
    }
}

async fn watch(membership: &Arc<Membership>) {
    let begun = Instant::now();
    let (mut packets, mut heard) = (membership.peers.pool.packets(), begun);
    let mut ticks = tokio::time::interval(RECOVERY_LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut redials, mut relay) = (Redials::default(), Back::default());
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
            redials.begin(membership);
        }
        let is_back = relay.is_back(membership, is_wanted);
        if !is_wanted {
            if is_back && begun.elapsed() >= REBUILD_MIN_AGE && costs_little(&membership.peers) {
                return rebuild(membership, "the relay is back");
            }
            continue;
        }
        let now = membership.peers.pool.packets();
        if now != packets {
            (packets, heard) = (now, Instant::now());
            rebuilds(membership).remove(&membership.alias);
        }
        let (silence, age) = if membership.peers.is_relay_up() {
            (LINKED_REBUILD_SILENCE, LINKED_REBUILD_MIN_AGE)
        } else {
            (REBUILD_SILENCE, REBUILD_MIN_AGE)
        };
        if membership.config.has_relays() && begun.elapsed() >= age {
            if is_back {
                return rebuild(membership, "the relay is back");
            }
            if heard.elapsed() >= silence && may_rebuild(membership) {
                return rebuild(membership, "no peer is heard");
            }
        }
    }
}

fn rebuild(membership: &Membership, why: &str) {
    tracing::info!(cluster = %membership.alias, "{why}: the endpoint is rebuilt");
    membership.rebuild();
}

/// Returns whether only the time to make connections again is lost with those that there are.
fn costs_little(peers: &Peers) -> bool {
    let conns = peers.pool.all();
    conns.len() <= MAX_SPARED_CONNECTIONS && conns.iter().all(|conn| conn.sessions() == 0)
}

/// Waits until a session needs the network and does not have it.
async fn wanted(membership: &Membership) {
    let (mut pool, mut live) = (membership.peers.pool.watch(), membership.live.watch());
    while !is_wanted_now(membership) {
        let is_expected = !unfollowed(membership).is_empty();
        let changed = tokio::select! {
            changed = pool.changed() => changed,
            changed = live.changed() => changed,
            () = sleep(RECOVERY_LOOK_INTERVAL), if is_expected => Ok(()),
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn is_wanted_now(membership: &Membership) -> bool {
    membership.peers.pool.wants_recovery() || !lost_callers(membership).is_empty()
}

/// Returns the other machines whose sessions on this machine no caller follows.
fn unfollowed(membership: &Membership) -> BTreeSet<MachineId> {
    let mut callers = membership.live.unfollowed();
    callers.remove(&membership.me);
    callers
}

/// Returns those of them whose connection is not so new that its sessions are still expected.
fn lost_callers(membership: &Membership) -> BTreeSet<MachineId> {
    let mut callers = unfollowed(membership);
    callers.retain(|caller| !membership.peers.pool.is_just_back(*caller, CALLER_RETURN_TIME));
    callers
}

/// Remembers how often endpoints that heard no peer were rebuilt, by the alias of their cluster: each attempt ends the
/// membership that made it.
pub(crate) type Rebuilds = Mutex<HashMap<String, Rebuilt>>;

/// Says when the endpoint of a cluster may be rebuilt again.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    backoff: Backoff,
    not_before: Instant,
}

fn rebuilds(membership: &Membership) -> MutexGuard<'_, HashMap<String, Rebuilt>> {
    membership.host.rebuilds.lock()
}

/// Returns whether it is time to rebuild an endpoint that hears no peer; counts it as done then.
fn may_rebuild(membership: &Membership) -> bool {
    let now = Instant::now();
    let first = || Rebuilt { backoff: Backoff::new(REBUILD_MIN_INTERVAL, REBUILD_MAX_INTERVAL), not_before: now };
    let mut rebuilds = rebuilds(membership);
    let rebuilt = rebuilds.entry(membership.alias.clone()).or_insert_with(first);
    let is_due = rebuilt.not_before <= now;
    if is_due {
        rebuilt.not_before = now + rebuilt.backoff.pause();
    }
    is_due
}

/// Dials the callers of sessions on this machine that no caller follows: one dial for each at a time, and less and less
/// often while it is not found.
#[derive(Debug)]
struct Redials {
    running: JoinSet<()>,
    /// Holds this machine's addresses at the last attempt.
    own: BTreeSet<SocketAddr>,
    backoff: Backoff,
    not_before: Option<Instant>,
    callers: BTreeSet<MachineId>,
}

impl Default for Redials {
    fn default() -> Self {
        Self {
            running: JoinSet::new(),
            own: BTreeSet::new(),
            backoff: Backoff::new(REDIAL_MIN_INTERVAL, REDIAL_MAX_INTERVAL),
            not_before: None,
            callers: BTreeSet::new(),
        }
    }
}

impl Redials {
    /// Begins the next attempt when it is time. Another caller that is lost, and another network here, are news.
    fn begin(&mut self, membership: &Arc<Membership>) {
        while self.running.try_join_next().is_some() {}
        if !self.running.is_empty() {
            return;
        }
        let (now, own, callers) = (Instant::now(), membership.peers.own_addresses(), lost_callers(membership));
        // Who was found after the last attempt, and is lost again much later, is news as well.
        let is_long_ago = self.not_before.is_some_and(|at| now >= at + REDIAL_MAX_INTERVAL);
        if own != self.own || is_long_ago || !callers.is_subset(&self.callers) {
            self.backoff.reset();
            self.not_before = None;
        }
        if self.not_before.is_some_and(|at| now < at) {
            return;
        }
        self.not_before = Some(now + self.backoff.pause());
        (self.own, self.callers) = (own, callers);
        for caller in self.callers.clone() {
            if membership.peers.pool.live(caller).is_some() {
                continue;
            }
            let membership = Arc::clone(membership);
            self.running.spawn(async move {
                if let Err(failure) = dial::connect(&membership, caller, Instant::now() + REDIAL_TIMEOUT).await {
                    tracing::debug!(peer = %caller.short(), "a caller that was lost is not found: {failure}");
                }
            });
        }
    }
}
