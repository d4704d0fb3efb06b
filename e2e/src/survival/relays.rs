//! Relays that go, and firewalls that close.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::stage::{Stage, kill};
use super::traffic::{FLOWING, Traffic};
use super::{Evidence, Row, Scale};
use crate::cluster::{SOON, malai, start};
use crate::lab::Nat;

/// How long a command waits: the caller's endpoint is rebuilt more than once meanwhile.
const WAITING: Duration = Duration::from_secs(20);

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let away = Duration::from_secs(scale.pick(8, 30));
    // So long that iroh's pauses between its attempts are longer than a repair may take.
    let long = Duration::from_secs(scale.pick(20, 60));
    vec![
        Row::new("a_relay_that_is_restarted_loses_nothing", move || restarted(long)),
        Row::new("a_command_begun_while_the_relay_is_away_runs_when_it_is_back", begun_meanwhile),
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

/// A daemon that never had a connection: the command waits for one, across all that is tried to get it.
fn begun_meanwhile() -> Result<Evidence> {
    let stage = Stage::internet(Nat::Symmetric)?;
    stage.wait_for_path("relay ")?;
    stage.stop_services()?;
    kill(&stage.laptop, "/pid")?;
    start(&stage.laptop)?;
    let child = stage.laptop.spawn(malai(["--connect-timeout", "2m", "web01.company", "--", "hostname"]))?;
    if let Ok(status) = child.wait(WAITING) {
        bail!("it did not wait for the relay, but ended with {status}: {:?}", String::from_utf8_lossy(&child.stderr()));
    }
    stage.start_services()?;
    let repaired = Instant::now();
    let status = child.wait(SOON)?;
    let recovery = repaired.elapsed();
    child.wait_for_end_of_output(SOON)?;
    ensure!(status.success() && child.stdout() == b"web01\n", "it ended with {status}: {child:?}");
    ensure!(recovery <= FLOWING, "it ended {recovery:.1?} after the relay was back");
    Ok(Evidence { recoveries: vec![recovery], ..Evidence::default() })
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
