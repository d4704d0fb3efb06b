//! Daemons that are killed, replaced, or never come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::{Stage, kill};
use super::traffic::{Traffic, ran_once};
use super::{Evidence, Row, Scale, tree};
use crate::cluster::{daemon, daemon_status, malai, running, start};
use crate::lab::Host;

/// How long the caller waits for a target whose daemon never comes back.
const LOST_AFTER: Duration = Duration::from_secs(15);
/// How long that target waits for a caller.
const GRACE: Duration = Duration::from_secs(8);
/// How late the caller may notice that a connection is lost, and say what it says.
pub(super) const NOTICED: Duration = Duration::from_secs(10);

pub(super) fn rows(_scale: Scale) -> Vec<Row> {
    let killed = |seconds| move || targets_daemon_killed(Duration::from_secs(seconds));
    let mut rows = vec![
        Row::new("a_targets_daemon_that_is_killed_and_back_after_20_s_loses_nothing", killed(20)),
        Row::new("a_targets_daemon_that_is_killed_and_back_after_1_s_loses_nothing", killed(1)),
        Row::new("a_targets_daemon_that_never_comes_back_ends_in_253_and_no_tree", targets_daemon_gone),
        Row::new("a_callers_daemon_that_is_killed_and_started_again_loses_nothing", || callers_daemon_killed(true)),
        Row::new("an_agent_takes_over_from_a_callers_daemon_that_is_killed", || callers_daemon_killed(false)),
    ];
    for (who, caller) in [("callers", true), ("targets", false)] {
        for (how, restart) in [("restarted", true), ("stopped_and_started", false)] {
            let name = format!("a_{who}_daemon_that_is_{how}_for_an_upgrade_loses_nothing");
            rows.push(Row::new(name, move || upgraded(caller, restart)));
        }
    }
    rows
}

fn targets_daemon_killed(away: Duration) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    let begun = Instant::now();
    kill(&stage.web01, "/pid")?;
    traffic.endure(begun, away)?;
    start(&stage.web01)?;
    traffic.repaired()?;
    traffic.finish(&stage)
}

fn targets_daemon_gone() -> Result<Evidence> {
    let stage = Stage::segment()?;
    stage.set_grace(GRACE)?;
    let lost_after = format!("{}s", LOST_AFTER.as_secs());
    let mut traffic = Traffic::with(&stage, &["--lost-after", &lost_after], None)?;
    let _tree = tree::Tree::grow(&stage, &["--lost-after", &lost_after])?;
    let begun = Instant::now();
    kill(&stage.web01, "/pid")?;
    traffic.endure(begun, GRACE / 2)?;
    traffic.note(tree::stands(&stage.web01));
    traffic.note(tree::is_gone(&stage.web01, GRACE));
    let ended = traffic.end_within(LOST_AFTER + NOTICED * 2)?;
    ended.lost_between(begun + LOST_AFTER, begun + LOST_AFTER + NOTICED)?;
    ensure!(ended.words.len() >= 2, "the caller did not say that it waits: {:?}", ended.words);
    ran_once(&stage)?;
    Ok(ended.evidence)
}

fn callers_daemon_killed(start_again: bool) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    kill(&stage.laptop, "/pid")?;
    if start_again {
        start(&stage.laptop)?;
    }
    traffic.repaired()?;
    let agents = running(&stage.laptop, "malai agent")?;
    ensure!(agents == usize::from(!start_again), "{agents} agents run");
    traffic.finish(&stage)
}

fn upgraded(caller: bool, restart: bool) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    let host = if caller { &stage.laptop } else { &stage.web01 };
    let before = processes(host)?;
    if restart {
        host.run(daemon(["restart"]))?.success()?;
    } else {
        host.run(malai(["daemon", "stop", "--keep-sessions"]))?.success()?;
        start(host)?;
    }
    traffic.repaired()?;
    let after = processes(host)?;
    ensure!(before[0] != after[0], "the daemon was not replaced");
    ensure!(caller || before[1] == after[1], "the executor was replaced under a running command");
    traffic.finish(&stage)
}

/// The daemon and its executor.
fn processes(host: &Host) -> Result<[Option<u64>; 2]> {
    let status = daemon_status(host)?;
    Ok(["/pid", "/executor_pid"].map(|pointer| status.pointer(pointer).and_then(serde_json::Value::as_u64)))
}
