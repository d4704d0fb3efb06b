//! The same commands, run by a shell on a machine and through malai from another one: every byte of both streams and
//! the exit status are equal.
//!
//! Each row is a trial of its own, by its name. All share one cluster of two hosts.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Trial;
use malai_e2e::harness;

mod endings;
mod input;
mod output;
mod row;
mod stage;
mod surroundings;
mod words;

use row::Row;
use stage::Stage;

fn main() -> ExitCode {
    let stage = Arc::new(OnceLock::new());
    let groups = [
        ("words", words::rows()),
        ("input", input::rows()),
        ("output", output::rows()),
        ("surroundings", surroundings::rows()),
        ("endings", endings::rows()),
    ];
    let mut trials = Vec::new();
    for (group, rows) in groups {
        trials.extend(rows.into_iter().map(|row| trial(group, row, Arc::clone(&stage))));
    }
    trials.push(in_turn("every_exit_code_comes_back_as_it_is", Arc::clone(&stage), endings::every_exit_code));
    trials.push(in_turn("every_signal_that_ends_a_command_is_told", stage, endings::every_signal));
    harness::main(trials)
}

/// Made by the first trial that needs it, gone with the last that holds it.
type Shared = Arc<OnceLock<Result<Stage, String>>>;

fn trial(group: &str, row: Row, stage: Shared) -> Trial {
    Trial::test(format!("{group}::{}", row.name()), move || {
        row.compare(open(&stage)?).map_err(|e| format!("{e:?}").into())
    })
}

fn in_turn(name: &str, stage: Shared, body: fn(&Stage) -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || body(open(&stage)?).map_err(|e| format!("{e:?}").into()))
}

fn open(stage: &Shared) -> Result<&Stage, String> {
    stage
        .get_or_init(|| Stage::open().map_err(|e| format!("the cluster is not there: {e:?}")))
        .as_ref()
        .map_err(Clone::clone)
}
