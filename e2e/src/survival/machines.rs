//! A target that loses what it knows: its executor, or its power. Nobody is told that all went well.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::daemons::NOTICED;
use super::stage::{Stage, boot, kill};
use super::traffic::{Traffic, ran_once};
use super::{Evidence, Row, Scale, tree};

/// When the executor is gone, the caller learns it within so long.
const TOLD: Duration = Duration::from_secs(5);
/// When the target is back, the caller learns within so long that it knows nothing.
const TOLD_WHEN_BACK: Duration = Duration::from_secs(15);
/// How long the power is away.
const DARK: Duration = Duration::from_secs(20);
/// How long the caller waits for a target that does not come back.
const LOST_AFTER: Duration = Duration::from_secs(12);

pub(super) fn rows(_scale: Scale) -> Vec<Row> {
    vec![
        Row::new("a_target_that_lost_power_and_is_back_is_known_to_have_forgotten", power_cut_and_back),
        Row::new("a_target_that_lost_power_for_good_ends_in_253", power_cut),
        Row::new("an_executor_that_is_killed_ends_in_253_and_leaves_no_tree", executor_killed),
    ]
}

fn executor_killed() -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    let tree = tree::Tree::grow(&stage, &[])?;
    kill(&stage.web01, "/executor_pid")?;
    let begun = Instant::now();
    traffic.note(tree.child.wait(TOLD).map(drop));
    traffic.note(tree::is_gone(&stage.web01, Duration::ZERO));
    let ended = traffic.end_within(TOLD)?;
    ended.lost_between(begun, begun + TOLD)?;
    // A new executor knows nothing of it, and runs nothing again.
    stage.company.ran_remotely(&stage.laptop, &stage.web01)?;
    ran_once(&stage)?;
    Ok(ended.evidence)
}

fn power_cut_and_back() -> Result<Evidence> {
    let stage = Stage::segment()?;
    let traffic = Traffic::start(&stage)?;
    let begun = Instant::now();
    stage.web01.power_cut();
    traffic.endure(begun, DARK)?;
    boot(&stage.web01)?;
    let back = Instant::now();
    let ended = traffic.end_within(TOLD_WHEN_BACK * 3)?;
    ended.lost_between(begun, back + TOLD_WHEN_BACK)?;
    stage.company.ran_remotely(&stage.laptop, &stage.web01)?;
    ran_once(&stage)?;
    Ok(ended.evidence)
}

fn power_cut() -> Result<Evidence> {
    let stage = Stage::segment()?;
    let traffic = Traffic::with(&stage, &["--lost-after", &format!("{}s", LOST_AFTER.as_secs())], None)?;
    let begun = Instant::now();
    stage.web01.power_cut();
    let ended = traffic.end_within(LOST_AFTER + NOTICED * 2)?;
    ended.lost_between(begun + LOST_AFTER, begun + LOST_AFTER + NOTICED)?;
    boot(&stage.web01)?;
    ran_once(&stage)?;
    Ok(ended.evidence)
}
