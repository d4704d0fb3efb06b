//! How much is kept, in all and of each caller: running sessions count with what is reserved for them, others with what
//! their files have.

use std::collections::HashMap;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;

use super::Limits;

/// Bytes and sessions.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    bytes: u64,
    sessions: usize,
}

impl Usage {
    /// Which of the two limits one more session of this size would pass, in words.
    fn full(self, bytes: u64, most: Usage) -> Option<String> {
        if self.sessions >= most.sessions {
            return Some(format!("{} detached sessions already, which is the most", self.sessions));
        }
        (self.bytes.saturating_add(bytes) > most.bytes)
            .then(|| format!("{} of detached output already, of at most {}", size(self.bytes), size(most.bytes)))
    }
}

/// What is kept, and what may be.
#[derive(Debug)]
pub(crate) struct Ledger {
    most: Usage,
    each: Usage,
    hours: u64,
    all: Usage,
    callers: HashMap<MachineId, Usage>,
}

impl Ledger {
    /// Empty.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            most: Usage { bytes: limits.budget, sessions: limits.sessions },
            each: Usage { bytes: part(limits.budget), sessions: limits.each },
            hours: limits.retention.as_secs().div_ceil(3600),
            all: Usage::default(),
            callers: HashMap::new(),
        }
    }

    /// One more session, with so many bytes.
    ///
    /// # Errors
    /// [`Kind::Busy`] when it would be too many, or too much.
    pub(crate) fn begin(&mut self, caller: MachineId, bytes: u64) -> Result<(), Failure> {
        let own = self.callers.get(&caller).copied().unwrap_or_default();
        let full = match (self.all.full(bytes, self.most), own.full(bytes, self.each)) {
            (Some(full), _) => format!("that machine keeps {full}"),
            (None, Some(full)) => format!("that machine keeps for this caller {full}"),
            (None, None) => {
                self.add(caller, bytes);
                return Ok(());
            }
        };
        let hint = format!("finished ones go {} h after their end: `malai sessions` shows them", self.hours);
        Err(Failure::new(Kind::Busy, full).hint(hint))
    }

    /// One more session, which is there in any case.
    pub(crate) fn add(&mut self, caller: MachineId, bytes: u64) {
        for usage in [&mut self.all, self.callers.entry(caller).or_default()] {
            usage.bytes = usage.bytes.saturating_add(bytes);
            usage.sessions += 1;
        }
    }

    /// More for a session that is there. False when the rest is for new sessions: a quarter of all, and of the caller's.
    pub(crate) fn grow(&mut self, caller: MachineId, bytes: u64) -> bool {
        let own = self.callers.entry(caller).or_default();
        let fits = |usage: &Usage, most: Usage| usage.bytes.saturating_add(bytes) <= part(most.bytes);
        let grows = fits(&self.all, self.most) && fits(own, self.each);
        if grows {
            self.all.bytes += bytes;
            own.bytes += bytes;
        }
        grows
    }

    /// A session has another size.
    pub(crate) fn resize(&mut self, caller: MachineId, old: u64, new: u64) {
        for usage in [&mut self.all, self.callers.entry(caller).or_default()] {
            usage.bytes = usage.bytes.saturating_sub(old).saturating_add(new);
        }
    }

    /// A session of this size is gone.
    pub(crate) fn remove(&mut self, caller: MachineId, bytes: u64) {
        for usage in [&mut self.all, self.callers.entry(caller).or_default()] {
            usage.bytes = usage.bytes.saturating_sub(bytes);
            usage.sessions = usage.sessions.saturating_sub(1);
        }
        if self.callers.get(&caller).is_some_and(|own| own.sessions == 0) {
            self.callers.remove(&caller);
        }
    }

    /// Bytes in all.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.all.bytes
    }
}

/// What one caller may have of all, and what growing sessions may have: the rest is for others.
fn part(bytes: u64) -> u64 {
    bytes / 4 * 3
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} bytes");
    };
    match (bytes / unit, bytes % unit * 10 / unit) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, tenth) => format!("{whole}.{tenth} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::FLOOR;
    use super::*;
    use crate::executor::testing::session;

    #[test]
    fn sizes_are_told_with_one_digit_after_the_point() {
        assert_eq!([0, 1023, 1 << 10].map(size), ["0 bytes", "1023 bytes", "1 KiB"]);
        assert_eq!([3 << 29, (1 << 31) - 1, 1 << 31].map(size), ["1.5 GiB", "1.9 GiB", "2 GiB"]);
    }

    #[test]
    fn a_thousand_sessions_of_one_caller_that_print_for_ever_leave_room_for_five_hundred_more() {
        let limits = Limits::default();
        let mut ledger = Ledger::new(&limits);
        let caller = session(1).caller;
        // A request of usual length.
        let least = limits.bytes(FLOOR) + 1000;
        for _ in 0..1000 {
            ledger.begin(caller, least).expect("there is room");
            // Each takes what it may at once.
            let mut own = limits.bytes(FLOOR);
            while own < limits.session && ledger.grow(caller, limits.segment) {
                own += limits.segment;
            }
        }
        for _ in 0..500 {
            ledger.begin(caller, least).expect("there is room");
        }
    }
}
