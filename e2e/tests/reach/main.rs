//! The table of networks, each row once: from which machine which other is reached, how soon, and by which way.

use std::io::Write as _;
use std::process::ExitCode;

use libtest_mimic::Trial;
use malai_e2e::{harness, reach};

fn main() -> ExitCode {
    harness::main_with(reach::rows().into_iter().map(trial).collect(), harness::MOSTLY_WAITING)
}

fn trial(row: reach::Row) -> Trial {
    let name = row.name.clone();
    Trial::test(name, move || {
        let trips = row.play().map_err(|error| format!("{error:?}"))?;
        let lines: Vec<String> = trips.iter().map(|trip| format!("    {trip}\n")).collect();
        // Its figures are for whoever watches, and nobody watches when standard error is closed.
        drop(write!(std::io::stderr(), "{}:\n{}", row.name, lines.concat()));
        Ok(())
    })
}
