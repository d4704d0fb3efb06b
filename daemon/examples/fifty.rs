//! Figures of config sync, with 50 machines in one process: how long until a rescan is held by all, and how long until
//! withdrawn access has ended a running session at its caller.
//!
//!     cargo run --release -p malai-daemon --example fifty
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use malai_protocol::codec::Kind;
use malai_protocol::local::{Publication, Request, Rescan, RescanOutcome, Response};
use malai_protocol::session::{EndedBy, Started};
use support::{Machine, follow, next, spec};

/// Machines, the cluster manager among them.
const MACHINES: usize = 50;
/// Times that each figure is taken.
const ROUNDS: usize = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let begun = Instant::now();
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let mut machines = Vec::new();
    for number in 1..MACHINES {
        let machine = Machine::start().await?;
        machine.join(laptop.invite(&format!("m{number}")).await?).await?;
        machines.push(machine);
    }
    println!("{MACHINES} machines joined one after the other   {:>8.1?}", begun.elapsed());
    figure("a rescan is held by all", &held(&laptop).await?);
    figure("withdrawn access has ended a session", &withdrawn(&laptop).await?);
    for machine in machines {
        machine.stop().await?;
    }
    laptop.stop().await?;
    Ok(())
}

fn figure(what: &str, times: &[Duration]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let (median, most) = (times.get(times.len() / 2), times.last());
    println!(
        "{what:40} median {:>8.1?}  most {:>8.1?}",
        median.copied().unwrap_or_default(),
        most.copied().unwrap_or_default()
    );
}

/// From the request to the answer that names all of them: each has said that it holds the new generation.
async fn held(laptop: &Machine) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let text = std::fs::read_to_string(laptop.config())? + &format!("# {round}\n");
        let begun = Instant::now();
        let publication = rescan(laptop, &text).await?;
        times.push(begun.elapsed());
        ensure!(publication.holding.len() == MACHINES, "not held by {:?}", publication.missing);
    }
    Ok(times)
}

/// From the request to the exit record at the caller's socket.
async fn withdrawn(laptop: &Machine) -> Result<Vec<Duration>> {
    let allowed = std::fs::read_to_string(laptop.config())?;
    let refused = allowed.replace("[machine.m1]", "[machine.m1]\nallow_from = []");
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut session = laptop.begin("m1", &spec(&["sleep", "600"])).await?;
        let _started: Started = next(&mut session).await?.expect(Kind::Started, "Started")?;
        let begun = Instant::now();
        let followed = async {
            let ran = follow(session).await?;
            anyhow::Ok((ran, begun.elapsed()))
        };
        let (ended, published) = tokio::join!(followed, rescan(laptop, &refused));
        let (ran, time) = ended?;
        published?;
        ensure!(ran.end.as_ref().is_ok_and(|record| record.ended_by == EndedBy::Revoked), "{ran:?}");
        times.push(time);
        rescan(laptop, &allowed).await?;
    }
    Ok(times)
}

/// Publishes this text.
async fn rescan(laptop: &Machine, text: &str) -> Result<Publication> {
    std::fs::write(laptop.config(), text)?;
    let ask = Rescan { cluster: Some("c".into()), check: false, yes: false, over: None };
    match laptop.ask(Request::Rescan(ask)).await? {
        Response::Rescanned(mut all) => match all.pop().context("a cluster")?.outcome {
            RescanOutcome::Published(publication) => Ok(publication),
            other => bail!("{other:?}"),
        },
        other => bail!("{other:?}"),
    }
}
