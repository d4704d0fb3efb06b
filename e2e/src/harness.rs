//! Runs trials that need the lab, and never passes over them in silence.

use std::io::Write as _;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::lab::{peers, requirements};

/// One test: its name is a claim, its body a story told with [`crate::lab`].
pub fn trial(name: &str, body: fn() -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || body().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// How many trials run at once where most of them wait: for a deadline of the network, for a host that boots.
pub const MOSTLY_WAITING: usize = 4;

/// The `main` of a test file: runs the trials, two at a time on two cores.
///
/// Where the lab cannot run (not root, a tool is missing) it says why on standard error. With `CI=true` that is a
/// failure; otherwise every trial is reported as ignored.
pub fn main(trials: Vec<Trial>) -> ExitCode {
    run(trials, &Arguments::from_args(), requirements::missing())
}

/// As [`main`], for trials that need the peers in other languages.
///
/// Where their packages are not installed, that is a failure, with the command that installs them. With an empty
/// `MALAI_PEERS` every trial is reported as ignored, unless `CI=true`.
pub fn main_with_peers(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(MOSTLY_WAITING));
    let mut missing = requirements::missing();
    let Some(why) = peers::missing() else { return run(trials, &arguments, missing) };
    let may_be_left_out = std::env::var_os("MALAI_PEERS").is_some_and(|path| path.is_empty());
    if !missing.is_empty() || may_be_left_out || arguments.list {
        missing.push(why);
        return run(trials, &arguments, missing);
    }
    // Nothing is left to report to when standard error itself is closed.
    drop(writeln!(std::io::stderr(), "failed: {why}"));
    ExitCode::FAILURE
}

/// As [`main`], with so many trials at once unless the command line says otherwise.
pub fn main_with(trials: Vec<Trial>, at_once: usize) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(at_once));
    run(trials, &arguments, requirements::missing())
}

fn run(trials: Vec<Trial>, arguments: &Arguments, missing: Vec<String>) -> ExitCode {
    if missing.is_empty() || arguments.list {
        return libtest_mimic::run(arguments, trials).exit_code();
    }
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut stderr = std::io::stderr().lock();
    let verdict = if in_ci { "failed" } else { "not run" };
    // Nothing is left to report to when standard error itself is closed.
    drop(writeln!(stderr, "{verdict}: the lab of hosts cannot run here: {}", missing.join("; ")));
    if in_ci {
        return ExitCode::FAILURE;
    }
    let ignored = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    libtest_mimic::run(arguments, ignored).exit_code()
}

/// Lists test functions as trials, each by its own name: `trials![first_claim, second_claim]`.
#[macro_export]
macro_rules! trials {
    ($($test:ident),* $(,)?) => { vec![$($crate::harness::trial(stringify!($test), $test)),*] };
}
