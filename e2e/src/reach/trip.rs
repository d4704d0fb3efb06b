//! One command from one machine on another: when its first output came, and by which way the machines talk then.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, SOON, malai};
use crate::lab::{Host, Output};

/// Where a direct way exists, it is taken within so long after the command began.
pub const DIRECT: Duration = Duration::from_secs(10);
/// Between two looks at the way.
const LOOK: &str = "100ms";
/// As many answers by the relay, a tenth of a second apart, show that no direct way is taken.
const STAYS: u32 = 30;

/// One command, and the way that it takes.
#[derive(Debug, Clone)]
pub struct Trip {
    /// The caller, in a word or two.
    pub from: String,
    /// The target.
    pub to: String,
    /// From the start of the command until its first output, at the caller.
    pub first: Duration,
    /// How the machines talk.
    pub way: Way,
}

/// How two machines talk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// From address to address, so long after the start of the command, looked for every tenth of a second.
    Direct(Duration),
    /// By a relay, for good.
    Relayed,
    /// Nobody looked.
    Unknown,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, first, way } = self;
        write!(f, "{from} to {to}: first output after {:.2} s, ", first.as_secs_f64())?;
        match way {
            Way::Direct(after) => write!(f, "direct after {:.1} s", after.as_secs_f64()),
            Way::Relayed => write!(f, "by the relay"),
            Way::Unknown => write!(f, "by some way"),
        }
    }
}

/// Runs `hostname` from one host on another, which prove by their names that they are two, and returns the time to its first output.
///
/// # Errors
/// When it did not run there.
pub fn first_output(company: &Cluster, from: &Host, on: &Host) -> Result<Duration> {
    let begun = Instant::now();
    let child = company.spawn(from, on, &["hostname"])?;
    child.wait(SOON)?;
    child.wait_for_end_of_output(SOON)?;
    let [stdout, _] = child.arrivals();
    let output = child.output_within(SOON)?.success()?;
    ensure!(from.hostname() != on.hostname(), "{} is the same host", on.hostname());
    ensure!(output.text() == on.hostname(), "it ran on {}, not on {}", output.text(), on.hostname());
    Ok(stdout.first().context("it printed nothing")?.at.saturating_duration_since(begun))
}

/// A command to a machine that is reached at one of these addresses, without a relay.
///
/// # Errors
/// When it does not run there, or no direct way comes about within [`DIRECT`].
pub fn direct(company: &Cluster, from: &Host, on: &Host, addresses: &[IpAddr]) -> Result<Trip> {
    let begun = Instant::now();
    let first = first_output(company, from, on)?;
    let words = ["--json", "ping", "--interval", LOOK, "--until-direct", &company.target(on)];
    let ping = from.spawn(malai(words))?;
    ping.wait(DIRECT.saturating_sub(begun.elapsed()))
        .with_context(|| format!("no direct way from {} to {}", from.hostname(), on.hostname()))?;
    ping.wait_for_end_of_output(SOON)?;
    let ([arrivals, _], output) = (ping.arrivals(), ping.output_within(SOON)?.success()?);
    let after = arrivals.last().context("the ping printed nothing")?.at.saturating_duration_since(begun);
    let paths = paths(&output)?;
    let path = paths.last().context("no ping was answered")?;
    let address: SocketAddr = path
        .strip_prefix("direct ")
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("not direct: {path}"))?;
    let address = address.ip().to_canonical();
    ensure!(addresses.contains(&address), "{} is reached at {address}, not at {addresses:?}", on.hostname());
    Ok(Trip { from: from.hostname().into(), to: on.hostname().into(), first, way: Way::Direct(after) })
}

/// A command to a machine that only this relay reaches.
///
/// # Errors
/// When it does not run there, or another way is taken.
pub fn relayed(company: &Cluster, from: &Host, on: &Host, relay: &str) -> Result<Trip> {
    let first = first_output(company, from, on)?;
    let count = STAYS.to_string();
    let words = ["--json", "ping", "--interval", LOOK, "-c", &count, &company.target(on)];
    let paths = paths(&from.run(malai(words))?.success()?)?;
    let relay = format!("relay {relay}");
    for path in &paths {
        ensure!(*path == relay, "{} talks to {} by {path}, not by {relay}", from.hostname(), on.hostname());
    }
    ensure!(paths.len() * 2 > STAYS as usize, "only {} of {STAYS} pings were answered", paths.len());
    Ok(Trip { from: from.hostname().into(), to: on.hostname().into(), first, way: Way::Relayed })
}

/// The paths by which pings were answered.
fn paths(output: &Output) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for line in output.text().lines() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        paths.extend(line.get("path").and_then(Value::as_str).map(str::to_owned));
    }
    Ok(paths)
}
