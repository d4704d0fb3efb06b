//! The caller's network is away for a while.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::stage::Stage;
use super::traffic::Traffic;
use super::{Evidence, Row, Scale};
use crate::cluster::{SOON, running};
use crate::lab::{Nat, wait_until};

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    let lengths: &[u64] = scale.pick(&[40, 30, 12, 5], &[120, 60, 30, 12, 5]);
    for &seconds in lengths {
        for relay in [true, false] {
            let with = if relay { "with" } else { "without" };
            rows.push(Row::new(format!("a_partition_of_{seconds}_s_{with}_a_relay_loses_nothing"), move || {
                partition(&stage(relay)?, Duration::from_secs(seconds))
            }));
        }
    }
    rows.push(Row::new("a_command_that_ends_during_a_partition_is_reported_whole", || end_during(&stage(false)?)));
    rows.push(Row::new("partitions_one_after_the_other_lose_nothing", move || churn(scale.pick(3, 20))));
    rows
}

fn stage(relay: bool) -> Result<Stage> {
    if relay { Stage::internet(Nat::PortRestricted) } else { Stage::segment() }
}

fn partition(stage: &Stage, length: Duration) -> Result<Evidence> {
    let mut traffic = Traffic::start(stage)?;
    let begun = Instant::now();
    stage.wire.cut();
    traffic.endure(begun, length)?;
    stage.wire.mend();
    traffic.repaired()?;
    traffic.finish(stage)
}

fn end_during(stage: &Stage) -> Result<Evidence> {
    // Two seconds after the network is gone.
    let traffic = Traffic::with(stage, &[], Some(1200))?;
    stage.wire.cut();
    let begun = Instant::now();
    wait_until(SOON, "the command has ended", || {
        running(&stage.web01, "malai-lab-driver").is_ok_and(|found| found == 0)
    })?;
    traffic.endure(begun, Duration::from_secs(12))?;
    stage.wire.mend();
    traffic.finish_by_itself(stage)
}

fn churn(times: u32) -> Result<Evidence> {
    let stage = stage(false)?;
    let mut traffic = Traffic::start(&stage)?;
    for turn in 0..times {
        let begun = Instant::now();
        stage.wire.cut();
        traffic.endure(begun, Duration::from_secs(u64::from(4 + turn % 5)))?;
        stage.wire.mend();
        traffic.repaired()?;
    }
    traffic.finish(&stage)
}
