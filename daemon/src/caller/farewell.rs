//! Tells targets of callers that are gone, where the attachment's own stream could not.
//!
//! What is to be told is kept in memory, for a time and in a bounded number. A target that does not hear of it ends the
//! session by its grace.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use iroh::endpoint::ReadError;
use malai_protocol::codec::{CodecError, Frame, Kind, MAX_CONTROL};
use malai_protocol::failure::Failure;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::peer::{Close, Gone, RESET_PROTOCOL};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Caller;
use crate::clusters::membership::Membership;
use crate::clusters::peers::dial;
use crate::net::pool::PeerConn;
use crate::net::{FrameError, Frames, closed_with, code, send};
use crate::runtime::backoff::Backoff;
use crate::runtime::duty;

/// Bounds the farewells that are kept. The oldest is dropped for one more.
const MAX_FAREWELLS: usize = 4096;
/// Sets how long a farewell is kept: as long as sessions wait for their callers where the config does not say.
const FAREWELL_KEEP_TIME: Duration = Duration::from_secs(600);
/// Bounds one attempt to reach the target.
const FAREWELL_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Sets the first pause between two attempts.
const FAREWELL_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds that pause.
const FAREWELL_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(15);
/// Bounds how long the answer may take.
const FAREWELL_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds how many farewells one target hears at once.
const MAX_FAREWELLS_AT_ONCE: usize = 64;

/// Holds what a machine is still to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    to: To,
    gone: Gone,
    until: Instant,
}

/// Names a machine of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct To {
    cluster: ClusterId,
    machine: MachineId,
}

/// Holds all that is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Farewells {
    kept: Mutex<Kept>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Kept {
    due: VecDeque<Due>,
    /// Holds the machines that a task is trying to tell.
    told: HashSet<To>,
}

impl Farewells {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    /// Returns whether there is nothing to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().due.is_empty()
    }

    /// Ends all telling: the daemon stops.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns what is cancelled when the daemon stops.
    pub(super) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Notes one. Returns true when a task has to be started for this machine.
    fn note(&self, due: Due) -> bool {
        let mut kept = self.lock();
        if kept.due.len() >= MAX_FAREWELLS
            && let Some(Due { to, gone, .. }) = kept.due.pop_front()
        {
            tracing::warn!(session = %gone.id.short(), machine = %to.machine.short(), "could not report that the caller is gone: too many reports wait");
        }
        kept.due.push_back(due);
        kept.told.insert(due.to)
    }

    /// Returns what this machine is still to be told. When that is nothing, its task ends.
    fn next(&self, to: To) -> Vec<Due> {
        let mut kept = self.lock();
        let now = Instant::now();
        kept.due.retain(|due| {
            let in_time = due.until > now;
            if !in_time {
                tracing::warn!(session = %due.gone.id.short(), machine = %due.to.machine.short(), "could not report that the caller is gone: the target was not reached");
            }
            in_time
        });
        let next: Vec<Due> = kept.due.iter().filter(|due| due.to == to).copied().collect();
        if next.is_empty() {
            kept.told.remove(&to);
        }
        next
    }

    fn done(&self, due: &Due) {
        self.lock().due.retain(|other| other != due);
    }
}

/// Tells this machine of the cluster that the caller is gone, as soon as it can be reached.
pub(super) fn keep(caller: &Arc<Caller>, cluster: ClusterId, machine: MachineId, gone: Gone) {
    let to = To { cluster, machine };
    tracing::debug!(session = %gone.id.short(), machine = %machine.short(), "the target does not know yet that the caller is gone");
    if caller.farewells.note(Due { to, gone, until: Instant::now() + FAREWELL_KEEP_TIME }) {
        let stop = caller.farewells.stopped();
        let telling = Arc::clone(caller);
        let tell = duty::keep("farewell", stop.clone(), move || tell(Arc::clone(&telling), to));
        caller.tasks.spawn(async move {
            stop.run_until_cancelled_owned(tell).await;
        });
    }
}

async fn tell(caller: Arc<Caller>, to: To) {
    let mut backoff = Backoff::new(FAREWELL_RETRY_MIN_INTERVAL, FAREWELL_RETRY_MAX_INTERVAL);
    loop {
        let next = caller.farewells.next(to);
        if next.is_empty() {
            return;
        }
        let said = match caller.clusters.by_id(&to.cluster) {
            Some(membership) => say_all(&caller.farewells, &membership, to, next).await,
            None => Err(anyhow::anyhow!("the cluster is not served")),
        };
        if let Err(why) = said {
            tracing::debug!(machine = %to.machine.short(), "not told yet that callers are gone: {why:#}");
            sleep(backoff.pause()).await;
        } else {
            backoff.reset();
        }
    }
}

