//! Measures what malai promises, on hosts of the lab, and prints the figures as a Markdown document.
//!
//! `scripts/figures` builds the release binaries and writes docs/figures.md with it. Ends with 1 when a bar is missed.
//!
//! # Layout
//! [`report`] the document; [`place`] the hosts; [`ssh`] what malai is compared with; [`process`] what the kernel says
//! of a process; [`warm`], [`input`], [`memory`], [`throughput`], [`idle`], [`sessions`] the measurements.

mod idle;
mod input;
mod memory;
mod place;
mod process;
mod report;
mod sessions;
mod ssh;
mod throughput;
mod warm;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use malai_e2e::lab::requirements;

use report::Report;

/// Adds the figures of one measurement to the report.
type Measure = fn(&mut Report) -> Result<()>;

/// All measurements, by the word that selects one on the command line.
const MEASURES: [(&str, Measure); 6] = [
    ("idle", idle::measure),
    ("warm", warm::measure),
    ("input", input::measure),
    ("throughput", throughput::measure),
    ("memory", memory::measure),
    ("sessions", sessions::measure),
];

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // When standard error is closed, nobody reads it.
            drop(writeln!(std::io::stderr(), "malai-figures: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all bars are met.
fn measure() -> Result<bool> {
    let missing = requirements::missing();
    ensure!(missing.is_empty(), "the lab of hosts cannot run here: {}", missing.join("; "));
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let unknown = wanted.iter().find(|word| !MEASURES.iter().any(|(name, _)| name == word));
    ensure!(unknown.is_none(), "there is no measurement {unknown:?}");
    let mut report = Report::new()?;
    for (name, measure) in MEASURES {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            report.progress(name);
            measure(&mut report).with_context(|| format!("measuring {name}"))?;
        }
    }
    write!(std::io::stdout(), "{report}").context("cannot print the figures")?;
    Ok(report.all_met())
}
