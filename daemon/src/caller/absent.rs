//! CLIs that lost their attachment and have to come back: one whose process ends meanwhile has no socket that could tell,
//! so that the process itself is watched.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::id::{ClusterId, FollowerId, MachineId, SessionId};
use malai_protocol::peer::Gone;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Caller, farewell};
use crate::runtime::duty;
use crate::runtime::platform::Process;

/// Bounds the CLIs that are watched. Of a further one nothing is known until it comes back.
const MAX_WATCHED_CLIS: usize = 4096;
/// Sets how long a CLI is watched: as long as sessions wait for their callers where the config does not say.
const CLI_WATCH_TIME: Duration = Duration::from_secs(600);

/// Names a session as one CLI follows it.
type Following = (SessionId, FollowerId);

/// Holds the CLIs that are watched.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<Following, Watched>>);

#[derive(Debug)]
struct Watched {
    /// Numbers the attachment that was lost.
    number: u32,
    /// Is cancelled when the CLI comes back.
    back: CancellationToken,
}

impl Absent {
    fn lock(&self) -> MutexGuard<'_, HashMap<Following, Watched>> {
        self.0.lock()
    }

    /// Returns whether none is watched.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Notes that the CLI makes this attachment: it is there, and earlier ones count no more.
    pub(super) fn returned(&self, gone: &Gone) {
        let mut all = self.lock();
        let key = (gone.id, gone.follower);
        if all.get(&key).is_some_and(|watched| watched.number < gone.number)
            && let Some(watched) = all.remove(&key)
        {
            watched.back.cancel();
        }
    }

    /// Begins to watch. `None` when too many are, or a later attachment is.
    fn lost(&self, gone: &Gone) -> Option<CancellationToken> {
        let mut all = self.lock();
        let key = (gone.id, gone.follower);
        let is_older = all.get(&key).is_some_and(|watched| watched.number >= gone.number);
        if is_older || all.len() >= MAX_WATCHED_CLIS {
            return None;
        }
        let back = CancellationToken::new();
        all.insert(key, Watched { number: gone.number, back: back.clone() });
        Some(back)
    }

    /// Ends the watch of this attachment.
    fn over(&self, gone: &Gone) {
        let mut all = self.lock();
        let key = (gone.id, gone.follower);
        if all.get(&key).is_some_and(|watched| watched.number == gone.number) {
            all.remove(&key);
        }
    }
}

/// Returns the process at the other end of this socket, which is there: it has just sent something.
pub(super) fn process(socket: &OwnedWriteHalf) -> Option<Process> {
    socket.as_ref().peer_cred().ok()?.pid().filter(|pid| *pid > 0).map(Process::with)
}

/// Has the target told if the process ends before the CLI comes back.
pub(super) fn watch(
    caller: &Arc<Caller>,
    cluster: ClusterId,
    machine: MachineId,
    gone: Gone,
    process: Option<Process>,
) {
    let Some(process) = process else { return };
    let Some(back) = caller.absent.lost(&gone) else { return };
    let (caller, tasks) = (Arc::clone(caller), caller.tasks.clone());
    let stop = caller.farewells.stopped();
    tasks.spawn(async move {
        let watched = async {
            tokio::select! {
                () = stop.cancelled() => false,
                () = back.cancelled() => false,
                ended = timeout(CLI_WATCH_TIME, ended(process)) => ended.is_ok(),
            }
        };
        let ended = duty::caught(watched).await.unwrap_or(false);
        caller.absent.over(&gone);
        if ended {
            farewell::keep(&caller, cluster, machine, gone);
        }
    });
}

/// Returns when this process has ended; never where the system does not watch it.
async fn ended(process: Process) {
    if let Err(error) = process.ended().await {
        tracing::debug!("a CLI that lost its attachment cannot be watched: {error}");
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(number: u32) -> Gone {
        Gone { owner: None, id: SessionId::from_bytes([1; 16]), follower: FollowerId::from_bytes([2; 16]), number }
    }

    #[test]
    fn only_a_later_attachment_ends_the_watch() {
        let absent = Absent::default();
        let back = absent.lost(&gone(2)).expect("nothing is watched yet");
        absent.returned(&gone(2));
        absent.returned(&gone(1));
        assert!(!back.is_cancelled());
        assert!(absent.lost(&gone(1)).is_none(), "an earlier one that is lost later");
        absent.returned(&gone(3));
        assert!(back.is_cancelled());
        assert!(absent.is_empty());
    }

    #[test]
    fn the_watch_of_an_earlier_attachment_does_not_end_that_of_a_later_one() {
        let absent = Absent::default();
        absent.lost(&gone(1)).expect("nothing is watched yet");
        absent.lost(&gone(2)).expect("a later one");
        absent.over(&gone(1));
        assert!(!absent.is_empty());
        absent.over(&gone(2));
        assert!(absent.is_empty());
    }
}
