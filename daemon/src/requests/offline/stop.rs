//! Ends a daemon that holds its lock and does not answer at its socket, which may have been removed.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::plan::Ended;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::leave::write;
use crate::executor::process::tree::process;
use crate::runtime::blocking::blocking;
use crate::store::audit::Audit;
use crate::store::lock::{self, Attempt, Holder, Lock, Part};
use crate::supervisor::{Event, Executor};

/// Bounds how long a daemon that was signalled may take to let go of its lock: a shutdown takes 5 s, and one that is cut
/// short ends then.
const SIGNALLED_DAEMON_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds how many ends wait to be written down.
const MAX_QUEUED_ENDS: usize = 256;

/// Ends this holder of the lock by SIGTERM, and waits until the lock is free. It signals a process only when the system
/// itself says that the process holds the lock.
///
/// # Errors
/// When it is not known which process it is, when it may not be signalled, or when it stays.
pub async fn stop_by_signal(home: &Home, holder: &Holder) -> Result<(), Failure> {
    let (at, known) = (home.clone(), holder.clone());
    blocking(move || signal(&at, &known)).await?;
    let (at, known) = (home.clone(), holder.clone());
    match blocking(move || lock::wait_for_release(&at, &known, SIGNALLED_DAEMON_TIMEOUT)).await? {
        Some(now) if now.pid == holder.pid => Err(stays(&now)),
        // Free, or the next one's.
        _ => Ok(()),
    }
}

fn signal(home: &Home, holder: &Holder) -> Result<(), Failure> {
    let unknown = || {
        let text = format!(
            "{} holds {}, and the system does not say which process it is",
            holder.name(),
            home.lock().display()
        );
        Failure::new(Kind::Internal, text)
            .hint(format!("fuser -v {} shows it; end it by: kill PID", home.lock().display()))
    };
    let pid = holder.pid.and_then(|pid| i32::try_from(pid).ok()).ok_or_else(unknown)?;
    // First since when there is a process of this number: when it is another one's by the time of the signal, that one is
    // spared.
    let process = process::read(pid).ok_or_else(unknown)?;
    if !lock::is_held_by(home, pid) {
        return Err(unknown());
    }
    process.signal(Signal::SIGTERM).map_err(|errno| {
        Failure::new(Kind::Internal, format!("{} cannot be signalled: {errno}", holder.name()))
            .hint("run malai as the user that started it, or as root")
    })
}

fn stays(holder: &Holder) -> Failure {
    let kill = holder.pid.map_or_else(|| "kill -9 PID".to_owned(), |pid| format!("kill -9 {pid}"));
    let text = format!(
        "{} was told to end by SIGTERM, and still holds the lock after {} s",
        holder.name(),
        SIGNALLED_DAEMON_TIMEOUT.as_secs()
    );
    Failure::new(Kind::Internal, text).hint(format!("its sessions would go on: {kill}"))
}

/// Ends the sessions that a daemon has left, and the executor, where no daemon runs. Returns false when another daemon is
/// here by now, whose sessions they are.
///
/// # Errors
/// When the executor does not end, or an end cannot be written down.
pub async fn end_executor(home: &Home) -> Result<bool, Failure> {
    let at = home.clone();
    let Attempt::Taken(_lock) = blocking(move || Lock::try_take(&at, Part::Daemon)).await? else { return Ok(false) };
    let (sender, mut events) = mpsc::channel(MAX_QUEUED_ENDS);
    let Some(executor) = Executor::find(home, sender).await? else { return Ok(true) };
    let audit = Audit::open(home)?;
    for ended in &executor.sessions().ended {
        write_once(home, &audit, &executor, ended).await?;
    }
    let shutdown = executor.shutdown("the daemon on the target was stopped");
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            done = &mut shutdown => {
                while let Ok(Event::Ended(ended)) = events.try_recv() {
                    write(&audit, &executor, &ended, false).await?;
                }
                return done.map(|()| true);
            }
            Some(event) = events.recv() => if let Event::Ended(ended) = event {
                write(&audit, &executor, &ended, false).await?;
            },
        }
    }
}

/// Writes an end of which the daemon may have been told: it is in the audit once.
async fn write_once(home: &Home, audit: &Audit, executor: &Executor, ended: &Ended) -> Result<(), Failure> {
    let (at, asked) = (home.clone(), [ended.session]);
    let written = blocking(move || {
        crate::store::audit::unended(&at, &[], &asked)
            .map(|unended| !unended.written.is_empty())
            .map_err(|error| crate::store::disk_failure("read the audit", &at.audit(), &error))
    })
    .await?;
    write(audit, executor, ended, written).await
}
