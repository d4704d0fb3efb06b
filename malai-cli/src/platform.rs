//! What Linux does in its own way. Every other system takes the portable way, which the tests on Linux run too.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use nix::time::{ClockId, clock_gettime};

#[cfg(target_os = "linux")]
const BOOT_CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const BOOT_CLOCK: ClockId = PORTABLE_BOOT_CLOCK;
/// Counts sleep on macOS, and does not on Linux.
#[cfg(any(test, not(target_os = "linux")))]
const PORTABLE_BOOT_CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// Returns the time since the machine was booted, sleep included. A target measures the age of a request by its own such
/// clock.
pub(crate) fn since_boot() -> Result<Duration, Failure> {
    read_clock(BOOT_CLOCK)
}

fn read_clock(clock: ClockId) -> Result<Duration, Failure> {
    clock_gettime(clock)
        .map(Duration::from)
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot read the system's uptime: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_clock_goes_back() {
        for clock in [BOOT_CLOCK, PORTABLE_BOOT_CLOCK] {
            let before = read_clock(clock).expect("a time");
            assert!(read_clock(clock).expect("a time") >= before);
        }
    }
}
