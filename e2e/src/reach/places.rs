//! Places where machines are: behind a carrier's translation, in one LAN, with IPv6.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::world::{Site, World};
use super::{Row, Trip, trip};
use crate::cluster::malai;
use crate::lab::{Family, Nat, Proxy, Router, Segment, Wire};

/// From a machine to the middle of the internet.
const DELAY_MS: u64 = 10;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("customers_of_two_carriers_behind_two_translations_each_meet_directly", two_carriers),
        Row::new("two_customers_of_one_carrier_meet_directly", one_carrier),
        Row::new("two_machines_in_one_lan_behind_one_router_meet_inside_it", one_lan),
        Row::new("a_machine_that_leaves_its_network_only_by_an_http_proxy_is_met_at_the_relay", behind_a_proxy),
        Row::new("machines_that_have_ipv6_only_meet_directly", ipv6_only),
        Row::new("a_machine_with_ipv4_only_and_one_with_both_meet_directly", ipv4_and_dual),
    ]
}

/// A direct trip each way, of machines that have not talked before. Where both are seen at one address of a carrier,
/// that is the one that they share.
fn both_ways(world: &World, one: &Site, other: &Site, shared: &[IpAddr]) -> Result<Vec<Trip>> {
    let mut trips = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        let addresses = [to.addresses().as_slice(), shared].concat();
        let trip = trip::direct(&world.company, &from.host, &to.host, &addresses);
        trips.push(trip.with_context(|| world.logs(&[&one.host, &other.host]))?);
    }
    Ok(trips)
}

/// The network of a carrier: its customers' routers are outside in it, and it is translated itself.
fn carrier(world: &World, name: &str) -> Result<(Segment, Router)> {
    let segment = world.lab.segment(name)?;
    let wire = Wire::delay_ms(DELAY_MS);
    let router = world.lab.router(name).between(&segment, &world.internet).nat(Nat::Carrier).via(&wire).start()?;
    Ok((segment, router))
}

/// A machine behind a router of its own, which is a customer of this carrier.
fn customer(world: &World, name: &str, carrier: &Segment) -> Result<Site> {
    let lan = world.lab.segment(name)?;
    let home = world.lab.router(name).between(&lan, carrier).start()?;
    let site = Site { host: world.lab.host(name).on(&lan).boot()?, routers: vec![home], lan };
    world.join(&site.host)?;
    Ok(site)
}

fn two_carriers() -> Result<Vec<Trip>> {
    let world = World::new("carriers")?;
    let ((east, east_router), (west, west_router)) = (carrier(&world, "east")?, carrier(&world, "west")?);
    let (mut laptop, mut web01) = (customer(&world, "laptop", &east)?, customer(&world, "web01", &west)?);
    laptop.routers.push(east_router);
    web01.routers.push(west_router);
    let trips = both_ways(&world, &laptop, &web01, &[])?;
    world.ensure_private(&[&laptop.host, &web01.host])?;
    Ok(trips)
}

fn one_carrier() -> Result<Vec<Trip>> {
    let world = World::new("carrier")?;
    let (east, router) = carrier(&world, "east")?;
    let (laptop, web01) = (customer(&world, "laptop", &east)?, customer(&world, "web01", &east)?);
    let trips = both_ways(&world, &laptop, &web01, &[router.outside().into()])?;
    world.ensure_private(&[&laptop.host, &web01.host])?;
    Ok(trips)
}

fn one_lan() -> Result<Vec<Trip>> {
    let world = World::new("lan")?;
    let mut laptop = world.site("laptop", Some(Nat::PortRestricted), DELAY_MS)?;
    let host = world.lab.host("web01").on(&laptop.lan).boot()?;
    world.join(&host)?;
    let web01 = Site { host, routers: Vec::new(), lan: laptop.lan.clone() };
    // They meet by their own addresses only: the router goes on, and has no part in it.
    let _router = std::mem::take(&mut laptop.routers);
    let trips = both_ways(&world, &laptop, &web01, &[])?;
    world.ensure_private(&[&laptop.host, &web01.host])?;
    Ok(trips)
}

/// A machine in a network whose router lets nothing out but connections to a proxy, which its environment names.
fn behind_a_proxy() -> Result<Vec<Trip>> {
    let world = World::new("proxy")?;
    let wire = Wire::delay_ms(DELAY_MS);
    let gate = world.lab.host("gate").on(&world.internet).via(&wire).boot()?;
    let proxy = Proxy::start(&gate)?;
    let lan = world.lab.segment("web01")?;
    let router = world.lab.router("web01").between(&lan, &world.internet).nat(Nat::Only(proxy.at())).via(&wire);
    let router = router.start()?;
    let host = world.lab.host("web01").on(&lan).boot()?;
    let token = world.company.invite(&["--name", "web01"])?;
    let url = proxy.url(Proxy::PASSWORD);
    host.run(malai(["machine", "join", &token]).env("HTTPS_PROXY", &url))?.success()?;
    host.run(malai(["daemon"]).env("HTTPS_PROXY", &url))?.success()?;
    world.company.linked(&host)?;
    let web01 = Site { host, routers: vec![router], lan };
    let laptop = world.site("laptop", Some(Nat::PortRestricted), DELAY_MS)?;
    let mut trips = Vec::new();
    for (from, to) in [(&laptop, &web01), (&web01, &laptop)] {
        let trip = trip::relayed(&world.company, &from.host, &to.host, &world.services.relay);
        trips.push(trip.with_context(|| world.logs(&[&laptop.host, &web01.host]))?);
    }
    Ok(trips)
}

/// A machine on the internet itself with these kinds of addresses.
fn bare(world: &World, name: &str, family: Family) -> Result<Site> {
    let wire = Wire::delay_ms(DELAY_MS);
    let host = world.lab.host(name).on(&world.internet).via(&wire).family(family).boot()?;
    world.join(&host)?;
    Ok(Site { host, routers: Vec::new(), lan: world.internet.clone() })
}

fn ipv6_only() -> Result<Vec<Trip>> {
    let world = World::of("ipv6", Family::V6)?;
    let (laptop, web01) = (bare(&world, "laptop", Family::V6)?, bare(&world, "web01", Family::V6)?);
    both_ways(&world, &laptop, &web01, &[])
}

fn ipv4_and_dual() -> Result<Vec<Trip>> {
    let world = World::of("dual", Family::Dual)?;
    let (laptop, web01) = (bare(&world, "laptop", Family::V4)?, bare(&world, "web01", Family::Dual)?);
    both_ways(&world, &laptop, &web01, &[])
}
