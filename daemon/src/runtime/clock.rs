//! The wall clock, for people and for expiry. No acceptance rule of a member reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns milliseconds since the epoch; 0 when the clock stands before it.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
}
