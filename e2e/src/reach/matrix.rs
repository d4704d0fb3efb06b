//! Every kind of address translation against every other.

use anyhow::{Context as _, Result};

use super::world::{Site, World};
use super::{Row, Trip, trip};
use crate::lab::{Host, Nat};

/// The kinds of address translation, by name. None = on the internet itself.
pub const KINDS: [(&str, Option<Nat>); 5] = [
    ("none", None),
    ("full-cone", Some(Nat::FullCone)),
    ("port-restricted", Some(Nat::PortRestricted)),
    ("symmetric", Some(Nat::Symmetric)),
    ("udp-blocked", Some(Nat::UdpBlocked)),
];
/// From a machine to the middle of the internet: 40 ms from one to another and back.
const DELAY_MS: u64 = 10;

pub(super) fn rows() -> Vec<Row> {
    let row = |(name, nat): (&'static str, Option<Nat>)| {
        let kind = name.replace('-', "_");
        let name_of_row = format!("with_nat_{kind}_a_caller_reaches_each_target_directly_if_a_direct_path_can_exist");
        Row::new(name_of_row, move || row(name, nat))
    };
    KINDS.into_iter().map(row).collect()
}

/// Whether a direct way can exist: somebody has to be able to know which port the other one will be seen at.
fn can_be_direct(one: Option<Nat>, other: Option<Nat>) -> bool {
    let sides = [one, other];
    let has = |nat| sides.contains(&Some(nat));
    let unknown = has(Nat::Symmetric) && (has(Nat::PortRestricted) || one == other);
    !(has(Nat::UdpBlocked) || unknown)
}

/// A caller, and a target of each kind, which it has never talked to.
fn row(name: &str, nat: Option<Nat>) -> Result<Vec<Trip>> {
    let world = World::new("matrix")?;
    let caller = world.site("caller", nat, DELAY_MS)?;
    let mut targets = Vec::new();
    for (kind, nat) in KINDS {
        targets.push((kind, nat, world.site(&format!("to-{kind}"), nat, DELAY_MS)?));
    }
    let mut trips = Vec::new();
    for (kind, other, target) in &targets {
        let cell = cell(&world, &caller.host, target, can_be_direct(nat, *other));
        let cell = cell.with_context(|| world.logs(&[&caller.host, &target.host]));
        trips.push(Trip { from: name.into(), to: (*kind).into(), ..cell.with_context(|| format!("to {kind}"))? });
    }
    let hosts: Vec<&Host> = targets.iter().map(|(.., target)| &target.host).chain([&caller.host]).collect();
    world.ensure_private(&hosts)?;
    Ok(trips)
}

fn cell(world: &World, from: &Host, to: &Site, direct: bool) -> Result<Trip> {
    if direct {
        trip::direct(&world.company, from, &to.host, &to.addresses())
    } else {
        trip::relayed(&world.company, from, &to.host, &world.services.relay)
    }
}
