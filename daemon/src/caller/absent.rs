//! CLIs that lost their attachment and have to come back: one whose process ends meanwhile has no socket that could tell,
//! so that the process itself is watched.
//!
//! On Linux only: elsewhere the target hears of such a caller by its grace.

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

/// How many are watched at once; of one more nothing is known until it comes back.
const MOST: usize = 4096;
/// How long one is watched: as long as sessions wait for their callers where the config does not say.
const WATCHED: Duration = Duration::from_secs(600);

/// A session, as one CLI follows it.
type Following = (SessionId, FollowerId);

/// All that are watched.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<Following, Watched>>);

#[derive(Debug)]
struct Watched {
    /// The attachment that was lost.
    number: u32,
    /// The CLI came back.
    back: CancellationToken,
}

impl Absent {
    fn lock(&self) -> MutexGuard<'_, HashMap<Following, Watched>> {
        self.0.lock()
    }

    /// Whether none is watched.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The CLI makes this attachment: it is there, and earlier ones count no more.
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
        if is_older || all.len() >= MOST {
            return None;
        }
        let back = CancellationToken::new();
        all.insert(key, Watched { number: gone.number, back: back.clone() });
        Some(back)
    }

    /// The watch of this attachment is over.
    fn over(&self, gone: &Gone) {
        let mut all = self.lock();
        let key = (gone.id, gone.follower);
        if all.get(&key).is_some_and(|watched| watched.number == gone.number) {
            all.remove(&key);
        }
    }
}

/// A process, by a name that no later one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    id: i32,
    /// When it started, as the system counts; absent where that cannot be read.
    started: Option<u64>,
}

impl Process {
    /// The process that has this id now.
    fn with(id: i32) -> Self {
        Self { id, started: started(id) }
    }

    /// Whether its id is another process's by now.
    fn is_over(&self) -> bool {
        self.started.is_some() && started(self.id) != self.started
    }
}

/// The process at the other end of this socket, which is there: it has just sent something.
pub(super) fn process(socket: &OwnedWriteHalf) -> Option<Process> {
    socket.as_ref().peer_cred().ok()?.pid().filter(|pid| *pid > 0).map(Process::with)
}

/// When the process with this id started, in clock ticks since the system did: proc_pid_stat(5), field 22.
fn started(id: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{id}/stat")).ok()?;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end..)?).ok()?;
    rest.split(' ').nth(20)?.parse().ok()
}

/// Has the target told, should the process end before it comes back.
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
                ended = timeout(WATCHED, ended(process)) => ended.is_ok(),
            }
        };
        let ended = duty::caught(watched).await.unwrap_or(false);
        caller.absent.over(&gone);
        if ended {
            farewell::keep(&caller, cluster, machine, gone);
        }
    });
}

/// Returns when this process has ended.
#[cfg(target_os = "linux")]
async fn ended(process: Process) {
    match exit::handle(process.id) {
        // The handle is of whichever process has the id: it was looked up late.
        Ok(_) if process.is_over() => {}
        Ok(handle) => exit::wait(handle).await,
        Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => {
            tracing::debug!("a CLI that lost its attachment cannot be watched: {error}");
            std::future::pending().await
        }
    }
}

#[cfg(not(target_os = "linux"))]
async fn ended(_process: Process) {
    std::future::pending().await
}

#[cfg(target_os = "linux")]
mod exit {
    use std::os::fd::{FromRawFd, OwnedFd};

    use nix::errno::Errno;
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// A descriptor that becomes readable when the process ends: pidfd_open(2).
    #[allow(unsafe_code, reason = "nix has no pidfd_open")]
    pub(super) fn handle(process: i32) -> Result<OwnedFd, Errno> {
        // SAFETY: takes two numbers, and returns a new descriptor or -1.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: it is new, and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    #[allow(unsafe_code, reason = "tokio asks that the descriptor is its own")]
    pub(super) async fn wait(handle: OwnedFd) {
        // SAFETY: the descriptor is owned by what is handed over, and closed with it.
        let readable = match unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) } {
            Ok(fd) => fd.readable().await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = readable {
            tracing::debug!("a CLI that lost its attachment cannot be watched: {error}");
            std::future::pending::<()>().await;
        }
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

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_process_is_watched_until_it_ends() {
        let mut child = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let process = Process::with(i32::try_from(child.id().unwrap()).unwrap());
        assert!(process.started.is_some() && !process.is_over());
        let mut ended = Box::pin(ended(process));
        assert!(timeout(Duration::from_millis(100), &mut ended).await.is_err(), "it runs");
        child.kill().await.unwrap();
        timeout(Duration::from_secs(20), ended).await.unwrap();
        assert!(process.is_over());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_process_whose_id_another_one_has_by_now_has_ended() {
        let child = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let this = Process::with(i32::try_from(child.id().unwrap()).unwrap());
        let earlier = Process { started: this.started.map(|ticks| ticks - 1), ..this };
        timeout(Duration::from_secs(20), ended(earlier)).await.unwrap();
    }
}
