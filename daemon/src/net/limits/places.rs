//! Gives places to connections that have not shown yet what they want. Each newcomer gets one, and when all are taken,
//! the one that has had its place for the longest time loses it. So the silent ones, however many, keep out none that
//! speaks.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Holds the places, and who has them, the oldest first.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    taken: Mutex<VecDeque<Arc<CancellationToken>>>,
}

/// Is a place; its drop gives it back.
#[derive(Debug)]
#[must_use = "dropping the place gives it back"]
pub(crate) struct Place {
    places: Arc<Places>,
    token: Arc<CancellationToken>,
}

impl Places {
    /// Makes this many places.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<CancellationToken>>> {
        self.taken.lock()
    }

    /// Returns how many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().len()
    }

    /// Takes a place, the oldest one's if there is no other.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let token = Arc::new(CancellationToken::new());
        let mut taken = self.lock();
        if taken.len() >= self.most
            && let Some(oldest) = taken.pop_front()
        {
            oldest.cancel();
        }
        taken.push_back(Arc::clone(&token));
        Place { places: Arc::clone(self), token }
    }
}

impl Place {
    /// Returns when another has the place.
    pub(crate) async fn lost(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().retain(|token| !Arc::ptr_eq(token, &self.token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_loses_its_place_and_one_that_left_has_none_to_lose() {
        let places = Places::new(2);
        let (first, second) = (places.enter(), places.enter());
        let third = places.enter();
        assert!(first.token.is_cancelled() && !second.token.is_cancelled());
        drop(second);
        let fourth = places.enter();
        assert!(!third.token.is_cancelled() && !fourth.token.is_cancelled());
        drop(first);
        assert_eq!(places.lock().len(), 2);
    }
}
