//! The places of those at the desk that have nothing to do there, yet or any more: whoever comes gets one, and when all
//! are taken the one that has had its own for the longest time loses it. So however many say nothing, they keep nobody
//! out that speaks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places, and who has them, the oldest first.
#[derive(Debug)]
pub(super) struct Silent {
    most: usize,
    taken: Mutex<VecDeque<Arc<CancellationToken>>>,
}

/// A place; its drop gives it back.
#[derive(Debug)]
#[must_use = "dropping the place gives it back"]
pub(super) struct Place<'a> {
    silent: &'a Silent,
    token: Arc<CancellationToken>,
}

impl Silent {
    /// So many places.
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<CancellationToken>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, the oldest one's if there is no other.
    pub(super) fn enter(&self) -> Place<'_> {
        let token = Arc::new(CancellationToken::new());
        let mut taken = self.lock();
        if taken.len() >= self.most
            && let Some(oldest) = taken.pop_front()
        {
            oldest.cancel();
        }
        taken.push_back(Arc::clone(&token));
        Place { silent: self, token }
    }
}

impl Place<'_> {
    /// Returns when another has the place.
    pub(super) async fn lost(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.silent.lock().retain(|token| !Arc::ptr_eq(token, &self.token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_loses_its_place_and_one_that_left_has_none_to_lose() {
        let silent = Silent::new(2);
        let (first, second) = (silent.enter(), silent.enter());
        let third = silent.enter();
        assert!(first.token.is_cancelled() && !second.token.is_cancelled());
        drop(second);
        let fourth = silent.enter();
        assert!(!third.token.is_cancelled() && !fourth.token.is_cancelled());
        drop(first);
        assert_eq!(silent.lock().len(), 2);
    }
}
