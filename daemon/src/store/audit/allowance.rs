//! Bounds how many bytes of the audit one caller's commands take. Otherwise any member with a grant could push out what
//! others did, or were refused.
//!
//! The audit keeps at least five parts of 10 MiB behind any line. One caller writes 8 MiB at once and then 24 KiB a
//! second, so it needs at least half an hour to push a line out. A usual command takes 600 B with its start and its
//! end: that is 13 000 commands at once, and then 40 a second. A request that comes sooner waits a little for its turn,
//! so that a loop of commands becomes slower instead of failing.

use std::collections::HashMap;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Bounds what one caller writes at once.
const ALLOWANCE_BYTES: u64 = 8 * 1024 * 1024;
/// Bounds the pace at which one caller goes on writing after that.
const ALLOWANCE_BYTES_PER_S: u64 = 24 * 1024;
/// Bounds how long a request waits for its turn: within this time the first sending of a request reaches the executor
/// before its second one is given up.
const TURN_MAX_WAIT: Duration = Duration::from_secs(2);
/// Bounds the callers remembered: beyond it, those whose whole allowance is free are forgotten.
const MAX_REMEMBERED_CALLERS: usize = 1024;
/// Estimates how much longer the end line of a session is than its start line.
const END_LINE_EXTRA_BYTES: u64 = 256;

/// Says when a request may write its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The request writes its line at once.
    Now,
    /// The request waits until then.
    At(Instant),
    /// The turn would come too late, and the request is refused.
    Never,
}

/// Holds when the whole allowance of each caller is free again.
#[derive(Debug, Default)]
pub(crate) struct Allowances(Mutex<HashMap<MachineId, Instant>>);

impl Allowances {
    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Instant>> {
        self.0.lock()
    }

    /// Takes what a session costs whose start line has these bytes, unless its turn would be too late.
    pub(crate) fn take(&self, caller: MachineId, start_line: u64, now: Instant) -> Turn {
        let bytes = start_line.saturating_mul(2).saturating_add(END_LINE_EXTRA_BYTES);
        let mut callers = self.lock();
        let free_at = callers.get(&caller).map_or(now, |at| (*at).max(now)) + duration_of(bytes);
        let wait = free_at.duration_since(now).saturating_sub(duration_of(ALLOWANCE_BYTES));
        if wait > TURN_MAX_WAIT {
            return Turn::Never;
        }
        if callers.len() >= MAX_REMEMBERED_CALLERS {
            callers.retain(|_, free_at| *free_at > now);
        }
        callers.insert(caller, free_at);
        if wait.is_zero() { Turn::Now } else { Turn::At(now + wait) }
    }

    /// Counts bytes that were written about this caller by another right: its refusals, and what it did with sessions of
    /// others.
    pub(crate) fn count(&self, caller: MachineId, bytes: u64, now: Instant) {
        let latest = now + duration_of(ALLOWANCE_BYTES);
        let mut callers = self.lock();
        let free_at = callers.entry(caller).or_insert(now);
        // What is beyond keeps no caller waiting: the other right bounds it.
        *free_at = (*free_at).max(((*free_at).max(now) + duration_of(bytes.min(ALLOWANCE_BYTES))).min(latest));
    }
}

/// Returns the answer to a request that would write too much.
pub(crate) fn too_much() -> Failure {
    let text = "the commands of this machine fill the target's audit faster than it takes those of one machine";
    Failure::new(Kind::Busy, text).hint("try again in a few seconds; run fewer commands at once, or shorter ones")
}

/// Returns how long it takes until this number of bytes is allowed again.
fn duration_of(bytes: u64) -> Duration {
    const NANOS_PER_BYTE: u64 = 1_000_000_000 / ALLOWANCE_BYTES_PER_S;
    Duration::from_nanos(bytes.saturating_mul(NANOS_PER_BYTE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::MachineKey;

    fn id() -> MachineId {
        MachineKey::generate().expect("a key").id()
    }

    const LINE: u64 = 300;

    #[tokio::test]
    async fn twelve_thousand_usual_commands_at_once_need_not_wait_and_another_caller_is_not_touched() {
        let (allowances, one, other, now) = (Allowances::default(), id(), id(), Instant::now());
        let free = (0..100_000).take_while(|_| allowances.take(one, LINE, now) == Turn::Now).count();
        assert!((9_000..20_000).contains(&free), "{free}");
        assert_eq!(allowances.take(other, LINE, now), Turn::Now);
    }

    #[tokio::test]
    async fn twenty_commands_a_second_go_on_for_ever() {
        let (allowances, id, start) = (Allowances::default(), id(), Instant::now());
        let all =
            (0..200_000u32).all(|n| allowances.take(id, LINE, start + n * Duration::from_millis(50)) == Turn::Now);
        assert!(all);
    }

    #[tokio::test]
    async fn a_caller_that_wants_more_waits_and_one_that_would_wait_too_long_is_refused() {
        let (allowances, id, now) = (Allowances::default(), id(), Instant::now());
        let mut turns = (0..100_000).map(|_| allowances.take(id, LINE, now)).skip_while(|turn| *turn == Turn::Now);
        let Some(Turn::At(first)) = turns.next() else { panic!("no wait before the refusal") };
        assert!(first > now && first < now + Duration::from_secs(1), "{:?}", first - now);
        let waiting = turns.by_ref().take_while(|turn| *turn != Turn::Never).count();
        assert!((30..200).contains(&waiting), "{waiting}");
        // A loop that waits for each turn goes on, as fast as it may.
        let mut at = now;
        for _ in 0..1000 {
            at = match allowances.take(id, LINE, at) {
                Turn::At(turn) => turn,
                Turn::Now => at,
                Turn::Never => at + Duration::from_millis(100),
            };
        }
        let took = at - now;
        assert!(took > Duration::from_secs(20) && took < Duration::from_secs(60), "{took:?}");
    }

    #[tokio::test]
    async fn what_one_caller_writes_in_half_an_hour_leaves_the_oldest_line_there() {
        let (allowances, id, start) = (Allowances::default(), id(), Instant::now());
        let largest = malai_protocol::audit::MAX_LINE_BYTES as u64;
        let mut written = 0;
        for ms in (0..30 * 60 * 1000u32).step_by(5) {
            let now = start + Duration::from_millis(ms.into());
            if allowances.take(id, largest, now) != Turn::Never {
                written += 2 * largest;
            }
        }
        assert!(written < 5 * super::super::MAX_PART_BYTES - largest, "{written}");
    }

    #[tokio::test]
    async fn callers_are_forgotten_when_their_allowance_is_free() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        for _ in 0..MAX_REMEMBERED_CALLERS {
            allowances.take(id(), LINE, now);
        }
        allowances.take(id(), LINE, now + Duration::from_secs(10));
        assert_eq!(allowances.lock().len(), 1);
    }
}
