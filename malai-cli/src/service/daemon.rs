//! The process of a daemon, or of an agent.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use malai_daemon::runtime::logging::Log;
use malai_daemon::{Daemon, Options};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use sd_notify::NotifyState;

use super::{ForegroundVoice, ServiceSignals, flush, run, shut_down};
use crate::background::{self, Report};
use crate::logging::{self, LOG_DEFAULT_FILTER};
use crate::output::Output;

/// Serves in the foreground, and returns the exit code.
pub(crate) fn serve_in_foreground(home: &Home, out: Output) -> u8 {
    let log = Log::to_stderr();
    let voice = ForegroundVoice { log: &log, out };
    // What is wrong with the filter is in that log.
    logging::start(&log, LOG_DEFAULT_FILTER);
    let outcome = run(
        &log,
        serve(home, false, &log, |report| {
            match report {
                Report::Warning(words) => voice.note(&format!("warning: {words}")),
                Report::Ready { pid } => voice.note(&format!("daemon ready, pid {pid}")),
                Report::Failed(_) => {}
            }
            Ok(())
        }),
    );
    voice.end(outcome)
}

/// Serves in a process of [`background::Child::start`], and reports to its parent.
///
/// # Errors
/// Why it could not run. The parent gets it too, if it still waits.
pub(crate) fn serve_in_background(home: &Home, agent: bool) -> Result<u8, Failure> {
    background::detach()?;
    let log = Log::to_file(home);
    let wrong = logging::start(&log, LOG_DEFAULT_FILTER);
    report_log(home, &log, wrong)?;
    let mut is_ready = false;
    let outcome = run(
        &log,
        serve(home, agent, &log, |report| {
            background::send_report(report)?;
            if matches!(report, Report::Ready { .. }) {
                background::close_reports()?;
                is_ready = true;
            }
            Ok(())
        }),
    );
    if let Err(failure) = &outcome {
        if is_ready {
            tracing::error!("it ends: {failure}");
        } else {
            // A parent that does not get it sees the end of the pipe, and says so.
            drop(background::send_report(&Report::Failed(failure.clone())));
        }
    }
    flush(&log);
    outcome
}

/// Reports to the parent what is wrong with the log. A daemon runs all the same.
fn report_log(home: &Home, log: &Log, wrong: Option<String>) -> Result<(), Failure> {
    let lost = log.lost().map(|lost| format!("the log {} cannot be written: {}", home.log().display(), lost.why));
    let mut reports = wrong.into_iter().chain(lost).map(Report::Warning);
    reports.try_for_each(|report| background::send_report(&report)).map_err(|e| cannot_report(&e))
}

fn cannot_report(e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("cannot report how the daemon starts: {e}"))
}

/// Binds, runs until it is stopped, and shuts down. `report` gets how far it came.
async fn serve(
    home: &Home,
    agent: bool,
    log: &Log,
    mut report: impl FnMut(&Report) -> io::Result<()>,
) -> Result<u8, Failure> {
    let executor = Some(executor_program(home)?);
    let options = Options { home: home.clone(), agent, executor, log: Some(log.clone()) };
    // From here on a signal stops the daemon in good order, also while it still binds.
    let signals = ServiceSignals::listen().map_err(|e| cannot_report(&e))?;
    let daemon = Daemon::bind(options).await?;
    let watch = tokio::spawn(signals.follow(daemon.stop_token(), log.clone()));
    let mut reports = daemon.warnings().into_iter().map(Report::Warning);
    reports.try_for_each(|warning| report(&warning)).map_err(|e| cannot_report(&e))?;
    let ready = report(&Report::Ready { pid: std::process::id() });
    if let Err(e) = ready.and_then(|()| sd_notify::notify(&[NotifyState::Ready])) {
        drop(shut_down(daemon.shutdown()).await);
        return Err(cannot_report(&e));
    }
    let (stopped, served) = daemon.run().await;
    let shut = shut_down(stopped.shutdown()).await;
    watch.abort();
    served?;
    shut.map(|()| 0)
}

/// Returns program and arguments that start an executor for this home.
fn executor_program(home: &Home) -> Result<(PathBuf, Vec<OsString>), Failure> {
    Ok((background::program()?, vec!["executor".into(), "--home".into(), home.root().into()]))
}
