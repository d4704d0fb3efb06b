//! `malai ping`: asks a machine again and again whether it is there, and tells how soon, and by which path, it answered.
//!
//! A ping is a `Ping` on a stream of its own, which any member answers, so that none waits for one that is lost. It is no
//! session: it has no heartbeat and needs no grant. When the connection is lost, another is looked for; the pings that
//! are due meanwhile are lost.

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

/// A ping is lost after the interval, but not before this: on a slow path answers take longer than a short interval.
const LEAST: Duration = Duration::from_secs(1);
/// And not after this.
const MOST: Duration = Duration::from_secs(5);
/// How long one attempt to find the machine again may take.
const REDIAL: Duration = Duration::from_secs(10);
/// Bounds the pause between two attempts.
const REDIAL_MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Between two attempts, at first.
const PAUSE: Duration = Duration::from_millis(200);

/// Pings until there were as many as asked for, and tells of each.
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
    let patience = interval.clamp(LEAST, MOST);
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
                asked.spawn(one(Arc::clone(&way.membership), way.id, seq, patience));
            }
            Some(refused) = way.keeping.join_next() => return Err(refused.unwrap_or_else(|error| cut_short(&error))),
            Some(done) = asked.join_next() => {
                let answer = done.map_err(|error| cut_short(&error))?;
                if answers.send(Response::Ping(answer)).await.is_err() {
                    // Nobody listens any more.
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
    Failure::new(Kind::Internal, format!("a ping was cut short: {error}"))
}

/// The machine that is asked, and what keeps a connection to it.
#[derive(Debug)]
struct Way {
    membership: Arc<Membership>,
    id: MachineId,
    keeping: JoinSet<Failure>,
}

impl Way {
    /// Whether the cluster is not served in this way any more, or the machine not in it: its network settings changed, it
    /// was left, the machine was removed.
    fn is_gone(&self) -> bool {
        self.membership.cancel.is_cancelled() || !self.membership.is_member(&self.id)
    }
}

/// The way to the machine, with a connection for the first time.
async fn reach(clusters: &Arc<Clusters>, ask: &Ping) -> Result<Way, Failure> {
    let deadline = Instant::now() + Duration::from_millis(ask.connect_timeout_ms);
    loop {
        let way = way_to(clusters, ask).await?;
        if way.id == way.membership.me {
            return Ok(way);
        }
        let reached = {
            // As for a command, a lost network is looked for anew meanwhile.
            let _waiting = way.membership.peers.pool.wait();
            dial::connect(&way.membership, way.id, deadline).await
        };
        match reached {
            Ok(_) => return Ok(way),
            Err(_) if way.is_gone() && Instant::now() < deadline => sleep(PAUSE).await,
            Err(failure) => return Err(failure),
        }
    }
}

/// The machine as it is called now. Connections to it are looked for from here on.
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

/// Looks for a connection whenever there is none. Returns when the machine says that it does not know this one.
async fn keep(membership: Arc<Membership>, id: MachineId) -> Failure {
    let mut backoff = Backoff::new(PAUSE, REDIAL_MAX_INTERVAL);
    loop {
        match dial::connect(&membership, id, Instant::now() + REDIAL).await {
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

/// One ping.
async fn one(membership: Arc<Membership>, id: MachineId, seq: u64, patience: Duration) -> PingAnswer {
    if id == membership.me {
        return PingAnswer { seq, outcome: PingOutcome::Answered { rtt_us: 0, path: THIS_MACHINE.to_owned() } };
    }
    let lost = Instant::now() + patience;
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
    let after_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    PingAnswer { seq, outcome: PingOutcome::Lost { after_ms } }
}
