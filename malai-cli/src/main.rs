//! The command `malai`.
//!
//! # Layout
//! From the top, and each module uses only those below it: [`commands`] has one file for each command; [`service`] is
//! what daemon, agent and relay have in common as processes; [`session`] follows one command on a machine, and asks about
//! others; [`args`] cuts the command line at the target; [`client`] asks the daemon, and starts an agent; [`background`]
//! starts processes that outlive this one; [`logging`] says what those log; [`output`] is the only file that prints.

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
mod service;
mod session;
mod stdio;
mod timestamp;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(commands::run(std::env::args_os().collect()))
}
