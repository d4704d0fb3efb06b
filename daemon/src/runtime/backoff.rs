//! Paces loops that try again after a failure: less and less often, at times that differ from machine to machine, and
//! with one line in the log when the state changes (docs/decisions/0023).

use std::time::Duration;

use super::random::random;

/// Sets the part of a pause by which it is shortened at most: a quarter.
const JITTER_PART: u32 = 4;

/// Tells how long to wait before the next attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Returns one whose pauses begin with `first` and double up to `cap`.
    pub(crate) const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// Returns the next pause, shortened at random.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.cap);
        self.next = (pause * 2).min(self.cap);
        jittered(pause)
    }

    /// Begins again with the first pause.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Shortens a pause by up to a quarter, at random, so that machines that failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    // Without randomness they come together.
    let part = random().map_or(0.0, |bytes| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX));
    pause - (pause / JITTER_PART).mul_f64(part)
}

/// Remembers what was said last, so that the same is not said again.
#[derive(Debug)]
pub(crate) struct Said<T>(Option<T>);

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Said<T> {
    /// Takes the state of now, and says whether it differs from the last one.
    pub(crate) fn is_news(&mut self, state: T) -> bool {
        let is_news = self.0.as_ref() != Some(&state);
        self.0 = Some(state);
        is_news
    }
}

/// Sets the first pause after a connection could not be accepted.
const ACCEPT_RETRY_MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Bounds that pause: the descriptor that a process lacks may be free again at any time.
const ACCEPT_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Paces a loop that accepts connections while it cannot accept any.
#[derive(Debug)]
pub(crate) struct Failing {
    backoff: Backoff,
    said: Said<bool>,
}

impl Default for Failing {
    fn default() -> Self {
        Self { backoff: Backoff::new(ACCEPT_RETRY_MIN_INTERVAL, ACCEPT_RETRY_MAX_INTERVAL), said: Said::default() }
    }
}

impl Failing {
    /// Logs the first of several failures, and returns how long to wait after each.
    pub(crate) fn pause(&mut self, why: String) -> Duration {
        if self.said.is_news(true) {
            tracing::warn!("{why}");
        }
        self.backoff.pause()
    }

    /// Notes that a connection was accepted.
    pub(crate) fn over(&mut self) {
        self.said.is_news(false);
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(240);

    #[test]
    fn pauses_double_up_to_the_cap_and_are_shortened_by_a_quarter_at_most() {
        let mut backoff = Backoff::new(FIRST, CAP);
        let mut wanted = FIRST;
        for _ in 0..100 {
            let pause = backoff.pause();
            assert!(pause <= wanted && pause >= wanted * 3 / 4, "{pause:?} of {wanted:?}");
            wanted = (wanted * 2).min(CAP);
        }
        assert_eq!(wanted, CAP);
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn a_day_of_failures_is_a_few_hundred_attempts() {
        let (mut backoff, mut passed, mut attempts) = (Backoff::new(FIRST, CAP), Duration::ZERO, 0);
        while passed < Duration::from_secs(24 * 3600) {
            passed += backoff.pause();
            attempts += 1;
        }
        assert!(attempts < 500, "{attempts}");
    }

    #[test]
    fn machines_that_failed_together_come_back_at_different_times() {
        let pauses: std::collections::BTreeSet<Duration> = (0..100).map(|_| jittered(CAP)).collect();
        assert!(pauses.len() > 90, "{pauses:?}");
    }

    #[test]
    fn a_cap_below_the_first_pause_and_no_pause_at_all_are_no_harm() {
        assert!(Backoff::new(CAP, FIRST).pause() <= FIRST);
        assert_eq!(Backoff::new(Duration::ZERO, CAP).pause(), Duration::ZERO);
        assert!(Backoff::new(Duration::MAX, Duration::MAX / 2).pause() > FIRST);
    }

    #[test]
    fn the_same_is_said_once_until_it_changes() {
        let mut said = Said::default();
        assert!(said.is_news("lost"));
        assert!(!said.is_news("lost"));
        assert!(said.is_news("linked"));
        assert!(said.is_news("lost"));
    }
}
