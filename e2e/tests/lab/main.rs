//! The lab checks itself first: whatever it claims to simulate has to show.

use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use malai_e2e::harness;
use malai_e2e::lab::Host;

mod hosts;
mod routers;
mod services;
mod wires;

/// For what takes no time worth mentioning.
const SOON: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut trials = hosts::trials();
    trials.extend(wires::trials());
    trials.extend(routers::trials());
    trials.extend(services::trials());
    harness::main(trials)
}

/// Round trips in milliseconds, one for every answer.
fn ping(from: &Host, to: &Host, count: u32, interval: &str) -> Result<Vec<f64>> {
    let (count, to) = (count.to_string(), to.ip().to_string());
    let output = from.run(["ping", "-n", "-c", &count, "-i", interval, "-W", "1", &to])?;
    let times = output.text();
    let times = times.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
    times.map(|time| time.parse().with_context(|| format!("{time} is no time"))).collect()
}

/// A socket on a host at this port, and its address.
fn listen(host: &Host, port: u16) -> Result<(String, UdpSocket)> {
    let address = format!("{}:{port}", host.ip());
    let socket = host.inside(|| Ok(UdpSocket::bind(&address)?))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok((address, socket))
}
