//! A command on a machine to which a connection is there already, over a long wire and over none.

use std::time::Duration;

use anyhow::{Context as _, Result};
use malai_e2e::lab::Wire;

use crate::place::{Place, median, millis, timed};
use crate::report::Report;
use crate::ssh::Ssh;

pub(crate) const RUNS: usize = 20;
/// How many commands run before those that are measured.
pub(crate) const WARM_UP_RUNS: usize = 3;
/// What the long wire takes each way.
pub(crate) const DELAY_MS: u64 = 50;
/// How many round trips a command may take.
const ROUND_TRIPS_BAR: f64 = 1.3;
const MALAI: [&str; 4] = ["malai", "web01.company", "--", "true"];

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "A warm command",
        format!(
            "`true` on web01, typed on laptop, from the start of the client's process to its exit: median of {RUNS}, \
             after {WARM_UP_RUNS} that do not count. The daemons run and are connected; ssh goes through a ControlMaster. \
             The long wire takes {DELAY_MS} ms each way, so that a round trip is {} ms.",
            2 * DELAY_MS
        ),
    );
    let round_trip = Duration::from_millis(2 * DELAY_MS);
    let long = Place::open(Some(&Wire::delay_ms(DELAY_MS)))?;
    report.figure("ping, long wire", ping(&long)?);
    let malai = typical(&long, &MALAI)?;
    let trips = malai.as_secs_f64() / round_trip.as_secs_f64();
    let bar = format!("at most {ROUND_TRIPS_BAR} round trips");
    report.barred(
        "malai, long wire",
        format!("{}: {trips:.2} round trips", millis(malai)),
        bar,
        trips <= ROUND_TRIPS_BAR,
    );
    compare(report, &long, "long wire")?;
    drop(long);
    let short = Place::open(None)?;
    report.figure("malai, no delay", millis(typical(&short, &MALAI)?));
    compare(report, &short, "no delay")?;
    report.figure("`true` by itself", millis(typical(&short, &["true"])?));
    report.figure("`malai --version`", millis(typical(&short, &["sh", "-c", "malai --version >/dev/null"])?));
    Ok(())
}

/// Measures the round trip as the kernels see it: the lab's wires are threads, which a busy machine delays.
fn ping(place: &Place) -> Result<String> {
    let web01 = place.web01().ip().to_string();
    let output = place.laptop().run(["ping", "-q", "-c", "10", "-i", "0.2", &web01])?.success()?.text();
    let line = output.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = ")).context("no summary")?;
    let average = line.split('/').nth(1).context("no average")?;
    Ok(format!("{average} ms on average"))
}

fn compare(report: &mut Report, place: &Place, wire: &str) -> Result<()> {
    let what = format!("ssh, {wire}");
    let measured = match Ssh::open(place).context("ssh")? {
        Some(ssh) => millis(typical(place, &ssh.with(&["true"]))?),
        None => "not installed".to_owned(),
    };
    report.figure(what, measured);
    Ok(())
}

/// Returns the median of some runs on laptop, after some that do not count.
pub(crate) fn typical(place: &Place, words: &[&str]) -> Result<Duration> {
    timed(place.laptop(), words, WARM_UP_RUNS)?;
    median(timed(place.laptop(), words, RUNS)?)
}