async fn say_all(farewells: &Farewells, membership: &Arc<Membership>, to: To, all: Vec<Due>) -> anyhow::Result<()> {
    let conn = dial::connect(membership, to.machine, Instant::now() + FAREWELL_DIAL_TIMEOUT).await?;
    let one = |due: Due| {
        let conn = Arc::clone(&conn);
        async move { (due, say(&conn, &due.gone).await) }
    };
    let mut saying = futures_util::stream::iter(all).map(one).buffer_unordered(MAX_FAREWELLS_AT_ONCE);
    while let Some((due, said)) = saying.next().await {
        match said {
            Ok(None) => tracing::debug!(session = %due.gone.id.short(), "the target knows that the caller is gone"),
            Ok(Some(why)) => {
                tracing::debug!(session = %due.gone.id.short(), "the target does not hear of callers: {why}")
            }
            Err(error)
                if matches!(
                    conn.conn.close_reason().as_ref().and_then(closed_with),
                    Some(Close::NotAMember | Close::Removed)
                ) =>
            {
                tracing::debug!(session = %due.gone.id.short(), "the target does not know this machine: {error:#}");
            }
            Err(error) => return Err(error),
        }
        farewells.done(&due);
    }
    Ok(())
}

/// Returns when the target has answered: with a reason when it will not hear of this.
async fn say(conn: &PeerConn, gone: &Gone) -> anyhow::Result<Option<String>> {
    let answer = async {
        let (mut send_half, recv) = conn.conn.open_bi().await?;
        send(&mut send_half, Frame::control(Kind::Gone, gone)?).await?;
        send_half.finish()?;
        match Frames::new(recv, MAX_CONTROL).next(FAREWELL_ANSWER_TIMEOUT).await {
            Ok(frame) if frame.kind == Kind::Pong => Ok(None),
            Ok(frame) => {
                let refused: Failure = frame.expect(Kind::Refused, "Pong or Refused")?;
                Ok(Some(refused.message))
            }
            Err(error) if is_reset_for_protocol(&error) => Ok(Some("it is of an earlier version".to_owned())),
            Err(error) => Err(error.into()),
        }
    };
    timeout(FAREWELL_ANSWER_TIMEOUT, answer).await?
}

fn is_reset_for_protocol(error: &FrameError) -> bool {
    let FrameError::Codec(CodecError::Io(error)) = error else { return false };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::Reset(number)) if *number == code(RESET_PROTOCOL))
}

#[cfg(test)]
mod tests {
    use malai_protocol::id::{FollowerId, SessionId};

    use super::*;
    use crate::store::keys::{ClusterKey, MachineKey};

    fn to() -> To {
        let cluster = ClusterKey::generate().expect("a key").id();
        To { cluster, machine: MachineKey::generate().expect("a key").id() }
    }

    fn due(to: To, number: u32, kept: Duration) -> Due {
        let (id, follower) = (SessionId::from_bytes([1; 16]), FollowerId::from_bytes([2; 16]));
        Due { to, gone: Gone { owner: None, id, follower, number }, until: Instant::now() + kept }
    }

    #[test]
    fn one_task_at_a_time_tells_a_machine_until_nothing_is_left() {
        let (farewells, one, other) = (Farewells::default(), to(), to());
        let (first, second) = (due(one, 1, FAREWELL_KEEP_TIME), due(one, 2, FAREWELL_KEEP_TIME));
        assert!(farewells.note(first));
        assert!(!farewells.note(second), "there is a task already");
        assert!(farewells.note(due(other, 3, FAREWELL_KEEP_TIME)));
        assert_eq!(farewells.next(one), [first, second]);
        farewells.done(&first);
        assert_eq!(farewells.next(one), [second]);
        farewells.done(&second);
        assert!(farewells.next(one).is_empty());
        assert!(farewells.note(first), "the task before has ended");
    }

    #[test]
    fn what_could_not_be_said_in_time_is_forgotten() {
        let (farewells, to) = (Farewells::default(), to());
        farewells.note(due(to, 1, Duration::ZERO));
        assert!(farewells.next(to).is_empty());
        assert!(farewells.is_empty());
    }

    #[test]
    fn the_oldest_makes_room() {
        let (farewells, to) = (Farewells::default(), to());
        let numbers = 0..u32::try_from(MAX_FAREWELLS).expect("a number") + 2;
        for number in numbers.clone() {
            farewells.note(due(to, number, FAREWELL_KEEP_TIME));
        }
        let kept: Vec<u32> = farewells.next(to).iter().map(|due| due.gone.number).collect();
        assert!(kept.iter().copied().eq(numbers.skip(2)));
    }
}
