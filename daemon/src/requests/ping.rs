//! `malai ping`: asks a machine again and again whether it is there, and says how fast and over which path it answered.
//!
//! A ping is a `Ping` on a stream of its own, which any member answers, so that none waits for one that is lost. It is no
//! session: it has no heartbeat and needs no grant. When the connection is lost, malai looks for another one, and the pings
//! that are due in the meantime are lost.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::{
    MIN_PING_INTERVAL_MS, Ping, PingAnswer, PingOutcome, Response, SessionTarget, THIS_MACHINE,
};
use malai_protocol::peer::Close;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout_at};

use crate::caller::resolve::resolve;
use crate::clusters::Clusters;
use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::clusters::peers::removed;
use crate::net::{closed_with, round_trip};
use crate::runtime::backoff::Backoff;

/// Bounds from below how long a ping waits for its answer, which is else the interval: on a slow path an answer takes longer
/// than a short interval.
const PING_MIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds from above how long a ping waits for its answer.
const PING_MAX_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds one attempt to find the machine again.
const REDIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the pause between two such attempts.
const REDIAL_MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Sets the first pause between two such attempts.
const REDIAL_MIN_INTERVAL: Duration = Duration::from_millis(200);

/// Sends as many pings as were asked for, and says of each what came of it.
///
/// # Errors
/// [`Failure`]: what is asked makes no sense, there is no such machine, it was not reached within the connect timeout, or
/// it does not know this one.
pub(crate) async fn ping(
    clusters: &Arc<Clusters>,
    ask: &Ping,
    answers: &mpsc::Sender<Response>,
) -> Result<(), Failure> {
    check(ask)?;
    let interval = Duration::from_millis(ask.interval_ms);
    let lost_after = interval.clamp(PING_MIN_TIMEOUT, PING_MAX_TIMEOUT);
    let mut way = reach(clusters, ask).await?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut seq) = (JoinSet::new(), 0);
    loop {
        let more = ask.count.is_none_or(|count| seq < count);
        if !more && asked.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = ticks.tick(), if more => {
                seq += 1;
                if way.is_gone() {
                    way = way_to(clusters, ask).await?;
                }
                asked.spawn(one(Arc::clone(&way.membership), way.id, seq, lost_after));
            }
            Some(refused) = way.keeping.join_next() => return Err(refused.unwrap_or_else(|error| cut_short(&error))),
            Some(done) = asked.join_next() => {
                let answer = done.map_err(|error| cut_short(&error))?;
                if answers.send(Response::Ping(answer)).await.is_err() {
                    // The CLI has left.
                    return Ok(());
                }
            }
        }
    }
}

fn check(ask: &Ping) -> Result<(), Failure> {
    if ask.interval_ms < MIN_PING_INTERVAL_MS {
        let text = format!("pings must be at least {MIN_PING_INTERVAL_MS} ms apart, not {} ms", ask.interval_ms);
        return Err(Failure::new(Kind::Usage, text).hint("leave out --interval: a second is the default"));
    }
    if ask.count == Some(0) {
        return Err(Failure::new(Kind::Usage, "--count must be at least 1").hint("use --count 1"));
    }
    Ok(())
}

fn cut_short(error: &JoinError) -> Failure {
    Failure::new(Kind::Internal, format!("a ping ended early: {error}"))
}

/// Holds the machine that is asked, and what keeps a connection to it.
#[derive(Debug)]
struct Way {
    membership: Arc<Membership>,
    id: MachineId,
    keeping: JoinSet<Failure>,
}

impl Way {
    /// Says whether the cluster is not served in this way any more, or the machine is not in it: the network settings
    /// changed, the cluster was left, or the machine was removed.
    fn is_gone(&self) -> bool {
        self.membership.cancel.is_cancelled() || !self.membership.is_member(&self.id)
    }
}

/// Finds the way to the machine, and waits for the first connection.
async fn reach(clusters: &Arc<Clusters>, ask: &Ping) -> Result<Way, Failure> {
    let deadline = Instant::now() + Duration::from_millis(ask.connect_timeout_ms);
    loop {
        let way = way_to(clusters, ask).await?;
        if way.id == way.membership.me {
            return Ok(way);
        }
        let reached = {
            // As for a command, a lost network is looked for again in the meantime.
            let _waiting = way.membership.peers.pool.wait();
            dial::connect(&way.membership, way.id, deadline).await
        };
        match reached {
            Ok(_) => return Ok(way),
            Err(_) if way.is_gone() && Instant::now() < deadline => sleep(REDIAL_MIN_INTERVAL).await,
            Err(failure) => return Err(failure),
        }
    }
}

/// Finds the machine by its name as the config is now, and keeps a connection to it from here on.
async fn way_to(clusters: &Arc<Clusters>, ask: &Ping) -> Result<Way, Failure> {
    clusters.settled().await;
    let target = SessionTarget::new(&ask.machine, ask.cluster.as_deref(), ask.connect_timeout_ms);
    let (membership, id) = resolve(clusters, &target)?;
    let mut keeping = JoinSet::new();
    if id != membership.me {
        keeping.spawn(keep(Arc::clone(&membership), id));
    }
    Ok(Way { membership, id, keeping })
}

/// Looks for a connection whenever there is none. Returns when the machine says that this one is no member.
async fn keep(membership: Arc<Membership>, id: MachineId) -> Failure {
    let mut backoff = Backoff::new(REDIAL_MIN_INTERVAL, REDIAL_MAX_INTERVAL);
    loop {
        match dial::connect(&membership, id, Instant::now() + REDIAL_TIMEOUT).await {
            Ok(conn) => {
                if let Some(Close::NotAMember | Close::Removed) = closed_with(&conn.conn.closed().await) {
                    return removed::refused(&membership).await;
                }
                if conn.is_met() {
                    backoff.reset();
                }
            }
            Err(failure) => tracing::debug!(peer = %id.short(), "not found again: {failure}"),
        }
        sleep(backoff.pause()).await;
    }
}

/// Sends one ping, and waits for its answer or until it counts as lost.
async fn one(membership: Arc<Membership>, id: MachineId, seq: u64, lost_after: Duration) -> PingAnswer {
    if id == membership.me {
        return PingAnswer { seq, outcome: PingOutcome::Answered { rtt_us: 0, path: THIS_MACHINE.to_owned() } };
    }
    let lost = Instant::now() + lost_after;
    if let Some(conn) = membership.peers.pool.live(id) {
        match timeout_at(lost, round_trip(&conn.conn)).await {
            Ok(Ok(took)) => {
                membership.peers.pool.heard(id);
                let (path, _) = conn.path();
                let rtt_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                return PingAnswer { seq, outcome: PingOutcome::Answered { rtt_us, path } };
            }
            Ok(Err(error)) => tracing::debug!(peer = %id.short(), seq, "a ping is lost: {error:#}"),
            Err(_) => {}
        }
    }
    sleep_until(lost).await;
    let after_ms = u64::try_from(lost_after.as_millis()).unwrap_or(u64::MAX);
    PingAnswer { seq, outcome: PingOutcome::Lost { after_ms } }
}
