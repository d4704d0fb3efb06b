//! Too much at once, and answers that never come: whoever does it waits, and nobody else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::peer::{Announce, Close, Open};
use malai_protocol::session::ExecSpec;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::peer::{self, Got, Wire, closed, exec, got, open, ping, raw, send};
use crate::support::scene::{Scene, asked, deliver, false_deliveries, offer};
use crate::support::{SOON, follow, spec, until};

/// Sessions on one connection, as the design has it.
const MOST: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_streams_at_once_end_and_others_are_served_meanwhile() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    let mut flood = JoinSet::new();
    for number in 0..5000u32 {
        let conn = conn.clone();
        flood.spawn(async move {
            let mut wire = open(&conn).await?;
            // Some ask, some talk nonsense, some leave at once.
            match number % 3 {
                0 => wire.send(Frame::empty(Kind::Ping)).await?,
                1 => raw(&mut wire, &[0xff; 64]).await?,
                _ => {}
            }
            peer::finish(&mut wire)?;
            got(&mut wire).await
        });
    }
    scene.serves().await?;
    let mut pongs = 0;
    while let Some(answer) = flood.join_next().await {
        match answer?? {
            Got::Frame(frame) if frame.kind == Kind::Pong => pongs += 1,
            Got::Reset(_) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(pongs == 5000usize.div_ceil(3), "{pongs} were answered");
    ping(&conn).await?;
    scene.web01.stop().await?;
    Ok(())
}

/// Opens so many sessions that have not said yet what they run.
async fn begin_sessions(conn: &Connection, scene: &Scene, count: usize) -> Result<Vec<Wire>> {
    let mut begun = Vec::new();
    for _ in 0..count {
        let mut wire = open(conn).await?;
        send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation: 0 }).await?;
        begun.push(wire);
    }
    Ok(begun)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_on_a_connection_is_refused_by_name() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut begun = begin_sessions(&conn, &scene, MOST).await?;
    // Streams arrive in any order: the answers tell when all have.
    let failure = timeout(SOON, async {
        loop {
            let ran = peer::run(&conn, scene.key.id(), &["true"]).await?;
            if let Err(Some(failure)) = ran.end {
                return anyhow::Ok(failure);
            }
        }
    });
    let failure = failure.await.context("nothing was refused")??;
    ensure!(failure.kind == FailureKind::Busy && failure.message.contains("1024"), "{failure}");
    // Those that were taken still run what they want, and another connection is another matter.
    let mut first = begun.swap_remove(0);
    send(&mut first, Kind::Exec, &spec(&["echo", "in time"])).await?;
    let ran = follow(first).await?;
    ensure!(ran.stdout == b"in time\n", "{ran:?}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_announcements_waits_at_its_sender() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    let (mut control, hello) = peer::greet(&conn, None).await?;
    let announce = Announce::of(hello.header.context("a header")?);
    let frame = Frame::control(Kind::Announce, &announce)?.to_bytes().repeat(100);
    let mut sent = 0;
    // Taken at once, a megabyte would be gone in a moment; at their pace they fill the stream's window.
    while let Ok(written) = timeout(Duration::from_millis(300), raw(&mut control, &frame)).await {
        written?;
        sent += frame.len();
        ensure!(sent < 16 << 20, "announcements are taken as fast as they are sent");
    }
    scene.serves().await?;
    ping(&conn).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_announces_and_does_not_deliver_holds_nobody_back() -> Result<()> {
    let scene = Scene::new().await?;
    let announced = scene.sign(&scene.text().replace("[\"friend\"]", "[]"))?;
    let header = announced.signed_header();
    // One says again and again what it has, and never answers; another begins its answer and stops.
    let silent = scene.guest.dial(&scene.web01).await?;
    let (mut control, _) = peer::greet(&silent, Some(header.clone())).await?;
    for _ in 0..10 {
        send(&mut control, Kind::Announce, &Announce::of(header.clone())).await?;
    }
    let slow = scene.friend.dial(&scene.web01).await?;
    let _control = peer::greet(&slow, Some(header.clone())).await?;
    let _unanswered = asked(&silent).await?;
    let mut half = asked(&slow).await?;
    raw(&mut half, &Frame::control(Kind::Snapshot, &announced.to_signed())?.to_bytes()[..50]).await?;
    // The manager's own connection brings it all the same.
    let manager = scene.laptop.dial(&scene.web01).await?;
    let _control = offer(&manager, &announced).await?;
    until("the snapshot arrives", || async { Ok(scene.held().await? == announced.header().generation) }).await?;
    let refused = scene.run(&["true"]).await?;
    ensure!(refused.started.is_none(), "access was withdrawn: {refused:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_delivers_something_else_changes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let announced = scene.sign_as(9, &scene.text())?;
    for (what, bytes) in false_deliveries(&announced)? {
        let conn = scene.guest.dial(&scene.web01).await?;
        let (code, words) = deliver(&conn, &announced, &bytes).await?;
        ensure!(code == Some(Close::Protocol), "{what}: {code:?} {words}");
        ensure!(scene.held().await? == 1, "{what}: it was taken");
    }
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_of_a_machine_is_closed_as_busy() -> Result<()> {
    let scene = Scene::new().await?;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(scene.guest.dial(&scene.web01).await?);
    }
    let mut closings = JoinSet::new();
    for conn in held.clone() {
        closings.spawn(async move { closed(&conn).await });
    }
    loop {
        let (code, words) = closings.join_next().await.context("none was closed as busy")???;
        match code {
            Some(Close::Busy) => break,
            // On a slow machine so many take so long that the first ones count as spare.
            Some(Close::Replaced) => {}
            other => anyhow::bail!("closed as {other:?}: {words}"),
        }
    }
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_over_one_connection_all_run() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut all = JoinSet::new();
    for number in 0..100u32 {
        let (conn, cluster) = (conn.clone(), scene.key.id());
        all.spawn(async move {
            let request = ExecSpec { timeout_ms: Some(60_000), ..spec(&["echo", &number.to_string()]) };
            let ran = follow(exec(&conn, cluster, &request).await?).await?;
            ensure!(ran.stdout == format!("{number}\n").into_bytes(), "{ran:?}");
            Ok(())
        });
    }
    while let Some(ran) = all.join_next().await {
        ran??;
    }
    scene.web01.stop().await?;
    Ok(())
}
