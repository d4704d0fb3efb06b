//! How much output is kept that was not acknowledged: with as much, the command is not read.
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

/// The room of one session's log.
#[derive(Debug)]
pub(crate) struct Window {
    budget: Arc<Budget>,
    size: u64,
    /// One stretch of output whose way to the reader and back is being timed.
    probe: Option<(u64, Instant)>,
    fastest: Duration,
    held_back: bool,
}

impl Window {
    /// The smallest.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, size: FLOOR, probe: None, fastest: Duration::MAX, held_back: false }
    }

    /// Its size now, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How much more may be read when so much is kept. `idle`: all of it has left this process, so only the window holds
    /// back.
    pub(crate) fn room(&mut self, kept: u64, idle: bool) -> u64 {
        while kept >= self.size && self.size < OUTPUT_WINDOW && self.grow() {}
        if kept >= self.size && idle {
            self.held_back = true;
        }
        self.size.saturating_sub(kept)
    }

    /// Doubles it if the budget allows that.
    fn grow(&mut self) -> bool {
        let grows = self.size < OUTPUT_WINDOW_MAX && self.budget.take(self.size);
        if grows {
            self.size *= 2;
        }
        grows
    }

    /// All up to there is on its way to the reader.
    pub(crate) fn handed(&mut self, upto: u64) {
        if self.probe.is_none() {
            self.probe = Some((upto, Instant::now()));
            self.held_back = false;
        }
    }

    /// The reader has all up to there.
    pub(crate) fn acked(&mut self, upto: u64) {
        if let Some((end, since)) = self.probe
            && upto >= end
        {
            let took = since.elapsed();
            self.fastest = self.fastest.min(took);
            self.probe = None;
            // Never waiting for the budget: without it, it stays as it is.
            if self.held_back && took <= self.fastest * 2 {
                self.grow();
            }
        }
    }

    /// Another way to the reader: what was timed on the old one says nothing.
    pub(crate) fn rerouted(&mut self) {
        (self.probe, self.fastest, self.held_back) = (None, Duration::MAX, false);
    }

    /// Gives back all that was taken from the budget: nothing is kept.
    pub(crate) fn release(&mut self) {
        self.budget.give(self.size - FLOOR);
        self.size = FLOOR;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Flow {
        window: Window,
        sent: u64,
        acked: u64,
    }

    impl Flow {
        fn new(budget: Arc<Budget>) -> Self {
            Self { window: Window::new(budget), sent: 0, acked: 0 }
        }

        /// Sends all there is room for; returns how much.
        fn fill(&mut self) -> u64 {
            let mut total = 0;
            loop {
                match self.window.room(self.sent - self.acked, true) {
                    0 => return total,
                    room => self.send(room),
                }
                total = total.max(self.sent - self.acked);
            }
        }

        fn send(&mut self, bytes: u64) {
            self.sent += bytes;
            self.window.handed(self.sent);
        }

        fn ack(&mut self, upto: u64) {
            self.acked = upto;
            self.window.acked(upto);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_acknowledges_gets_one_window() {
        assert_eq!(Flow::new(Budget::new()).fill(), OUTPUT_WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_long_fat_path_the_window_grows_to_its_maximum_and_no_further() {
        let mut flow = Flow::new(Budget::new());
        for _ in 0..20 {
            flow.fill();
            tokio::time::advance(Duration::from_millis(100)).await;
            flow.ack(flow.sent - 1);
        }
        flow.fill();
        assert_eq!(flow.sent - flow.acked, OUTPUT_WINDOW_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn for_a_reader_that_slows_down_the_window_stays() {
        let mut flow = Flow::new(Budget::new());
        flow.send(1);
        tokio::time::advance(Duration::from_millis(1)).await;
        flow.ack(1);
        for _ in 0..20 {
            flow.fill();
            tokio::time::advance(Duration::from_secs(1)).await;
            flow.ack(flow.sent - 1);
        }
        flow.fill();
        assert_eq!(flow.sent - flow.acked, OUTPUT_WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn when_stalled_sessions_hold_the_whole_budget_another_still_moves() {
        let budget = Budget::new();
        let mut stalled: Vec<Flow> = (0..100).map(|_| Flow::new(budget.clone())).collect();
        let total: u64 = stalled.iter_mut().map(Flow::fill).sum();
        assert!(total <= BUDGET + 100 * FLOOR, "{total}");
        assert!(Flow::new(budget.clone()).fill() >= FLOOR);
        drop(stalled);
        assert_eq!(budget.0.load(Ordering::Relaxed), BUDGET);
    }
}
