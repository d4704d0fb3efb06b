//! Plays the fault table, then a soak of some hours if one is asked for, and prints the results as a Markdown document.
//!
//! `malai-stress [--full] [--hours N] [WORD]`: the table once in its short form, or five times in its full form; with
//! `--hours`, the soak after it. With a word, only rows whose names contain it. Ends with 1 when a row or the soak
//! failed. `scripts/stress` builds the release binaries and writes docs/reliability.md with it.

mod report;
mod table;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use malai_e2e::lab::requirements;
use malai_e2e::survival::{Evidence, Scale, soak};

use report::Report;

/// How often `--full` plays each row.
const FULL_TIMES: usize = 5;

/// Holds what the command line asks for.
#[derive(Debug, Default)]
struct Wanted {
    full: bool,
    hours: f64,
    word: String,
}

fn main() -> ExitCode {
    match stress() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("malai-stress: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything held.
fn stress() -> Result<bool> {
    let missing = requirements::missing();
    ensure!(missing.is_empty(), "the lab of hosts cannot run here: {}", missing.join("; "));
    let wanted = wanted()?;
    let (scale, times) = if wanted.full { (Scale::Full, FULL_TIMES) } else { (Scale::Short, 1) };
    let mut report = Report::new(times)?;
    table::play(scale, times, &wanted.word, &mut report);
    if wanted.hours > 0.0 {
        go_on(wanted.hours, &mut report)?;
    }
    write!(std::io::stdout(), "{report}").context("cannot print the report")?;
    Ok(report.all_held())
}

fn wanted() -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--full" => wanted.full = true,
            "--hours" => {
                let hours = words.next().context("--hours needs a number")?;
                wanted.hours = hours.parse().with_context(|| format!("{hours} is no number of hours"))?;
                ensure!(wanted.hours > 0.0 && wanted.hours < 1000.0, "{hours} hours cannot be waited for");
            }
            option if option.starts_with('-') => bail!("there is no option {option}"),
            _ => wanted.word = word,
        }
    }
    Ok(wanted)
}

fn go_on(hours: f64, report: &mut Report) -> Result<()> {
    // Each soak has its own seed, and prints it, so that a failure can be repeated.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    say(&format!("soak: {hours} h, seed {seed}"));
    let (mut rounds, mut all) = (0, Evidence::default());
    let soaked = soak::soak(Instant::now() + Duration::from_secs_f64(hours * 3600.0), seed, |round| {
        rounds += 1;
        all.add(round);
        say(&format!("soak: round {rounds}, {} messages", all.messages.len()));
    });
    report.soak(hours, rounds, all, soaked.err());
    Ok(())
}

/// Prints a line about the progress.
fn say(line: &str) {
    // When standard error is closed, nobody reads it.
    drop(writeln!(std::io::stderr(), "{line}"));
}
