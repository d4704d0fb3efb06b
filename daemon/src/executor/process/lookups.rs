//! Bounds questions to the system's user database: a directory service behind it may not answer for minutes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use malai_protocol::failure::{Failure, Kind};

/// Bounds how long a lookup may take, with its wait for a place.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);
/// Bounds the lookups at once. Each holds a thread for as long as the database does not answer.
const MAX_LOOKUPS: usize = 64;

/// Holds the places for lookups.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// Places for the executor's own user: what root runs as root must not wait for a directory service that knows
    /// other users.
    own: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { own: Arc::new(Semaphore::new(MAX_LOOKUPS)), others: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Lookups {
    /// Does work that looks this user up, on a thread that may block. When it takes too long it is given up, and keeps
    /// its place until the thread is done.
    ///
    /// # Errors
    /// What the work says; [`Kind::Busy`] when the database does not answer in time.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        user: Option<&str>,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + LOOKUP_TIMEOUT;
        let places = if user.is_some() { &self.others } else { &self.own };
        let asking = async {
            // It is never closed.
            let place = Arc::clone(places).acquire_owned().await;
            let asked = tokio::task::spawn_blocking(move || {
                let answer = work();
                drop(place);
                answer
            });
            asked.await.unwrap_or_else(|error| {
                Err(Failure::new(Kind::Internal, format!("the command was not prepared: {error}")))
            })
        };
        timeout_at(deadline, asking).await.unwrap_or_else(|_| {
            let message =
                format!("the user database of that machine did not answer within {} s", LOOKUP_TIMEOUT.as_secs());
            let name = user.unwrap_or("root");
            Err(Failure::new(Kind::Busy, message)
                .hint(format!("look there whether it answers: `getent passwd '{name}'`; then try again")))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_hangs_is_given_up_and_its_place_is_free_when_it_ends() {
        let lookups = Lookups::default();
        let (end, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        let hang = || {
            let hangs = Arc::clone(&hangs);
            lookups.ask(Some("alice"), move || {
                let _ended = hangs.lock().expect("no panic").recv();
                Ok(())
            })
        };
        let mut hung = Box::pin(futures_util::future::join_all((0..MAX_LOOKUPS).map(|_| hang())));
        let mut waits = Box::pin(lookups.ask(Some("bob"), || Ok(1)));
        assert!((&mut hung).now_or_never().is_none() && (&mut waits).now_or_never().is_none());
        tokio::time::advance(LOOKUP_TIMEOUT).await;
        for answer in hung.await {
            let failure = answer.expect_err("it hangs");
            assert_eq!(failure.kind, Kind::Busy);
            assert!(failure.hint.is_some_and(|hint| hint.contains("getent passwd 'alice'")));
        }
        assert_eq!(waits.await.expect_err("no thread is left for it").kind, Kind::Busy);
        assert_eq!(lookups.ask(None, || Ok(2)).await, Ok(2), "the own user has places of its own");
        drop(end);
        tokio::time::resume();
        assert_eq!(lookups.ask(Some("bob"), || Ok(3)).await, Ok(3));
    }

    #[tokio::test]
    async fn what_the_work_says_is_what_comes_and_a_fault_is_no_silence() {
        let lookups = Lookups::default();
        let failure = Failure::new(Kind::NoUser, "no");
        let said = failure.clone();
        assert_eq!(lookups.ask::<()>(Some("alice"), move || Err(said)).await, Err(failure));
        let fault = lookups.ask::<()>(None, || panic!("a fault")).await;
        assert_eq!(fault.expect_err("a fault").kind, Kind::Internal);
    }
}
