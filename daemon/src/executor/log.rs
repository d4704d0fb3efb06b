//! How much output may be on its way: what was sent and not acknowledged is bounded, and then the command is not read.
//!
//! The window starts small and takes what it needs from one budget for all sessions, so that many stalled callers cannot
//! hold the rest up. Above [`OUTPUT_WINDOW`] it grows only where that helps: when the window was what held the command
//! back, and acknowledgements still come as promptly as ever. A slow reader's come later and later instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use malai_protocol::session::{OUTPUT_WINDOW, OUTPUT_WINDOW_MAX};

/// What every session has, budget or not.
const FLOOR: u64 = 64 * 1024;
/// The budget of all sessions together, beyond their floors.
const BUDGET: u64 = 64 * 1024 * 1024;

/// What is left for windows to grow.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    /// All of it.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(BUDGET)))
    }

    fn take(&self, bytes: u64) -> bool {
        let took = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        took.is_ok()
    }

    fn give(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The offsets of one session's output.
#[derive(Debug)]
pub(crate) struct Log {
    budget: Arc<Budget>,
    sent: u64,
    acked: u64,
    window: u64,
    /// One stretch of output whose way to the reader and back is being timed.
    probe: Option<(u64, Instant)>,
    fastest: Duration,
    held_back: bool,
}

impl Log {
    /// Nothing sent yet.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, sent: 0, acked: 0, window: FLOOR, probe: None, fastest: Duration::MAX, held_back: false }
    }

    /// How many bytes may be sent now. `idle`: all that was sent has left this process, so only the window holds back.
    pub(crate) fn room(&mut self, idle: bool) -> u64 {
        let on_its_way = self.sent - self.acked;
        while on_its_way >= self.window && self.window < OUTPUT_WINDOW && self.grow() {}
        if on_its_way >= self.window && idle {
            self.held_back = true;
        }
        self.window.saturating_sub(on_its_way)
    }

    /// Doubles the window if the budget allows it.
    fn grow(&mut self) -> bool {
        let grows = self.window < OUTPUT_WINDOW_MAX && self.budget.take(self.window);
        if grows {
            self.window *= 2;
        }
        grows
    }

    /// So many bytes were sent.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        if self.probe.is_none() {
            self.probe = Some((self.sent, Instant::now()));
            self.held_back = false;
        }
    }

    /// The reader has all up to `offset`. False when it cannot have that.
    pub(crate) fn ack(&mut self, offset: u64) -> bool {
        if offset > self.sent {
            return false;
        }
        self.acked = self.acked.max(offset);
        if let Some((upto, since)) = self.probe
            && self.acked >= upto
        {
            let took = since.elapsed();
            self.fastest = self.fastest.min(took);
            self.probe = None;
            // Never waiting for the budget: without it, it stays as it is.
            if self.held_back && took <= self.fastest * 2 {
                self.grow();
            }
        }
        if self.acked == self.sent {
            self.release();
        }
        true
    }

    fn release(&mut self) {
        self.budget.give(self.window - FLOOR);
        self.window = FLOOR;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all there is room for; returns how much.
    fn fill(log: &mut Log) -> u64 {
        let mut total = 0;
        loop {
            match log.room(true) {
                0 => return total,
                room => {
                    log.sent(room);
                    total += room;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_acknowledges_gets_one_window() {
        let mut log = Log::new(Budget::new());
        assert_eq!(fill(&mut log), OUTPUT_WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_long_fat_path_the_window_grows_to_its_maximum_and_no_further() {
        let mut log = Log::new(Budget::new());
        for _ in 0..20 {
            fill(&mut log);
            tokio::time::advance(Duration::from_millis(100)).await;
            // All but one byte, so that the window is not given back.
            assert!(log.ack(log.sent - 1));
        }
        fill(&mut log);
        assert_eq!(log.sent - log.acked, OUTPUT_WINDOW_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn for_a_reader_that_slows_down_the_window_stays() {
        let mut log = Log::new(Budget::new());
        log.sent(1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(log.ack(1));
        for _ in 0..20 {
            fill(&mut log);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(log.ack(log.sent - 1));
        }
        fill(&mut log);
        assert_eq!(log.sent - log.acked, OUTPUT_WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn when_stalled_sessions_hold_the_whole_budget_another_still_moves() {
        let budget = Budget::new();
        let mut stalled: Vec<Log> = (0..100).map(|_| Log::new(budget.clone())).collect();
        let total: u64 = stalled.iter_mut().map(fill).sum();
        assert!(total <= BUDGET + 100 * FLOOR, "{total}");
        assert!(fill(&mut Log::new(budget.clone())) >= FLOOR);
        drop(stalled);
        assert_eq!(budget.0.load(Ordering::Relaxed), BUDGET);
    }

    #[test]
    fn what_was_never_sent_cannot_be_acknowledged() {
        let mut log = Log::new(Budget::new());
        log.sent(10);
        assert!(!log.ack(11));
        assert!(log.ack(10));
        assert!(log.ack(3));
        assert_eq!(log.acked, 10);
    }
}
