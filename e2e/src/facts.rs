//! What figures depend on, for the tables at the head of the pages that they are written to.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Name and value of each: when, of what, on how many processors, beside what else.
///
/// # Errors
/// When the system does not tell.
pub fn facts() -> Result<Vec<(&'static str, String)>> {
    let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let cores = std::thread::available_parallelism().context("how many processors?")?;
    Ok(vec![
        ("date", said_by(&["date", "-u", "+%F %H:%M UTC"])?),
        ("malai", said_by(&["git", "describe", "--always", "--dirty"])?),
        ("processors", cores.to_string()),
        ("load before (1, 5, 15 min)", load.join(", ")),
    ])
}

/// What a program prints, without the white space around it.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn said_by(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no words")?;
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{words:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
