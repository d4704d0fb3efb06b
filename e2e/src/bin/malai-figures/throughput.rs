//! How fast much output, and much input, goes through.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use malai_e2e::lab::Cmd;

use crate::place::{Place, median};
use crate::report::Report;
use crate::ssh::Ssh;

const BYTES: u64 = 1_000_000_000;
const RUNS: usize = 3;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "Throughput",
        format!(
            "{BYTES} bytes of `/dev/zero`, between hosts without delay, counted by `wc -c` at the other end; from the \
             client's start to its exit, median of {RUNS}. ssh goes through a ControlMaster."
        ),
    );
    let place = Place::open(None)?;
    let ssh = Ssh::open(&place).context("ssh")?;
    let zeros = format!("head -c {BYTES} /dev/zero");
    let clients =
        [("malai", Some("malai web01.company --".to_owned())), ("ssh", ssh.as_ref().map(|ssh| ssh.words.join(" ")))];
    for (name, client) in clients {
        let Some(client) = client else {
            report.figure(name, "not installed");
            continue;
        };
        report.figure(format!("stdout, {name}"), transfer(&place, &format!("{client} {zeros} | wc -c"))?);
        report.figure(format!("stdin, {name}"), transfer(&place, &format!("{zeros} | {client} wc -c"))?);
    }
    Ok(())
}

fn transfer(place: &Place, line: &str) -> Result<String> {
    let mut all = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let command = Cmd::new(["bash", "-o", "pipefail", "-c", line]).timeout(Duration::from_secs(300));
        let output = place.laptop().run(command)?.success()?;
        all.push(begun.elapsed());
        ensure!(output.text() == BYTES.to_string(), "{line}: {} bytes arrived", output.text());
    }
    let time = median(all)?.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a gigabyte fits")]
    let rate = BYTES as f64 / time / 1e6;
    Ok(format!("{time:.2} s: {rate:.0} MB/s"))
}
