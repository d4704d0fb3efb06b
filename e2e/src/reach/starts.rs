//! First commands of daemons that have just started.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::world::World;
use super::{Row, Trip, Way, trip};
use crate::cluster::{Cluster, start, stop};
use crate::lab::{Host, Lab, Nat, Prefix};

/// Each first command is taken so often, and the bar is for the middle one.
const TAKES: usize = 5;
/// Both behind a router, 40 ms apart, with a relay of the cluster's own.
const COLD: Duration = Duration::from_millis(1500);
/// On one LAN, where mDNS is all there is.
const SAME_LAN: Duration = Duration::from_secs(1);
/// Last known addresses of the other machines.
const PEERS: &str = "/root/malai-home/clusters/company/peers";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("the_first_command_of_a_daemon_just_started_behind_a_router_answers_within_1500_ms", cold),
        Row::new("a_machine_that_no_directory_knows_is_found_at_the_clusters_relay", no_directory),
        Row::new("the_first_command_on_one_lan_without_relay_and_dns_answers_within_1_s", same_lan),
    ]
}

/// First commands, each after `prepare`; the middle one has to answer within the bar.
fn takes(
    company: &Cluster,
    (from, on): (&Host, &Host),
    what: &str,
    bar: Duration,
    prepare: impl Fn() -> Result<()>,
) -> Result<Vec<Trip>> {
    let mut trips = Vec::new();
    for _ in 0..TAKES {
        prepare()?;
        let first = trip::first_output(company, from, on)?;
        trips.push(Trip { from: what.into(), to: on.hostname().into(), first, way: Way::Unknown });
    }
    let mut firsts: Vec<Duration> = trips.iter().map(|trip| trip.first).collect();
    firsts.sort_unstable();
    let middle = firsts.get(TAKES / 2).context("nothing was taken")?;
    ensure!(*middle <= bar, "{what}: the first output came after {firsts:.2?}, not within {bar:?}");
    Ok(trips)
}

fn restart(host: &Host) -> Result<()> {
    stop(host)?;
    start(host)
}

fn forget(host: &Host) -> Result<()> {
    stop(host)?;
    host.run(["rm", "-f", PEERS])?.success()?;
    Ok(())
}

fn cold() -> Result<Vec<Trip>> {
    let world = World::new("cold")?;
    let (laptop, web01) =
        (world.site("laptop", Some(Nat::PortRestricted), 10)?, world.site("web01", Some(Nat::PortRestricted), 10)?);
    let pair = (&laptop.host, &web01.host);
    let company = &world.company;
    let mut trips = takes(company, pair, "laptop, just started", COLD, || restart(pair.0))?;
    trips.extend(takes(company, pair, "laptop, just started, that knows no addresses", COLD, || {
        forget(pair.0)?;
        start(pair.0)
    })?);
    trips.extend(takes(company, pair, "laptop, without a daemon", COLD, || stop(pair.0))?);
    world.ensure_private(&[pair.0, pair.1])?;
    Ok(trips)
}

/// Nobody tells anybody where web01 is, and its relay is found all the same.
fn no_directory() -> Result<Vec<Trip>> {
    let world = World::without_directory("directory")?;
    let laptop = world.site("laptop", Some(Nat::PortRestricted), 10)?;
    let web01 = world.site("web01", Some(Nat::PortRestricted), 10)?;
    let trip = trip::direct(&world.company, &laptop.host, &web01.host, &web01.addresses());
    let trip = trip.with_context(|| world.logs(&[&laptop.host, &web01.host]))?;
    ensure!(trip.first <= COLD, "not within {COLD:?}: {trip}");
    Ok(vec![trip])
}

fn same_lan() -> Result<Vec<Trip>> {
    let lab = Lab::new("mdns")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("ops").on(&lan).boot()?)?;
    let (laptop, web01) = (lab.host("laptop").on(&lan).boot()?, lab.host("web01").on(&lan).boot()?);
    company.join(&laptop)?;
    company.join(&web01)?;
    company.allow(&web01, &["laptop"])?;
    for host in [&laptop, &web01] {
        company.holds(host, company.generation(company.manager())?)?;
    }
    // Nobody is left who could tell where web01 is.
    stop(company.manager())?;
    let trips = takes(&company, (&laptop, &web01), "laptop, both just started", SAME_LAN, || {
        for host in [&laptop, &web01] {
            forget(host)?;
        }
        start(&web01)?;
        start(&laptop)
    })?;
    let multicast = Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4);
    for host in [&laptop, &web01] {
        let outside = host.packets_outside(&[lan.prefix(), multicast])?;
        ensure!(outside.is_empty(), "{} sent {outside:?}", host.hostname());
    }
    Ok(trips)
}
