//! Keeps up duties: tasks on which other parts rely for as long as those run. A panic would silently end a task, and
//! with it what the task is there for. A duty begins again instead.
//!
//! Panics of all tasks and threads are counted, and logged with the place where they happened.

use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Sets the first pause before a duty begins again. Later ones double.
const RESTART_MIN_INTERVAL: Duration = Duration::from_millis(500);
/// Bounds that pause. A fault that comes back at once must not use up a processor.
const RESTART_MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Sets how long a duty has to work for its next pause to be the first one again.
const RESTART_FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// Counts the panics of this process.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Has every panic of this process counted and logged from now on. Doing so twice changes nothing.
pub fn watch_panics() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            if tracing::enabled!(tracing::Level::ERROR) {
                let thread = std::thread::current();
                tracing::error!(thread = thread.name(), "a fault in malai, please report it: {panic}");
            } else {
                before(panic);
            }
        }));
    });
}

/// Returns how many panics there were in this process since [`watch_panics`].
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Does a duty to its end, and begins it again, after a pause, whenever it panics before that and before `stop`.
pub(crate) async fn keep<F: Future<Output = ()>>(
    name: &'static str,
    stop: CancellationToken,
    mut begin: impl FnMut() -> F,
) {
    let mut pause = RESTART_MIN_INTERVAL;
    loop {
        let begun = Instant::now();
        // What a duty shares with others is behind locks that a panic does not close, and behind channels.
        if AssertUnwindSafe(async { begin().await }).catch_unwind().await.is_ok() {
            return;
        }
        if begun.elapsed() >= RESTART_FORGET_INTERVAL {
            pause = RESTART_MIN_INTERVAL;
        }
        tracing::error!(duty = name, "failed because of a fault in malai; starting again in {} ms", pause.as_millis());
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(RESTART_MAX_INTERVAL);
    }
}

/// Does the work, and returns `None` when it panics. This is for a task that has to clear something away afterwards in
/// any case.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_duty_that_panics_begins_again_and_every_panic_is_counted() {
        watch_panics();
        let (before, tries) = (panics(), Cell::new(0));
        keep("test", CancellationToken::new(), || {
            tries.set(tries.get() + 1);
            let number = tries.get();
            async move {
                tokio::task::yield_now().await;
                assert!(number > 3, "a fault");
            }
        })
        .await;
        assert_eq!(tries.get(), 4);
        assert!(panics() >= before + 3, "{} after {before}", panics());
    }

    #[tokio::test(start_paused = true)]
    async fn a_duty_that_panics_at_once_pauses_longer_and_longer_up_to_half_a_minute() {
        let (mut begun, tries) = (Vec::new(), Cell::new(0));
        keep("test", CancellationToken::new(), || {
            begun.push(Instant::now());
            tries.set(tries.get() + 1);
            let number = tries.get();
            async move { assert!(number >= 10, "a fault") }
        })
        .await;
        let pauses: Vec<_> = begun.windows(2).map(|two| (two[1] - two[0]).as_millis().div_ceil(100)).collect();
        assert_eq!(pauses[..6], [5, 10, 20, 40, 80, 160]);
        assert!(pauses[6..].iter().all(|pause| (300..=301).contains(pause)), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stops_does_not_begin_again() {
        let (stop, tries) = (CancellationToken::new(), Cell::new(0));
        stop.cancel();
        keep("test", stop, || {
            tries.set(tries.get() + 1);
            async { panic!("a fault") }
        })
        .await;
        assert_eq!(tries.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_in_a_task_or_thread_of_its_own_is_counted_too() {
        watch_panics();
        let before = panics();
        assert!(tokio::spawn(async { panic!("a fault") }).await.is_err());
        assert!(tokio::task::spawn_blocking(|| panic!("a fault")).await.is_err());
        assert!(caught::<()>(async { panic!("a fault") }).await.is_none());
        assert!(panics() >= before + 3);
    }
}
