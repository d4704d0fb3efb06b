//! How much memory sessions take in the executor that has them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use malai_e2e::cluster::{SOON, malai};
use malai_e2e::lab::{Child, wait_until};
use nix::sys::signal::Signal;

use crate::memory::mebibytes;
use crate::place::Place;
use crate::process::Process;
use crate::report::Report;

/// How many sessions run at once.
const SESSIONS: u64 = 100;
/// KiB that one may take, besides its part of the output log: 2.5 MiB.
const SESSION_BAR_KIB: u64 = 2560;
/// KiB of output that all of them together may keep.
const OUTPUT_LOG_KIB: u64 = 64 * 1024;
/// How long the executor may take until its memory grows no further.
const MEMORY_SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "Memory of sessions",
        "Growth of the executor's resident memory (its peak), by 100 attached commands that wait, and by 100 more that \
         print for ever to readers which stand still. Their output is kept in the log, of 64 MiB for all.",
    );
    let place = Place::open(None)?;
    // The executor is there after the first command.
    let first = wait(&place, "cat")?;
    let executor = Process::find(place.web01(), &["malai", "executor"])?;
    let before = executor.resident()?;
    let mut waiting = Vec::new();
    for _ in 0..SESSIONS {
        waiting.push(wait(&place, "cat")?);
    }
    let attached = executor.resident()?;
    row(report, "attached, waiting", attached.saturating_sub(before), 0);
    executor.forget_peak()?;
    for _ in 0..SESSIONS {
        let printing = wait(&place, "cat /dev/zero")?;
        printing.signal(Signal::SIGSTOP)?;
        waiting.push(printing);
    }
    let mut last = 0;
    wait_until(MEMORY_SETTLE_TIMEOUT, "the executor takes no more", || {
        let now = executor.resident().unwrap_or_default();
        std::mem::replace(&mut last, now) == now
    })?;
    let (_, peak) = executor.memory()?.context("the executor is gone")?;
    row(report, "attached, printing to nobody", peak.saturating_sub(attached), OUTPUT_LOG_KIB);
    drop((first, waiting));
    Ok(())
}

/// Starts a command that runs and is followed.
fn wait(place: &Place, command: &str) -> Result<Child> {
    let script = format!("echo ready >&2; exec {command}");
    let child = place.laptop().spawn(malai(["web01.company", "--", "sh", "-c", &script]).stdin_open())?;
    child.wait_for_error_line("ready", SOON)?;
    Ok(child)
}

fn row(report: &mut Report, what: &str, grown: u64, log: u64) {
    let measured = format!("{} each ({} for {SESSIONS})", mebibytes(grown / SESSIONS), mebibytes(grown));
    let bar = if log == 0 { "at most 2.5 MiB each" } else { "at most 2.5 MiB each, and 64 MiB of log" };
    report.barred(
        format!("executor, {SESSIONS} sessions {what}"),
        measured,
        bar,
        grown <= SESSION_BAR_KIB * SESSIONS + log,
    );
}
