//! Clusters of hosts, from invite to exit code, each host with its own name, files and addresses.
//!
//! A test that runs a command on *another* machine proves that it was another: its output carries that host's own name.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use malai_e2e::cluster::{Cluster, SOON};
use malai_e2e::harness;
use malai_e2e::lab::{Child, Host, Lab, Output, Segment};
use nix::sys::signal::Signal;

mod access;
mod accounts;
mod agent;
mod audit;
mod connect;
mod detached;
mod disk;
mod dns;
mod doctor;
mod exit_codes;
mod field;
mod input;
mod journey;
mod knocks;
mod lifecycle;
mod network;
mod offline;
mod ping;
mod proxy;
mod publish;
mod relay;
mod relays;
mod removed;
mod signals;
mod spread;
mod status;
mod streams;
mod twins;
mod vanishing;
mod ways;
mod weather;
mod words;

fn main() -> ExitCode {
    let mut trials = journey::trials();
    for module in [
        knocks::trials(),
        detached::trials(),
        disk::trials(),
        exit_codes::trials(),
        field::trials(),
        words::trials(),
        streams::trials(),
        input::trials(),
        signals::trials(),
        vanishing::trials(),
        access::trials(),
        audit::trials(),
        twins::trials(),
        publish::trials(),
        spread::trials(),
        agent::trials(),
        lifecycle::trials(),
        network::trials(),
        relay::trials(),
        relays::trials(),
        ping::trials(),
        proxy::trials(),
        removed::trials(),
        status::trials(),
        offline::trials(),
        doctor::trials(),
        ways::trials(),
        dns::trials(),
        connect::trials(),
        weather::trials(),
        accounts::trials(),
    ] {
        trials.extend(module);
    }
    harness::main_with(trials, harness::MOSTLY_WAITING)
}

/// A private cluster on one segment: laptop, its manager, and further machines, each joined and with a daemon.
struct Office<const N: usize> {
    company: Cluster,
    machines: [Host; N],
    lan: Segment,
    lab: Lab,
}

impl<const N: usize> Office<N> {
    fn open(machines: [&str; N]) -> Result<Self> {
        let lab = Lab::new("office")?;
        let lan = lab.segment("lan")?;
        let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
        let mut hosts = Vec::new();
        for name in machines {
            let host = lab.host(name).on(&lan).boot()?;
            company.join(&host)?;
            hosts.push(host);
        }
        let Ok(machines) = <[Host; N]>::try_from(hosts) else { anyhow::bail!("a host is missing") };
        Ok(Self { company, machines, lan, lab })
    }

    fn laptop(&self) -> &Host {
        self.company.manager()
    }
}

/// A session goes on: a signal still reaches its command, whose record still comes.
fn goes_on(session: Child) -> Result<()> {
    ensure!(!session.has_ended(), "it ended: {}", String::from_utf8_lossy(&session.stderr()));
    session.signal(Signal::SIGINT)?;
    session.output_within(SOON)?.exited(130)?;
    Ok(())
}

/// Checks how a command ended and that malai's own words on standard error hold all of these.
fn told(output: Output, code: i32, words: &[&str]) -> Result<Output> {
    let output = output.exited(code)?;
    let errors = output.error_text();
    for word in words {
        ensure!(errors.contains(word), "standard error does not say {word:?}:\n{errors}");
    }
    Ok(output)
}
