//! Processes that run until they are stopped: the daemon, the agent and the relay. How they run, what they say to a user
//! who starts them in the foreground, which signals they obey, and how they end.

pub(crate) mod daemon;

use std::time::Duration;

use malai_daemon::runtime::logging::Log;
use malai_daemon::runtime::{duty, secrecy};
use malai_protocol::failure::{Failure, Kind};
use sd_notify::NotifyState;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::client;
use crate::output::{self, Output};

/// Bounds how long a shutdown may take before the process ends without it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds how long a process waits at its end for its log to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a service on an event loop of its own. The process ends next, and with it what still waits for peers that do not
/// answer.
///
/// # Errors
/// The service's failure, or that the event loop cannot start.
pub(crate) fn run(log: &Log, service: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    with_log(log, || {
        secrecy::begin();
        let event_loop = client::event_loop(&mut Builder::new_multi_thread())?;
        let outcome = event_loop.block_on(service);
        std::mem::forget(event_loop);
        outcome
    })
}

/// Does the work of a process that logs, and waits for the log also when that ends by a panic: nothing else would wait
/// until the last lines are there.
pub(crate) fn with_log<T>(log: &Log, work: impl FnOnce() -> T) -> T {
    struct LastLines<'a>(&'a Log);
    impl Drop for LastLines<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.flush(LOG_FLUSH_TIMEOUT);
            }
        }
    }
    let _last_lines = LastLines(log);
    duty::watch_panics();
    work()
}

/// Waits until the log is written.
pub(crate) fn flush(log: &Log) {
    log.flush(LOG_FLUSH_TIMEOUT);
}

/// Tells the service manager that the service is stopping, and shuts it down.
pub(crate) async fn shut_down(shutdown: impl Future<Output = ()>) -> Result<(), Failure> {
    if let Err(e) = sd_notify::notify(&[NotifyState::Stopping]) {
        tracing::warn!(error = %e, "cannot notify the service manager");
    }
    timeout(SHUTDOWN_TIMEOUT, shutdown).await.map_err(|_| {
        let message = format!("the shutdown took longer than {} s and was cut short", SHUTDOWN_TIMEOUT.as_secs());
        Failure::new(Kind::Internal, message)
    })
}

/// Speaks to the user who runs a service in the foreground. The words go the way of the log, and so wait for no reader.
pub(crate) struct ForegroundVoice<'a> {
    pub(crate) log: &'a Log,
    pub(crate) out: Output,
}

impl ForegroundVoice<'_> {
    /// Writes a note.
    pub(crate) fn note(&self, text: &str) {
        self.log.say(output::note(text).as_bytes());
    }

    /// Waits until the log is written, reports a failure, and returns the exit code.
    pub(crate) fn end(&self, outcome: Result<u8, Failure>) -> u8 {
        flush(self.log);
        outcome.unwrap_or_else(|failure| {
            self.out.last_words(&failure);
            self.out.last_document(&failure);
            failure.kind.exit_code()
        })
    }
}

/// Receives the signals that a service obeys.
pub(crate) struct ServiceSignals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl ServiceSignals {
    /// Begins to receive them. From here on they do not end the process. SIGHUP is received even where it was ignored
    /// at the start.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { term, int, hup: signal(SignalKind::hangup())? })
    }

    /// Opens the log again at each SIGHUP. At SIGTERM or SIGINT it cancels, and returns.
    pub(crate) async fn follow(mut self, token: CancellationToken, log: Log) {
        // However this ends, the process can be stopped.
        let _stops = token.drop_guard();
        loop {
            tokio::select! {
                _ = self.term.recv() => break,
                _ = self.int.recv() => break,
                Some(()) = self.hup.recv() => log.reopen(),
            }
        }
    }
}
