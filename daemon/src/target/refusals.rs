//! How many refusals of one caller are written down one by one: a machine without grants that asks on and on must not
//! push the rest of the audit out. What is left out is counted, and the count is written down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use malai_protocol::audit::{Entry, Event};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use tokio::time::Instant;

use crate::clusters::membership::Membership;
use crate::runtime::clock::now_ms;

/// Every refusal uses up so much of its caller's room, and so does every KiB of its line after the first.
const PRICE: Duration = Duration::from_millis(100);
/// The room of a caller, as the time in which it becomes free again: 100 refusals at once, 10 a second for long.
const ROOM: Duration = Duration::from_secs(10);
/// Refusals are written down again when so much room is free.
const AGAIN: Duration = Duration::from_secs(5);
/// Callers remembered before those whose room is free are forgotten.
const REMEMBERED: usize = 1024;

/// What was refused lately, by caller.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    callers: Mutex<HashMap<MachineId, Caller>>,
}

#[derive(Debug)]
struct Caller {
    /// When all of its room is free.
    free_at: Instant,
    /// Refusals that were not written down since the last one that was.
    left_out: u64,
}

/// What becomes of a refusal's line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is written.
    Write,
    /// It is counted only. At the time given the count has to be written, by whoever was told of it.
    LeaveOut(Option<Instant>),
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Caller>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusal of this caller is about to be written.
    pub(crate) fn ask(&self, id: MachineId, now: Instant) -> Verdict {
        let mut callers = self.lock();
        if callers.len() >= REMEMBERED {
            callers.retain(|_, caller| caller.left_out > 0 || caller.free_at > now);
        }
        let caller = callers.entry(id).or_insert(Caller { free_at: now, left_out: 0 });
        if caller.left_out > 0 {
            caller.left_out += 1;
            return Verdict::LeaveOut(None);
        }
        let free_at = caller.free_at.max(now);
        if free_at + PRICE > now + ROOM {
            caller.left_out = 1;
            return Verdict::LeaveOut(Some((free_at + AGAIN).checked_sub(ROOM).unwrap_or(now)));
        }
        caller.free_at = free_at + PRICE;
        Verdict::Write
    }

    /// Counts a line that was lost. The caller that gets a time has to write the count then.
    pub(crate) fn missed(&self, id: MachineId, now: Instant) -> Option<Instant> {
        let mut callers = self.lock();
        let caller = callers.entry(id).or_insert(Caller { free_at: now, left_out: 0 });
        caller.left_out += 1;
        (caller.left_out == 1).then(|| now + AGAIN)
    }

    /// Puts back a count that was not written. Returns false when a later one has come, whose line has it then.
    fn put_back(&self, id: MachineId, count: u64, now: Instant) -> bool {
        let mut callers = self.lock();
        let caller = callers.entry(id).or_insert(Caller { free_at: now, left_out: 0 });
        let alone = caller.left_out == 0;
        caller.left_out = caller.left_out.saturating_add(count);
        alone
    }

    /// The line had so many bytes.
    pub(crate) fn wrote(&self, id: MachineId, bytes: u64) {
        let more = PRICE.saturating_mul(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
        if let Some(caller) = self.lock().get_mut(&id) {
            caller.free_at = caller.free_at.checked_add(more).unwrap_or(caller.free_at);
        }
    }

    /// How many refusals were left out. From here on they are written again.
    fn settle(&self, id: MachineId, now: Instant) -> u64 {
        self.lock().get_mut(&id).map_or(0, |caller| {
            caller.free_at = caller.free_at.max(now) + PRICE;
            std::mem::take(&mut caller.left_out)
        })
    }
}

/// The answer to an attempt that is refused without a line of its own.
pub(crate) fn too_many(refused: Failure) -> Failure {
    let text = format!("too many attempts of this machine were refused in a short time; this one since {refused}");
    Failure { kind: Kind::Busy, message: text, ..refused }
}

