//! Machines that change their network while a command runs.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::stage::Stage;
use super::traffic::Traffic;
use super::{Evidence, Row, Scale};
use crate::lab::Nat;

/// Lists the times between two changes in a row, in seconds.
const CHANGES_APART_S: [u64; 3] = [1, 5, 15];
/// Sets how long the traffic is watched after the second change: a path that came along may be lost later.
const AFTER_CHANGES_TIME: Duration = Duration::from_secs(12);

pub(super) fn rows(_scale: Scale) -> Vec<Row> {
    let mut rows = vec![
        Row::new("a_caller_that_roams_loses_nothing", || roam(true, false)),
        Row::new("a_target_that_roams_loses_nothing", || roam(false, true)),
        Row::new("caller_and_target_that_roam_at_once_lose_nothing", || roam(true, true)),
        Row::new("a_target_whose_address_changes_without_a_relay_loses_nothing", || another_address(Side::Target)),
        Row::new("a_caller_whose_address_changes_without_a_relay_loses_nothing", || another_address(Side::Caller)),
    ];
    for first in [Side::Caller, Side::Target] {
        for then in [Side::Caller, Side::Target] {
            rows.extend(CHANGES_APART_S.map(|apart| two_addresses(first, then, apart, false)));
            rows.push(two_addresses(first, then, 5, true));
        }
    }
    rows.push(two_addresses(Side::Caller, Side::Target, 0, false));
    rows
}

/// Whose address changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Caller,
    Target,
}

impl Side {
    fn change(self, stage: &Stage) -> Result<()> {
        let host = if self == Self::Caller { &stage.laptop } else { &stage.web01 };
        let before = host.ip();
        host.change_address()?;
        anyhow::ensure!(host.ip() != before, "the address did not change");
        Ok(())
    }
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

fn another_address(side: Side) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    side.change(&stage)?;
    traffic.repaired()?;
    traffic.finish(&stage)
}

/// Changes the address of one machine, and this number of seconds later that of the other, or of the same one again.
fn two_addresses(first: Side, then: Side, apart: u64, relay: bool) -> Row {
    let who = match (first, then) {
        (Side::Caller, Side::Caller) => "a_caller_whose_address_changes_twice",
        (Side::Caller, Side::Target) => "a_caller_and_then_its_target_whose_addresses_change",
        (Side::Target, Side::Caller) => "a_target_and_then_its_caller_whose_addresses_change",
        (Side::Target, Side::Target) => "a_target_whose_address_changes_twice",
    };
    let with = if relay { "with" } else { "without" };
    let lose = if first == then { "loses" } else { "lose" };
    let name = format!("{who}_{apart}_s_apart_{with}_a_relay_{lose}_nothing");
    Row::new(name, move || {
        let stage = if relay { Stage::internet(Nat::PortRestricted)? } else { Stage::segment()? };
        let mut traffic = Traffic::start(&stage)?;
        let begun = Instant::now();
        first.change(&stage)?;
        traffic.go_on_until(begun + Duration::from_secs(apart))?;
        let again = Instant::now();
        then.change(&stage)?;
        traffic.go_on_until(again + AFTER_CHANGES_TIME)?;
        traffic.repaired_since(&[begun, again])?;
        traffic.finish(&stage)
    })
}
