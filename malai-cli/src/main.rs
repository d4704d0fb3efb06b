//! The command `malai`.
//!
//! # Layout
//! [`args`] cuts the command line at the target; [`commands`] has one file for each command; [`client`] talks to the
//! daemon; [`session`] follows one command on a machine, and asks about others; [`background`] starts the daemon and the
//! agent; [`logging`] says what those log; [`output`] is the only file that prints.

mod args;
mod background;
mod client;
mod commands;
mod duration;
mod escape;
mod home;
mod logging;
mod output;
mod platform;
mod random;
mod session;
mod stdio;
mod timestamp;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(commands::run(std::env::args_os().collect()))
}
