//! Machines that change their network while a command runs.

use anyhow::Result;

use super::stage::Stage;
use super::traffic::Traffic;
use super::{Evidence, Row, Scale};
use crate::lab::Nat;

pub(super) fn rows(_scale: Scale) -> Vec<Row> {
    vec![
        Row::new("a_caller_that_roams_loses_nothing", || roam(true, false)),
        Row::new("a_target_that_roams_loses_nothing", || roam(false, true)),
        Row::new("caller_and_target_that_roam_at_once_lose_nothing", || roam(true, true)),
        Row::new("a_target_whose_address_changes_without_a_relay_loses_nothing", || another_address(false)),
        Row::new("a_caller_whose_address_changes_without_a_relay_loses_nothing", || another_address(true)),
    ]
}

/// To another network, behind another router.
fn roam(caller: bool, target: bool) -> Result<Evidence> {
    let stage = Stage::internet(Nat::PortRestricted)?;
    let (cafe, _cafe_router) = stage.elsewhere("cafe")?;
    let (depot, _depot_router) = stage.elsewhere("depot")?;
    let mut traffic = Traffic::start(&stage)?;
    if caller {
        stage.laptop.move_to(&cafe, None)?;
    }
    if target {
        stage.web01.move_to(&depot, None)?;
    }
    traffic.repaired()?;
    traffic.finish(&stage)
}

fn another_address(caller: bool) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    let host = if caller { &stage.laptop } else { &stage.web01 };
    let before = host.ip();
    host.change_address()?;
    anyhow::ensure!(host.ip() != before, "the address did not change");
    traffic.repaired()?;
    traffic.finish(&stage)
}
