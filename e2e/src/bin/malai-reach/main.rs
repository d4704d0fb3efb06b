//! Plays the table of networks and prints the results as a Markdown document.
//!
//! `malai-reach [--times N] [WORD]`: each row N times, one after the other, so that no row slows another. With a word,
//! only rows whose names contain it. Ends with 1 when a row failed. `scripts/reach` builds the
//! release binaries and writes docs/reach.md with it.

mod report;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use malai_e2e::lab::requirements;
use malai_e2e::reach::rows;

use report::Report;

/// How often each row is played without `--times`.
const DEFAULT_TIMES: usize = 3;

fn main() -> ExitCode {
    match play() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("malai-reach: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every row held.
fn play() -> Result<bool> {
    let missing = requirements::missing();
    ensure!(missing.is_empty(), "the lab of hosts cannot run here: {}", missing.join("; "));
    let (times, word) = wanted()?;
    let mut report = Report::new(times)?;
    for row in rows().iter().filter(|row| row.name.contains(&word)) {
        for _ in 0..times {
            let played = row.play();
            match &played {
                Ok(trips) => say(&format!("held: {}, {} trips", row.name, trips.len())),
                Err(error) => say(&format!("FAILED: {}\n{error:#}", row.name)),
            }
            report.played(&row.name, played);
        }
    }
    write!(std::io::stdout(), "{report}").context("cannot print the report")?;
    Ok(report.all_held())
}

/// Reads from the command line how often to play which rows.
fn wanted() -> Result<(usize, String)> {
    let (mut times, mut wanted) = (DEFAULT_TIMES, String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--times" => {
                let number = words.next().context("--times needs a number")?;
                times = number.parse().with_context(|| format!("{number} is no number of times"))?;
                ensure!((1..=100).contains(&times), "{times} times cannot be played");
            }
            option if option.starts_with('-') => bail!("there is no option {option}"),
            _ => wanted = word,
        }
    }
    Ok((times, wanted))
}

/// Prints a line about the progress.
fn say(line: &str) {
    // When standard error is closed, nobody reads it.
    drop(writeln!(std::io::stderr(), "{line}"));
}
