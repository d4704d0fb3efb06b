//! This life of the executor: its name, and for how long it has known every id that was sent to it.

use nix::time::{ClockId, clock_gettime};

use malai_protocol::id::Incarnation;
use malai_protocol::session::Resend;

/// Goes on while the machine sleeps, as the clock of the callers does that they tell by.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// One life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    /// Its name.
    pub(crate) incarnation: Incarnation,
    since_ms: u64,
    /// What a test added.
    aged_ms: u64,
}

impl Life {
    /// One that begins now.
    pub(crate) fn begin(incarnation: Incarnation) -> nix::Result<Self> {
        Ok(Self { incarnation, since_ms: now_ms()?, aged_ms: 0 })
    }

    /// Whether a request that was sent before may run when its id is not known here.
    pub(crate) fn may_run(&self, resend: &Resend) -> bool {
        // Without a clock nothing is certain.
        let alive_ms = now_ms().map_or(0, |now| now.saturating_sub(self.since_ms) + self.aged_ms);
        resend.may_run(self.incarnation, alive_ms)
    }
}

#[cfg(test)]
impl Life {
    /// So much time passes.
    pub(crate) fn age(&mut self, ms: u64) {
        self.aged_ms += ms;
    }
}

fn now_ms() -> nix::Result<u64> {
    let now = clock_gettime(CLOCK)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    Ok(seconds * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000)
}
