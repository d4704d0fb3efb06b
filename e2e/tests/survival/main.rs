//! The fault table, each row once in its short form: a command goes on while networks, laptops and daemons fail under it.

use std::process::ExitCode;

use libtest_mimic::Trial;
use malai_e2e::harness;
use malai_e2e::survival::{self, Scale};

/// Rows side by side: nearly all of their time, they wait for the length of a fault.
const AT_ONCE: usize = 6;

fn main() -> ExitCode {
    let trial = |row: survival::Row| {
        let name = row.name.clone();
        Trial::test(name, move || row.play().map(drop).map_err(|error| format!("{error:?}").into()))
    };
    harness::main_with(survival::rows(Scale::Short).into_iter().map(trial).collect(), AT_ONCE)
}
