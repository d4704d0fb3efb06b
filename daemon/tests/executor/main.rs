//! The executor over in-memory connections, with real child processes: what a session does, whatever its two ends do.

mod harness;

mod commands;
mod endings;
mod hostile;
mod records;
mod refusals;
mod resume;
mod stalls;
