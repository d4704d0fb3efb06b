//! Waiting for a state, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a state that cannot be subscribed to is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `state` holds; after `deadline` fails with `what`, the state that did not come.
///
/// # Errors
///
/// When the deadline passes.
pub fn wait_until(deadline: Duration, what: &str, mut state: impl FnMut() -> bool) -> Result<()> {
    wait_for(deadline, what, || Ok(state().then_some(())))
}

/// Waits until `probe` yields a value and returns it; after `deadline` fails with `what`.
///
/// # Errors
///
/// When the deadline passes, or as soon as the probe itself fails.
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if begun.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain until {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}
