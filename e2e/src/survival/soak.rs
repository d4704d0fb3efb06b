//! Faults of many kinds, one after the other, for hours, under a session that goes on and messages of many sizes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::Evidence;
use super::lines::draw;
use super::messages::there_and_back;
use super::stage::{Stage, kill};
use super::traffic::{STARTED, Traffic};
use crate::cluster::start;
use crate::lab::{Nat, Segment};

/// Faults under one session.
const FAULTS: u64 = 8;
/// Messages have at most 2 to this power bytes: 64 MiB.
const LARGEST: u64 = 26;

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Partition,
    LinkDown,
    Loss,
    CallerRoams,
    TargetRoams,
    CallersDaemon,
    TargetsDaemon,
    Relay,
    Udp,
}

const KINDS: [Fault; 9] = [
    Fault::Partition,
    Fault::LinkDown,
    Fault::Loss,
    Fault::CallerRoams,
    Fault::TargetRoams,
    Fault::CallersDaemon,
    Fault::TargetsDaemon,
    Fault::Relay,
    Fault::Udp,
];

/// Goes on until then, telling what each round showed.
///
/// # Errors
/// At the first thing that is not as it must be; the seed and the turn say how to have it again.
pub fn soak(until: Instant, seed: u64, mut told: impl FnMut(&Evidence)) -> Result<()> {
    let stage = Stage::internet(Nat::PortRestricted)?;
    let (cafe, _cafe_router) = stage.elsewhere("cafe")?;
    let (train, _train_router) = stage.elsewhere("train")?;
    let mut turn = 0;
    while Instant::now() < until {
        let round = round(&stage, [&cafe, &train], seed, turn);
        told(&round.with_context(|| format!("seed {seed}, turn {turn}"))?);
        turn += FAULTS;
    }
    Ok(())
}

/// One session, with its faults and messages.
fn round(stage: &Stage, places: [&Segment; 2], seed: u64, turn: u64) -> Result<Evidence> {
    stage.web01.run(["rm", "-f", STARTED])?.success()?;
    let mut traffic = Traffic::start(stage)?;
    let over = AtomicBool::new(false);
    let messages = thread::scope(|scope| {
        let sender = scope.spawn(|| messages(stage, seed, turn, &over));
        let faults = (turn..turn + FAULTS).try_for_each(|turn| {
            let kind = KINDS[usize::try_from(draw(seed, turn, KINDS.len() as u64)).unwrap_or(0)];
            happen(stage, kind, places, draw(!seed, turn, 100), &mut traffic).with_context(|| format!("{kind:?}"))
        });
        over.store(true, Ordering::Release);
        let messages = sender.join().map_err(|_| anyhow!("the sender of messages panicked"))?;
        faults.and(messages)
    })?;
    let mut evidence = traffic.finish(stage)?;
    evidence.add(&messages);
    Ok(evidence)
}

/// Has a fault happen, whose measure is below 100, and sees to it that it is repaired.
fn happen(stage: &Stage, kind: Fault, places: [&Segment; 2], measure: u64, traffic: &mut Traffic) -> Result<()> {
    let begun = Instant::now();
    let place = places[usize::from(measure.is_multiple_of(2))];
    match kind {
        Fault::Partition => {
            stage.wire.cut();
            traffic.go_on_until(begun + Duration::from_secs(1 + measure * 2 / 3))?;
            stage.wire.mend();
        }
        Fault::LinkDown => {
            stage.laptop.link_down()?;
            traffic.go_on_until(begun + Duration::from_secs(1 + measure / 5))?;
            stage.laptop.link_up()?;
        }
        Fault::Loss => {
            stage.wire.set_loss(0.1);
            traffic.go_on_until(begun + Duration::from_secs(10))?;
            stage.wire.set_loss(0.0);
        }
        Fault::CallerRoams => stage.laptop.move_to(place, None)?,
        Fault::TargetRoams => stage.web01.move_to(place, None)?,
        Fault::CallersDaemon => {
            kill(&stage.laptop, "/pid")?;
            start(&stage.laptop)?;
        }
        Fault::TargetsDaemon => {
            kill(&stage.web01, "/pid")?;
            start(&stage.web01)?;
        }
        Fault::Relay => {
            stage.stop_services()?;
            traffic.go_on_until(begun + Duration::from_secs(1 + measure / 5))?;
            stage.start_services()?;
        }
        Fault::Udp => {
            stage.net()?.home.set_udp(false)?;
            traffic.go_on_until(begun + Duration::from_secs(10))?;
            stage.net()?.home.set_udp(true)?;
        }
    }
    traffic.repaired()
}

/// Sends messages there and back, one after the other, until the faults are over.
fn messages(stage: &Stage, seed: u64, turn: u64, over: &AtomicBool) -> Result<Evidence> {
    let mut evidence = Evidence::default();
    let mut number = turn << 32;
    while !over.load(Ordering::Acquire) {
        number += 1;
        let power = draw(seed, number, LARGEST + 1);
        let length = (1 << power) - draw(!seed, number, 1 << power.saturating_sub(1));
        evidence.add(&there_and_back(stage, length, number)?);
    }
    Ok(evidence)
}
