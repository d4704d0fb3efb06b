//! The link: the connection that a machine keeps to its cluster manager.
//!
//! While the manager is away, a machine keeps connections to a few others instead, so that a snapshot which one of them
//! has reaches all. A manager that refuses this machine is asked every few minutes, and at once when somebody runs
//! something here or another machine brings a newer snapshot: it may have been added again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iroh::Watcher;
use malai_protocol::id::MachineId;
use malai_protocol::peer::Close;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clusters::membership::Membership;
use crate::clusters::peers::{Peers, dial};
use crate::net::closed_with;
use crate::net::pool::PeerConn;
use crate::runtime::backoff::{Backoff, Said, jittered};
use crate::store::held::Held;

/// Bounds one attempt, in which the dialling itself repeats.
const LINK_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the first pause after the manager was not reached.
const LINK_RETRY_MIN_INTERVAL: Duration = Duration::from_millis(500);
/// Bounds that pause: a manager that comes back is found within this time.
const LINK_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Bounds that pause at first, while the manager may only be restarting, or its network be under repair.
const LINK_RETRY_EARLY_INTERVAL: Duration = Duration::from_secs(15);
/// Sets how long that time at first is.
const LINK_EARLY_TIME: Duration = Duration::from_secs(600);
/// Sets the first pause after the manager refused this machine.
const REFUSED_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds that pause: a machine that is added again learns of it within this time.
const REFUSED_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(240);
/// Sets the least time between two early attempts because somebody runs something.
const NUDGE_MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Sets how long a link has to last for the next loss to begin with the first pause again.
const LINK_STEADY_TIME: Duration = Duration::from_secs(10);
/// Bounds the other machines that are kept connected while the manager is away.
const MAX_SUBSTITUTES: usize = 3;

/// Names the states of the link that the log tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Linked,
    Lost,
    Unreached,
    Refused,
}

/// Says what came of one attempt.
enum Outcome {
    /// The manager greeted, and the connection ended later.
    Lost { after: Duration, why: String },
    /// It was not reached, or hung up before it greeted.
    Unreached(String),
    /// It does not have this machine in its config.
    Refused,
}

/// Keeps the link until the membership ends. On the cluster manager there is nothing to keep.
pub(crate) async fn run(membership: Arc<Membership>) {
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = keep(&membership) => {}
    }
}

async fn keep(membership: &Arc<Membership>) {
    let mut snapshots = membership.watch();
    let mut unreached = Backoff::new(LINK_RETRY_MIN_INTERVAL, LINK_RETRY_MAX_INTERVAL);
    let mut refused = Backoff::new(REFUSED_RETRY_MIN_INTERVAL, REFUSED_RETRY_MAX_INTERVAL);
    let (mut said, mut turn) = (Said::default(), 0);
    let mut unreached_since = None;
    loop {
        let Some(manager) = membership.manager_id() else {
            if snapshots.changed().await.is_err() {
                return;
            }
            continue;
        };
        let outcome = attempt(membership, manager, &mut said).await;
        // A connection that was replaced by another leaves the link in place.
        if membership.peers.pool.live(manager).is_some() {
            continue;
        }
        tell(membership, manager, &mut said, &outcome);
        let is_refused = matches!(outcome, Outcome::Refused);
        match outcome {
            Outcome::Lost { after, .. } if after >= LINK_STEADY_TIME => {
                unreached.reset();
                refused.reset();
                unreached_since = None;
            }
            Outcome::Unreached(_) => substitute(membership, manager, &mut turn).await,
            _ => {}
        }
        let pause = if is_refused {
            refused.pause()
        } else if unreached_since.get_or_insert_with(Instant::now).elapsed() < LINK_EARLY_TIME {
            unreached.pause().min(jittered(LINK_RETRY_EARLY_INTERVAL))
        } else {
            unreached.pause()
        };
        match rest(membership, &mut snapshots, pause, is_refused).await {
            Woken::ByTime => {}
            Woken::ByChange => {
                unreached.reset();
                refused.reset();
            }
            Woken::Ended => return,
        }
    }
}

