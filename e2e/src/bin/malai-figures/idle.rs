//! What a daemon costs that has nothing to do.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use malai_e2e::lab::{Child, Cmd, Host};
use serde_json::Value;

use crate::memory::mebibytes;
use crate::place::Place;
use crate::process::Process;
use crate::report::Report;

const IDLE_WATCH_TIME: Duration = Duration::from_secs(60);
/// How long the daemons need until addresses are known, paths are chosen and first announcements are made.
const IDLE_SETTLE_TIME: Duration = Duration::from_secs(15);
/// The most KiB of resident memory that a daemon may have: 25 MB. The executor may have 10 MB.
const DAEMON_BAR_KIB: u64 = 25_000_000 / 1024;
const EXECUTOR_BAR_KIB: u64 = 10_000_000 / 1024;
const SWITCHES_BAR: f64 = 1.3;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "An idle daemon",
        format!(
            "One cluster, no command for {} s, then watched for {} s: resident memory at the end, and voluntary context \
             switches of all threads. Beside it, in the same time and on hosts of the same segment, two bare iroh \
             endpoints with one connection, bound as malai binds its own (`presets::Minimal`, no relay).",
            IDLE_SETTLE_TIME.as_secs(),
            IDLE_WATCH_TIME.as_secs()
        ),
    );
    let place = Place::open(None)?;
    let (one, other) = (place.bystander("bare1")?, place.bystander("bare2")?);
    let bare = Bare::open(&one, &other)?;
    let web01 = Process::daemon(place.web01())?;
    let executor = Process::find(place.web01(), &["malai", "executor"])?;
    let watched = [
        ("daemon of a machine", web01),
        ("daemon of the cluster manager", Process::daemon(place.laptop())?),
        ("executor", executor),
        ("bare endpoint that dialled", Process::find(&one, &["malai-lab-endpoint"])?),
        ("bare endpoint that was dialled", Process::find(&other, &["malai-lab-endpoint"])?),
    ];
    thread::sleep(IDLE_SETTLE_TIME);
    let before = all_waits(&watched)?;
    thread::sleep(IDLE_WATCH_TIME);
    let waits: Vec<u64> = all_waits(&watched)?.iter().zip(&before).map(|(after, before)| after - before).collect();
    memory(report, &watched)?;
    drop(bare);
    switches(report, &watched, &waits)
}

fn all_waits(watched: &[(&str, Process<'_>)]) -> Result<Vec<u64>> {
    watched.iter().map(|(_, process)| process.waits()).collect()
}

fn memory(report: &mut Report, watched: &[(&str, Process<'_>)]) -> Result<()> {
    for (name, process) in watched {
        let resident = process.resident()?;
        let what = format!("resident memory, {name}");
        match *name {
            "executor" => report.barred(what, mebibytes(resident), "at most 10 MB", resident <= EXECUTOR_BAR_KIB),
            name if name.starts_with("daemon") => {
                report.barred(what, mebibytes(resident), "at most 25 MB", resident <= DAEMON_BAR_KIB);
            }
            _ => report.figure(what, mebibytes(resident)),
        }
    }
    Ok(())
}

/// The daemon of a machine has one endpoint and dialled its one connection, as the first bare endpoint did.
fn switches(report: &mut Report, watched: &[(&str, Process<'_>)], waits: &[u64]) -> Result<()> {
    let of = |wanted: &str| watched.iter().zip(waits).find(|((name, _), _)| *name == wanted).map(|(_, waits)| *waits);
    let bare = of("bare endpoint that dialled").context("no bare endpoint")?;
    for ((name, _), waits) in watched.iter().zip(waits) {
        let what = format!("switches in {} s, {name}", IDLE_WATCH_TIME.as_secs());
        if *name != "daemon of a machine" {
            report.figure(what, waits.to_string());
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "some thousands")]
        let times = *waits as f64 / bare.max(1) as f64;
        let bar = format!("at most {SWITCHES_BAR} x the bare endpoint that dialled");
        report.barred(what, format!("{waits}: {times:.2} x"), bar, times <= SWITCHES_BAR);
    }
    Ok(())
}

/// Holds two bare endpoints with a connection.
#[derive(Debug)]
struct Bare {
    _dialled: Child,
    _dialling: Child,
}

impl Bare {
    fn open(from: &Host, to: &Host) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?.with_file_name("malai-lab-endpoint");
        let program = program.to_str().context("a path that is no text")?;
        let soon = Duration::from_secs(10);
        let dialled = to.spawn(Cmd::new([program]).stdin_open())?;
        let line = dialled.wait_for_line("port", soon)?;
        let ready: Value = serde_json::from_str(&line).context(line)?;
        let id = ready.get("id").and_then(Value::as_str).context("no id")?;
        let port = ready.get("port").and_then(Value::as_u64).context("no port")?;
        let address = format!("{}:{port}", to.ip());
        let dialling = from.spawn(Cmd::new([program, id, &address]).stdin_open())?;
        dialling.wait_for_line("connected", soon)?;
        Ok(Self { _dialled: dialled, _dialling: dialling })
    }
}
