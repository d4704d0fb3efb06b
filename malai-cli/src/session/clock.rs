//! The clock for the age of a request: it goes on while the machine sleeps, as the target's does.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use nix::time::{ClockId, clock_gettime};

/// On macOS the monotonic clock counts sleep; on Linux it does not.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// Time since the machine was booted, sleep included.
///
/// # Errors
/// When the system does not tell.
pub(super) fn since_boot() -> Result<Duration, Failure> {
    clock_gettime(CLOCK)
        .map(Duration::from)
        .map_err(|e| Failure::new(Kind::Internal, format!("the system does not tell for how long it has run: {e}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_never_goes_back() {
        let before = super::since_boot().expect("a time");
        assert!(super::since_boot().expect("a time") >= before);
    }
}
