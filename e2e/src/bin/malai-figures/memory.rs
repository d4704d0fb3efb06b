//! How much memory a long stream takes: nothing that grows with its length, or with a reader's patience.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use malai_e2e::cluster::malai;
use malai_e2e::lab::{Cmd, Host};

use crate::place::Place;
use crate::process::Process;
use crate::report::Report;

const BYTES: u64 = 2 << 30;
/// By how many KiB each process may grow.
const GROWTH_BAR_KIB: u64 = 16 * 1024;
/// How often memory is looked at while something runs.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// How long the slow reader reads, in seconds and bytes.
const PATIENCE: u64 = 60;
/// The words with which the client's command line begins.
const CLIENT: [&str; 2] = ["malai", "web01.company"];

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "Memory under load",
        "Growth of each process: the peak of its resident memory (VmHWM, reset before) over what it had before; for the \
         client, over what a client has that waits for input. 2 GiB of `/dev/zero`, counted by `wc -c` at the other end; \
         the slow reader takes a byte a second of 2 GiB, for a minute, and then leaves.",
    );
    let place = Place::open(None)?;
    let idle = idle_client(place.laptop())?;
    let zeros = format!("head -c {BYTES} /dev/zero");
    let counted = BYTES.to_string();
    flow(report, &place, idle, "2 GiB of stdout", &format!("malai web01.company -- {zeros} | wc -c"), &counted)?;
    flow(report, &place, idle, "2 GiB of stdin", &format!("{zeros} | malai web01.company -- wc -c"), &counted)?;
    let slow = format!("for i in $(seq {PATIENCE}); do head -c 1; sleep 1; done | wc -c");
    let line = format!("set +o pipefail; malai web01.company -- {zeros} | {{ {slow}; }}");
    flow(report, &place, idle, "stdout to a reader of 1 byte/s", &line, &PATIENCE.to_string())
}

/// Returns the KiB of a client whose command waits for input.
fn idle_client(laptop: &Host) -> Result<u64> {
    let mut waiting = laptop.spawn(malai(["web01.company", "--", "cat"]).stdin_open())?;
    waiting.write(b"ready\n")?;
    waiting.wait_for_line("ready", Duration::from_secs(10))?;
    let resident = Process::find(laptop, &CLIENT)?.resident()?;
    waiting.close_stdin();
    waiting.output_within(Duration::from_secs(10))?.success()?;
    Ok(resident)
}

/// Runs a line of shell on laptop, checks what it printed, and reports by how much each process grew.
fn flow(report: &mut Report, place: &Place, idle: u64, what: &str, line: &str, printed: &str) -> Result<()> {
    let (laptop, web01) = (place.laptop(), place.web01());
    let lasting = [
        ("caller's daemon", Process::daemon(laptop)?),
        ("target's daemon", Process::daemon(web01)?),
        ("executor", Process::find(web01, &["malai", "executor"])?),
    ];
    let mut before = Vec::new();
    for (_, process) in &lasting {
        process.forget_peak()?;
        before.push(process.resident()?);
    }
    let command = Cmd::new(["bash", "-o", "pipefail", "-c", line]);
    let running = laptop.spawn(command)?;
    let client = Process::find(laptop, &CLIENT)?;
    let mut peak = 0;
    while let Some((_, most)) = client.memory()? {
        peak = peak.max(most);
        thread::sleep(SAMPLE_INTERVAL);
    }
    let output = running.output_within(Duration::from_secs(300))?.success()?;
    ensure!(output.text() == printed, "{line}: {} bytes arrived", output.text());
    row(report, what, "client", idle, peak);
    for ((name, process), before) in lasting.iter().zip(before) {
        let (_, most) = process.memory()?.with_context(|| format!("the {name} is gone"))?;
        row(report, what, name, before, most);
    }
    Ok(())
}

fn row(report: &mut Report, what: &str, who: &str, before: u64, peak: u64) {
    let grown = peak.saturating_sub(before);
    let measured = format!("{} + {}", mebibytes(before), mebibytes(grown));
    report.barred(format!("{what}: {who}"), measured, "less than 16 MiB more", grown < GROWTH_BAR_KIB);
}

/// Formats KiB as MiB.
pub(crate) fn mebibytes(kib: u64) -> String {
    let tenths = (kib * 10 + 512) / 1024;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
