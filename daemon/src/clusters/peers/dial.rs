//! Finds a connection to a machine: a live one in either direction, or a new one by all known ways at once.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Aborted, abortable};
use futures_util::stream::FuturesUnordered;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh::{EndpointAddr, EndpointId, TransportAddr};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{ALPN, Close};
use tokio::time::Instant;

use crate::clusters::config::ConfigState;
use crate::clusters::membership::Membership;
use crate::clusters::peers::Peers;
use crate::clusters::peers::greet;
use crate::clusters::peers::removed;
use crate::clusters::peers::serve;
use crate::net::endpoint::address_text;
use crate::net::finding::ways::{FIXED, LAST_KNOWN, RELAY, is_same};
use crate::net::limits::handshakes::is_mixed_up;
use crate::net::pool::PeerConn;
use crate::net::{closed_with, endpoint_id, ping};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock::now_ms;

/// Sets how long an attempt that has not failed runs before another begins beside it.
const DIAL_ATTEMPT_INTERVAL: Duration = Duration::from_secs(2);
/// Bounds the pause after an attempt that failed. The first is a fifth of it, and it doubles.
const DIAL_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(1);
/// Sets the pause after an attempt whose proof of an address came by another way than the target saw first: the target is
/// there, and the next attempt may find the ways in their order.
const MIXED_UP_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Sets how soon the next attempt begins when a new address is told: the attempt that runs may use it too.
const LEARNT_ADDRESS_DELAY: Duration = Duration::from_millis(150);
/// Bounds how long a connection may take to answer before it is passed over.
const CONNECTION_PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Sets the first pause before another connection is made in place of one that the machine closed at once.
const CLOSED_RETRY_MIN_INTERVAL: Duration = Duration::from_millis(50);
/// Bounds that pause.
const CLOSED_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds the attempts at once.
const MAX_DIAL_ATTEMPTS: usize = 4;
/// Sets how long the machine itself is dialled, where no machine is connected, before others are dialled that may know
/// where it is.
const DIAL_HEAD_START: Duration = Duration::from_millis(300);
/// Bounds the others that are dialled then.
const MAX_OTHERS_DIALLED: usize = 3;
/// Bounds the told addresses that are named when a machine cannot be reached.
const MAX_TOLD_ADDRESSES: usize = 8;

/// Returns a connection to this machine: the live one, or a new one before `deadline`.
///
/// # Errors
/// [`Failure`] of kind `unreachable`, saying what was tried and when the machine was last seen.
pub(crate) async fn connect(
    membership: &Arc<Membership>,
    id: MachineId,
    deadline: Instant,
) -> Result<Arc<PeerConn>, Failure> {
    if let Some(conn) = membership.peers.pool.live(id) {
        return Ok(conn);
    }
    tokio::select! {
        // A machine that dials us while we dial it is just as good.
        conn = arrival(&membership.peers, id) => Ok(conn),
        () = tokio::time::sleep_until(deadline) => {
            membership.counters.handshakes_failed.one();
            Err("no answer in time".to_owned())
        }
        () = membership.cancel.cancelled() => Err("its cluster is loaded again, or the daemon stops".to_owned()),
        dialed = one_at_a_time(membership, id) => dialed,
        never = ask_around(membership, id) => match never {},
    }
    .map_err(|why| unreachable(membership, id, &why))
}