/// Makes a link, and follows it for as long as it lasts.
async fn attempt(membership: &Arc<Membership>, manager: MachineId, said: &mut Said<State>) -> Outcome {
    let conn = match dial::connect(membership, manager, Instant::now() + LINK_ATTEMPT_TIMEOUT).await {
        Ok(conn) => conn,
        Err(failure) => return Outcome::Unreached(failure.to_string()),
    };
    let is_met = greeted(&membership.peers, &conn).await;
    let begun = Instant::now();
    if is_met && said.is_news(State::Linked) {
        tracing::info!(cluster = %membership.alias, peer = %manager.short(), "linked to the cluster manager");
    }
    let why = conn.conn.closed().await;
    match closed_with(&why) {
        Some(Close::NotAMember | Close::Removed) => Outcome::Refused,
        _ if is_met => Outcome::Lost { after: begun.elapsed(), why: why.to_string() },
        _ => Outcome::Unreached(format!("the cluster manager hung up before it greeted: {why}")),
    }
}

/// Waits until the manager has greeted; false when the connection ends without that.
async fn greeted(peers: &Peers, conn: &PeerConn) -> bool {
    let mut changes = peers.pool.watch();
    while !conn.is_met() {
        tokio::select! {
            _ = conn.conn.closed() => return conn.is_met(),
            changed = changes.changed() => if changed.is_err() { return false },
        }
    }
    true
}

fn tell(membership: &Membership, manager: MachineId, said: &mut Said<State>, outcome: &Outcome) {
    let (cluster, peer) = (&membership.alias, manager.short());
    match outcome {
        Outcome::Lost { why, .. } => {
            if said.is_news(State::Lost) {
                tracing::info!(%cluster, %peer, "link to the cluster manager lost: {why}");
            }
        }
        Outcome::Unreached(why) => {
            if said.is_news(State::Unreached) {
                tracing::info!(%cluster, %peer, "no link, and it is tried again every minute at least: {why}");
            } else {
                tracing::debug!(%cluster, %peer, "no link: {why}");
            }
        }
        // The alarm has its line.
        Outcome::Refused => {
            said.is_news(State::Refused);
        }
    }
}

/// Says what ended a rest.
enum Woken {
    ByTime,
    ByChange,
    Ended,
}

/// Waits for the next attempt: until it is due, somebody runs something, or a change makes it likely that the manager
/// answers now.
async fn rest(
    membership: &Membership,
    snapshots: &mut watch::Receiver<Arc<Held>>,
    pause: Duration,
    is_refused: bool,
) -> Woken {
    let nudge_from = Instant::now() + NUDGE_MIN_INTERVAL;
    tokio::select! {
        () = sleep(pause) => Woken::ByTime,
        changed = snapshots.changed() => if changed.is_ok() { Woken::ByChange } else { Woken::Ended },
        () = async { membership.peers.nudged().await; sleep_until(nudge_from).await } => Woken::ByTime,
        // Another network does not bring a machine back into the config.
        () = another_network(&membership.peers), if !is_refused => Woken::ByChange,
    }
}

/// Returns when this machine's network shows it at other addresses than now.
async fn another_network(peers: &Peers) {
    let own = |addr: &iroh::EndpointAddr| addr.ip_addrs().copied().collect::<BTreeSet<SocketAddr>>();
    let mut watcher = peers.endpoint.watch_addr();
    let before = own(&watcher.get());
    loop {
        match watcher.updated().await {
            Ok(now) if own(&now) == before => {}
            Ok(_) => return,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Dials the next of the other machines, unless enough of them are connected.
async fn substitute(membership: &Arc<Membership>, manager: MachineId, turn: &mut usize) {
    let held = membership.held();
    let ids = held.config.machines.values().map(|machine| machine.id);
    let mut others: Vec<MachineId> = ids.filter(|id| *id != manager && *id != membership.me).collect();
    others.sort_unstable();
    let connected = others.iter().filter(|id| membership.peers.pool.live(**id).is_some()).count();
    if others.is_empty() || connected >= MAX_SUBSTITUTES.min(others.len()) {
        return;
    }
    // Everybody begins behind itself in the order of keys, so that they do not all dial the same one.
    let start = others.partition_point(|id| *id < membership.me);
    let Some(next) = others.get((start + *turn) % others.len()) else { return };
    *turn = turn.wrapping_add(1);
    if let Err(failure) = dial::connect(membership, *next, Instant::now() + LINK_ATTEMPT_TIMEOUT).await {
        tracing::debug!(cluster = %membership.alias, "no substitute for the link: {failure}");
    }
}
