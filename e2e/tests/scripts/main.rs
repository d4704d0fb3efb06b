//! The scripts that try malai between several hosts, themselves tried on hosts of the lab.

use std::process::ExitCode;

use malai_e2e::harness;

mod cloud;
mod digitalocean;
mod multi_server;
mod stage;
mod two_hosts;

fn main() -> ExitCode {
    let mut trials = two_hosts::trials();
    trials.extend(digitalocean::trials());
    trials.extend(multi_server::trials());
    harness::main_with(trials, harness::MOSTLY_WAITING)
}
