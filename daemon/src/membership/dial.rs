//! Finds a connection to a machine: a live one in either direction, or a new one by all known ways at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Aborted, abortable};
use futures_util::stream::FuturesUnordered;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh::{EndpointAddr, TransportAddr};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::ALPN;
use tokio::time::Instant;

use super::{Membership, serve};
use crate::clock::now_ms;
use crate::net::endpoint_id;
use crate::net::pool::PeerConn;

/// While an attempt has not failed, another begins after so long.
const NEXT_ATTEMPT: Duration = Duration::from_secs(2);
/// The longest pause after an attempt that failed; the first is a fifth of it, and it doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Attempts at once.
const ATTEMPTS: usize = 4;

/// A connection to this machine: the live one, or a new one before `deadline`.
///
/// # Errors
/// [`Failure`] of kind `unreachable`, saying what was tried and when the machine was last seen.
pub(crate) async fn connect(
    membership: &Arc<Membership>,
    id: MachineId,
    deadline: Instant,
) -> Result<Arc<PeerConn>, Failure> {
    if let Some(conn) = membership.pool.live(id) {
        return Ok(conn);
    }
    let name = membership.held().config.machine_by_id(&id).map_or_else(|| id.short(), |(name, _)| name.to_string());
    let lock = membership.pool.dial_lock(id);
    let attempt = async {
        let _one_at_a_time = lock.lock().await;
        match membership.pool.live(id) {
            Some(conn) => Ok(conn),
            None => dial(membership, id).await,
        }
    };
    tokio::select! {
        // A machine that dials us while we dial it is just as good.
        conn = arrival(membership, id) => Ok(conn),
        () = tokio::time::sleep_until(deadline) => Err("no answer in time".to_owned()),
        () = membership.cancel.cancelled() => Err("its cluster is taken in anew, or the daemon stops".to_owned()),
        dialed = attempt => dialed,
    }
    .map_err(|why| unreachable(membership, id, &name, &why))
}

async fn arrival(membership: &Membership, id: MachineId) -> Arc<PeerConn> {
    let mut changes = membership.pool.watch();
    loop {
        if let Some(conn) = membership.pool.live(id) {
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
    let mut pause = LONGEST_PAUSE / 5;
    loop {
        if membership.endpoint.is_closed() {
            return Err("the daemon shuts down".to_owned());
        }
        let (attempt, stop) = abortable(attempt(membership, EndpointAddr::from_parts(key, addresses(membership, id))));
        attempts.push(attempt);
        begun.push_back(stop);
        if begun.len() > ATTEMPTS
            && let Some(oldest) = begun.pop_front()
        {
            oldest.abort();
        }
        let next = tokio::time::sleep(NEXT_ATTEMPT);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                Some(ended) = attempts.next() => match ended {
                    Ok(Ok((conn, control))) => {
                        let conn = PeerConn::new(conn, id, true);
                        serve::spawn_dialed(membership, &conn, control);
                        return Ok(conn);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %id.short(), "dialling failed: {error:#}");
                        next.as_mut().reset(Instant::now() + pause);
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                    Err(Aborted) => {}
                },
            }
        }
    }
}

async fn attempt(
    membership: &Membership,
    addr: EndpointAddr,
) -> anyhow::Result<(Connection, (SendStream, RecvStream))> {
    let conn = membership.endpoint.connect(addr, ALPN).await?;
    let control = conn.open_bi().await?;
    Ok((conn, control))
}

/// Fixed addresses from the config and last known ones, and every relay of the config: the machine is at one of them,
/// and not for ever at the one where it was last. Discovery adds its own.
pub(crate) fn addresses(membership: &Membership, id: MachineId) -> Vec<TransportAddr> {
    let held = membership.held();
    let fixed = held.config.machine_by_id(&id).map(|(_, machine)| machine.addresses.clone()).unwrap_or_default();
    let mut all: Vec<TransportAddr> = fixed.into_iter().map(TransportAddr::Ip).collect();
    all.extend(membership.pool.addresses(id));
    for relay in membership.relays.urls().into_iter().map(TransportAddr::Relay) {
        if !all.contains(&relay) {
            all.push(relay);
        }
    }
    all
}

fn unreachable(membership: &Membership, id: MachineId, name: &str, why: &str) -> Failure {
    let seen = membership.pool.seen(id).last_seen_ms.map_or_else(
        || "it was never seen from here".to_owned(),
        |at| format!("last seen {} ago", ago(now_ms().saturating_sub(at))),
    );
    let tried: Vec<String> = addresses(membership, id)
        .iter()
        .map(|addr| match addr {
            TransportAddr::Ip(ip) => ip.to_string(),
            TransportAddr::Relay(url) => url.to_string(),
            other => format!("{other:?}"),
        })
        .chain(["discovery".to_owned()])
        .collect();
    let relays = membership.relays.failures(&membership.endpoint);
    let alias = &membership.alias;
    let message = format!("{name}.{alias} cannot be reached: {why}; tried {}; {seen}{relays}", tried.join(", "));
    Failure::new(Kind::Unreachable, message)
        .hint(format!("on {name}: `malai daemon status`, then `malai daemon`; here: `malai status`"))
}

/// A duration for people.
fn ago(ms: u64) -> String {
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