/// Writes down, at that time or when the cluster is given up, how many refusals of this caller were left out.
pub(crate) fn tell(membership: &Arc<Membership>, caller: MachineId, at: Instant) {
    let membership = Arc::clone(membership);
    let tasks = membership.tasks.clone();
    tasks.spawn(async move {
        let mut at = at;
        loop {
            tokio::select! {
                () = membership.cancel.cancelled() => {}
                () = tokio::time::sleep_until(at) => {}
            }
            let count = membership.refusals.settle(caller, Instant::now());
            let line = left_out(&membership, caller, count);
            tracing::warn!(peer = %caller.short(), cluster = %membership.alias, count, "refused, and not listed");
            let Err(failure) = membership.host.audit.record(&line) else { return };
            tracing::error!(peer = %caller.short(), count, "the audit cannot be written: {failure}");
            let now = Instant::now();
            if membership.cancel.is_cancelled() || !membership.refusals.put_back(caller, count, now) {
                return;
            }
            at = now + AGAIN;
        }
    });
}

fn left_out(membership: &Membership, caller: MachineId, count: u64) -> Entry {
    let held = membership.held();
    Entry {
        at_ms: now_ms(),
        event: Event::LeftOut,
        cluster: membership.alias.clone(),
        session: String::new(),
        who: held.config.machine_by_id(&caller).map(|(who, _)| who.to_string()),
        id52: caller.to_string(),
        owner: None,
        owner_name: None,
        words: Vec::new(),
        words_bytes: None,
        words_blake3: None,
        named: None,
        user: None,
        env: Vec::new(),
        env_count: None,
        reason: None,
        signal: None,
        code: Some(Kind::Busy.exit_code()),
        outcome: Some(format!("{}: too many attempts were refused in a short time", Kind::Busy.name())),
        count: Some(count),
        stdout_bytes: None,
        stderr_bytes: None,
        duration_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use malai_protocol::id::MachineId;

    use super::*;
    use crate::store::keys::MachineKey;

    fn id() -> MachineId {
        MachineKey::generate().expect("a key").id()
    }

    /// How many of so many refusals at once are written.
    fn written(refusals: &Refusals, id: MachineId, asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| refusals.ask(id, now) == Verdict::Write).count()
    }

    #[tokio::test]
    async fn a_hundred_at_once_are_written_and_the_rest_is_counted_until_half_the_room_is_free() {
        let (refusals, one, other, now) = (Refusals::default(), id(), id(), Instant::now());
        assert_eq!(written(&refusals, one, 100, now), 100);
        let first = refusals.ask(one, now);
        assert_eq!(first, Verdict::LeaveOut(Some(now + AGAIN)));
        assert_eq!(refusals.ask(one, now + ROOM), Verdict::LeaveOut(None), "one of many has to write the count");
        assert_eq!(written(&refusals, other, 1, now), 1, "another caller has room of its own");
        assert_eq!(refusals.settle(one, now + AGAIN), 2);
        // The line with the count takes its place as well.
        assert_eq!(written(&refusals, one, 100, now + AGAIN), 49);
    }

    #[tokio::test]
    async fn ten_a_second_are_written_for_ever() {
        let (refusals, id, now) = (Refusals::default(), id(), Instant::now());
        let all = (0..1000).all(|number| refusals.ask(id, now + number * PRICE) == Verdict::Write);
        assert!(all);
    }

    #[tokio::test]
    async fn a_long_line_counts_by_its_length() {
        let (refusals, id, now) = (Refusals::default(), id(), Instant::now());
        assert_eq!(refusals.ask(id, now), Verdict::Write);
        refusals.wrote(id, 1 << 20);
        // A MiB at 10 KiB a second.
        let Verdict::LeaveOut(Some(at)) = refusals.ask(id, now) else { panic!("it was written") };
        assert_eq!(at, now + 1025 * PRICE - AGAIN);
        refusals.settle(id, now);
        refusals.wrote(id, u64::MAX);
    }

    #[tokio::test]
    async fn callers_are_forgotten_when_all_of_their_room_is_free() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let late = id();
        for _ in 0..REMEMBERED {
            refusals.ask(id(), now);
        }
        refusals.ask(late, now + ROOM);
        assert_eq!(refusals.lock().len(), 1);
    }
}
