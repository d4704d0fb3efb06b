//! The executor over in-memory connections, with real child processes: what a session does, whatever its two ends do.

mod harness;
#[path = "../support/pipes.rs"]
mod pipes;
#[path = "../support/plan.rs"]
mod plan;
#[path = "../support/process.rs"]
mod process;

mod attach;
mod commands;
mod detached;
mod endings;
mod hostile;
mod model;
mod records;
mod refusals;
mod resume;
mod stalls;
