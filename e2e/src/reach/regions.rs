//! Regions far from each other, with relays in some of them.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::world::{Site, World};
use super::{Row, Trip, Way, trip};
use crate::lab::{Host, Nat};

/// How long a packet takes from each region to the middle of the internet, in milliseconds.
const REGIONS: [(&str, u64); 5] = [("north", 10), ("east", 20), ("south", 40), ("west", 80), ("far", 150)];
/// Where the relays are: as far away as these regions.
const RELAYS: [u64; 2] = [10, 80];
/// Every two of them talk directly within so long after their first command.
const ALL_DIRECT: Duration = Duration::from_secs(5);

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new("all_pairs_of_five_regions_with_two_relays_are_direct_within_5_s", mesh)]
}

/// Everybody's first commands to everybody else, all at once.
fn mesh() -> Result<Vec<Trip>> {
    let world = World::with_relays("regions", &RELAYS)?;
    let mut sites = Vec::new();
    for (name, delay) in REGIONS {
        sites.push(world.site(name, Some(Nat::PortRestricted), delay)?);
    }
    let outcomes = Mutex::new(Vec::new());
    let pairs = sites.iter().flat_map(|from| sites.iter().map(move |to| (from, to)));
    let pairs: Vec<(&Site, &Site)> = pairs.filter(|(from, to)| from.host.hostname() != to.host.hostname()).collect();
    thread::scope(|scope| {
        for (from, to) in &pairs {
            scope.spawn(|| {
                let trip = trip::direct(&world.company, &from.host, &to.host, &to.addresses());
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(trip);
            });
        }
    });
    let hosts: Vec<&Host> = sites.iter().map(|site| &site.host).collect();
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let trips: Result<Vec<Trip>> = outcomes.into_iter().collect();
    let trips = trips.with_context(|| world.logs(&hosts))?;
    ensure!(trips.len() == pairs.len(), "{} of {} pairs ran a command", trips.len(), pairs.len());
    for trip in &trips {
        match trip.way {
            Way::Direct(after) if after <= ALL_DIRECT => {}
            _ => bail!("later than {ALL_DIRECT:?}: {trip}"),
        }
    }
    world.ensure_private(&hosts)?;
    Ok(trips)
}
