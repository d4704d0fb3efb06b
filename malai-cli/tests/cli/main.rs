//! The real binary, as a user and as a script see it.

mod commands;
mod daemon;
mod harness;
mod help;
mod offline;
mod session;
mod sessions;
