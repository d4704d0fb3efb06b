//! Threads that look through /proc. An executor process starts them before they are needed: where a command has used up all
//! processes that the system allows, no thread can start to end it.

use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::oneshot;

/// Sets the number of threads, and so how many endings look at the same time.
pub(crate) const WORKER_COUNT: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

static WORK: OnceLock<Sender<Work>> = OnceLock::new();

/// Starts the threads, once for this process.
pub(crate) fn start() {
    WORK.get_or_init(|| {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WORKER_COUNT {
            let receiver = receiver.clone();
            let started = std::thread::Builder::new().name("endings".into()).spawn(move || serve(&receiver));
            if let Err(error) = started {
                tracing::warn!(%error, "a thread that ends sessions could not be started");
            }
        }
        sender
    });
}

fn serve(receiver: &Mutex<Receiver<Work>>) {
    loop {
        let work = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = work else {
            return;
        };
        // Its caller hears of a panic by the answer that does not come.
        drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
    }
}

/// Runs this on one of the threads; returns `None` when it panics.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let Some(threads) = WORK.get() else {
        return tokio::task::spawn_blocking(work).await.ok();
    };
    let (sender, receiver) = oneshot::channel();
    let work: Work = Box::new(move || {
        // The caller may be gone.
        drop(sender.send(work()));
    });
    threads.send(work).ok()?;
    receiver.await.ok()
}

/// Gives this process a larger share of the processors while it exists, if root allows: it has to catch processes that fork
/// and leave, and to collect their statuses, beside hundreds of them that want a processor as well.
///
/// Linux shares processors between kernel sessions (autogroup), so this process's session gets more, and no session that it
/// starts does.
#[derive(Debug)]
pub(crate) struct Haste;

/// Counts the endings in haste, and holds the nice level that was in force before the first.
static HASTE: Mutex<(usize, Option<i32>)> = Mutex::new((0, None));
/// Sets the nice level of the whole session during haste.
const HASTY_NICE_LEVEL: i32 = -15;

impl Haste {
    /// Raises the share, if this is the first.
    pub(crate) fn new() -> Self {
        let mut haste = HASTE.lock().unwrap_or_else(PoisonError::into_inner);
        if haste.0 == 0 {
            haste.1 = weight();
            weigh(haste.1.map(|before| before.min(HASTY_NICE_LEVEL)));
        }
        haste.0 += 1;
        Self
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        let mut haste = HASTE.lock().unwrap_or_else(PoisonError::into_inner);
        haste.0 -= 1;
        if haste.0 == 0 {
            weigh(haste.1.take());
        }
    }
}

/// Returns the nice level in force, if this process leads its session: only then it has the level to itself.
fn weight() -> Option<i32> {
    let leads = nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::getpid());
    if !leads {
        return None;
    }
    // As in `/autogroup-7 nice 0`; it is not there where the kernel has none.
    fs::read_to_string("/proc/self/autogroup").ok()?.split_whitespace().last()?.parse().ok()
}

/// Sets the session's nice level; without root nothing changes.
fn weigh(nice: Option<i32>) {
    if let Some(nice) = nice
        && let Err(error) = fs::write("/proc/self/autogroup", nice.to_string())
    {
        tracing::debug!(%error, nice, "this session's share of the processors stays");
    }
}