/// Returns a connection over which this machine answers now, before `deadline`. An idle connection may be dead and not yet
/// noticed: where one does not answer, another one is made beside it.
///
/// # Errors
/// As [`connect`], and of kind `not-a-member` when the machine does not have this one in its config.
pub(crate) async fn answering(
    membership: &Arc<Membership>,
    id: MachineId,
    deadline: Instant,
) -> Result<Arc<PeerConn>, Failure> {
    let mut silent = Vec::new();
    let mut backoff = Backoff::new(CLOSED_RETRY_MIN_INTERVAL, CLOSED_RETRY_MAX_INTERVAL);
    loop {
        let conn = connect(membership, id, deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if ping(&conn.conn, left.min(CONNECTION_PING_TIMEOUT)).await {
            return Ok(conn);
        }
        if Instant::now() >= deadline {
            return Err(unreachable(membership, id, "no answer in time"));
        }
        if let Some(closed) = conn.conn.close_reason() {
            if let Some(Close::NotAMember | Close::Removed) = closed_with(&closed) {
                greet::parted(membership, &conn);
                return Err(removed::not_a_member(membership));
            }
            // One that is full, or of another version, would be asked again at once.
            tokio::time::sleep_until(deadline.min(Instant::now() + backoff.pause())).await;
        }
        // A connection with sessions has a heartbeat, which sees to it.
        if conn.sessions() == 0 && !conn.is_stalled() {
            silent.push(PassedOver::new(conn));
        }
    }
}

/// Keeps a connection from being used, until this is dropped.
struct PassedOver(Arc<PeerConn>);

impl PassedOver {
    fn new(conn: Arc<PeerConn>) -> Self {
        conn.set_stalled(true);
        Self(conn)
    }
}

impl Drop for PassedOver {
    fn drop(&mut self) {
        self.0.set_stalled(false);
    }
}

async fn one_at_a_time(membership: &Arc<Membership>, id: MachineId) -> Result<Arc<PeerConn>, String> {
    let lock = membership.peers.pool.dial_lock(id);
    let _one_at_a_time = lock.lock().await;
    match membership.peers.pool.live(id) {
        Some(conn) => Ok(conn),
        None => dial(membership, id).await,
    }
}

/// Dials a few of the machines that were heard last, where a session waits and no machine is connected that could be asked
/// where this one is. The directory asks each that connects.
async fn ask_around(membership: &Arc<Membership>, id: MachineId) -> Infallible {
    if !addresses(membership, id).is_empty() {
        tokio::time::sleep(DIAL_HEAD_START).await;
    }
    let has_directory = membership.held().config.network.has_directory();
    if has_directory
        && membership.peers.pool.is_waited_for()
        && membership.peers.pool.all().iter().all(|conn| conn.peer == id || !conn.callable())
    {
        let others = heard_last(membership, id);
        let mut dialling: FuturesUnordered<_> =
            others.into_iter().map(|other| one_at_a_time(membership, other)).collect();
        while dialling.next().await.is_some() {}
    }
    std::future::pending().await
}

/// Returns the cluster manager and the machines that were heard last of which there is an address.
fn heard_last(membership: &Membership, but: MachineId) -> Vec<MachineId> {
    let held = membership.held();
    let manager = membership.manager_id();
    let ids = held.config.machines.values().map(|machine| machine.id);
    let mut others: Vec<MachineId> = ids
        .filter(|id| *id != but && *id != membership.me)
        .filter(|id| Some(*id) == manager || !addresses(membership, *id).is_empty())
        .collect();
    others.sort_by_cached_key(|id| (Some(*id) != manager, Reverse(membership.peers.pool.seen(*id).last_seen_ms)));
    others.truncate(MAX_OTHERS_DIALLED);
    others
}

async fn arrival(peers: &Peers, id: MachineId) -> Arc<PeerConn> {
    let mut changes = peers.pool.watch();
    loop {
        if let Some(conn) = peers.pool.live(id) {
            return conn;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps dialling until it succeeds; the caller bounds it. A peer that starts a moment later is found, and so is one that
/// comes back: the handshake's own repetitions become ever rarer, so that a new attempt begins every 2 s beside the older
/// ones, the oldest of which is given up.
async fn dial(membership: &Arc<Membership>, id: MachineId) -> Result<Arc<PeerConn>, String> {
    let key = endpoint_id(id.as_bytes()).ok_or("its id52 is not a key that can be dialled")?;
    let mut attempts = FuturesUnordered::new();
    let mut begun = VecDeque::new();
    let mut pause = DIAL_RETRY_MAX_INTERVAL / 5;
    loop {
        if membership.peers.endpoint.is_closed() {
            return Err("the daemon shuts down".to_owned());
        }
        let addresses = tried(membership, id, key);
        let ways = &membership.peers.finding.ways;
        let (mut learnt, known) = (ways.learnt(), ways.count(key));
        // Without any address the attempt itself waits for what is told.
        let wants_more = !addresses.is_empty();
        let (attempt, stop) = abortable(attempt(&membership.peers, EndpointAddr::from_parts(key, addresses)));
        attempts.push(attempt);
        begun.push_back(stop);
        if begun.len() > MAX_DIAL_ATTEMPTS
            && let Some(oldest) = begun.pop_front()
        {
            oldest.abort();
        }
        let next = tokio::time::sleep(DIAL_ATTEMPT_INTERVAL);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                Ok(()) = learnt.changed(), if wants_more => {
                    let soon = Instant::now() + LEARNT_ADDRESS_DELAY;
                    if ways.count(key) > known && soon < next.deadline() {
                        next.as_mut().reset(soon);
                    }
                }
                Some(ended) = attempts.next() => match ended {
                    Ok(Ok((conn, control))) => {
                        membership.counters.handshakes_ok.one();
                        let conn = PeerConn::new(conn, id, true);
                        conn.set_trail(ways.trail(key));
                        serve::spawn_dialed(membership, &conn, control);
                        return Ok(conn);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %id.short(), "dialling failed: {error:#}");
                        membership.counters.handshakes_failed.one();
                        if is_mixed_up(&error) {
                            next.as_mut().reset(Instant::now() + MIXED_UP_RETRY_INTERVAL);
                        } else {
                            next.as_mut().reset(Instant::now() + pause);
                            pause = (pause * 2).min(DIAL_RETRY_MAX_INTERVAL);
                        }
                    }
                    Err(Aborted) => {}
                },
            }
        }
    }
}

async fn attempt(peers: &Peers, addr: EndpointAddr) -> anyhow::Result<(Connection, (SendStream, RecvStream))> {
    let conn = peers.endpoint.connect(addr, ALPN).await?;
    let control = conn.open_bi().await?;
    Ok((conn, control))
}

/// Returns fixed addresses from the config and last known ones, and every relay of the config: the machine is at one of them,
/// and not for ever at the one where it was last. Discovery adds its own.
pub(crate) fn addresses(membership: &Membership, id: MachineId) -> Vec<TransportAddr> {
    let mut all = fixed(&membership.config, id);
    all.extend(membership.peers.last_known(&membership.held().config.network, id));
    for relay in relays(&membership.peers) {
        if !all.contains(&relay) {
            all.push(relay);
        }
    }
    all
}

fn fixed(config: &ConfigState, id: MachineId) -> Vec<TransportAddr> {
    let held = config.held();
    let fixed = held.config.machine_by_id(&id).map(|(_, machine)| machine.addresses.clone()).unwrap_or_default();
    fixed.into_iter().map(TransportAddr::Ip).collect()
}

fn relays(peers: &Peers) -> Vec<TransportAddr> {
    peers.relays.urls().into_iter().map(TransportAddr::Relay).collect()
}

/// Returns the same, and notes that they are tried now.
fn tried(membership: &Membership, id: MachineId, key: EndpointId) -> Vec<TransportAddr> {
    let ways = &membership.peers.finding.ways;
    ways.tried(key, &relays(&membership.peers), RELAY);
    ways.tried(key, &membership.peers.last_known(&membership.held().config.network, id), LAST_KNOWN);
    ways.tried(key, &fixed(&membership.config, id), FIXED);
    addresses(membership, id)
}

fn unreachable(membership: &Membership, id: MachineId, why: &str) -> Failure {
    let name = membership.config.name_of(&id).unwrap_or_else(|| id.short());
    let seen = membership.peers.pool.seen(id).last_seen_ms.map_or_else(
        || "this machine has never seen it".to_owned(),
        |at| format!("last seen {} ago", ago(now_ms().saturating_sub(at))),
    );
    let (known, ways) = (addresses(membership, id), &membership.peers.finding.ways);
    let told = endpoint_id(id.as_bytes()).map(|key| ways.told_lately(key)).unwrap_or_default();
    let told =
        told.into_iter().filter(|(addr, _)| !known.iter().any(|one| is_same(one, addr))).take(MAX_TOLD_ADDRESSES);
    let tried: Vec<String> = (known.iter().map(text))
        .chain(told.map(|(addr, way)| format!("{} ({way})", text(&addr))))
        .chain(["discovery".to_owned()])
        .collect();
    let relays = membership.peers.relays.failures(&membership.peers.endpoint);
    let failed: String = ways.failures().iter().map(|failure| format!("; {failure}")).collect();
    let (alias, tried) = (&membership.alias, tried.join(", "));
    let message = format!("{name}.{alias} cannot be reached: {why}; tried {tried}{failed}; {seen}{relays}");
    let failure = Failure::new(Kind::Unreachable, message)
        .hint(format!("on {name}: `malai daemon status`, then `malai daemon`; here: `malai status`"))
        .seen(seen);
    removed::explain(membership, failure)
}

fn text(addr: &TransportAddr) -> String {
    address_text(addr).unwrap_or_else(|| format!("{addr:?}"))
}

/// Returns a duration for people.
pub(crate) fn ago(ms: u64) -> String {
    match ms / 1000 {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::ago;

    #[test]
    fn durations_are_told_in_the_unit_a_person_would_use() {
        assert_eq!(ago(0), "0 s");
        assert_eq!(ago(119_999), "119 s");
        assert_eq!(ago(120_000), "2 min");
        assert_eq!(ago(7_200_000), "2 h");
        assert_eq!(ago(10 * 86_400_000), "10 days");
    }
}
