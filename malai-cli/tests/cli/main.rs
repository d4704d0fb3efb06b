//! The real binary, as a user and as a script see it.

mod commands;
mod daemon;
mod harness;
mod help;
mod input;
mod log;
mod meant;
mod offline;
mod owners;
mod relay;
mod secrecy;
mod session;
mod sessions;
mod units;
