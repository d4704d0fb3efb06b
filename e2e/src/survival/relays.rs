//! Relays that go, and firewalls that close.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::Stage;
use super::traffic::Traffic;
use super::{Evidence, Row, Scale};
use crate::lab::Nat;

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let away = Duration::from_secs(scale.pick(8, 30));
    vec![
        Row::new("a_relay_that_is_restarted_loses_nothing", move || restarted(away)),
        Row::new("a_relay_that_is_gone_for_good_is_not_missed_on_a_direct_path", move || gone(away)),
        Row::new("udp_that_is_blocked_and_comes_back_loses_nothing", move || udp_blocked(away)),
    ]
}

/// Two symmetric NATs: there is no way but by the relay.
fn restarted(away: Duration) -> Result<Evidence> {
    let stage = Stage::internet(Nat::Symmetric)?;
    stage.wait_for_path("relay ")?;
    let mut traffic = Traffic::start(&stage)?;
    let begun = Instant::now();
    stage.stop_services()?;
    traffic.endure(begun, away)?;
    stage.start_services()?;
    traffic.repaired()?;
    traffic.finish(&stage)
}

fn gone(away: Duration) -> Result<Evidence> {
    let stage = Stage::internet(Nat::PortRestricted)?;
    stage.wait_for_path("direct ")?;
    let mut traffic = Traffic::start(&stage)?;
    stage.stop_services()?;
    traffic.repaired()?;
    traffic.go_on_until(Instant::now() + away)?;
    ensure!(stage.path()?.starts_with("direct "), "the path is {}", stage.path()?);
    traffic.finish(&stage)
}

/// The relay is still there by TCP: nothing has to be repaired for output to flow.
fn udp_blocked(away: Duration) -> Result<Evidence> {
    let stage = Stage::internet(Nat::PortRestricted)?;
    stage.wait_for_path("direct ")?;
    let mut traffic = Traffic::start(&stage)?;
    let net = stage.net()?;
    net.home.set_udp(false)?;
    traffic.repaired()?;
    stage.wait_for_path("relay ")?;
    traffic.go_on_until(Instant::now() + away)?;
    net.home.set_udp(true)?;
    traffic.repaired()?;
    traffic.finish(&stage)
}
