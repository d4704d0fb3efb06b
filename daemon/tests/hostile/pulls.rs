//! Snapshots that are asked for and not taken.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use iroh::endpoint::Connection;
use malai_protocol::codec::Kind;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{Announce, Pull};
use malai_protocol::snapshot::Signed;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::support::peer::{self, Wire, open, ping, send};
use crate::support::scene::Scene;
use crate::support::{SOON, next, until};

/// Snapshots that one machine may fetch at once.
const MOST: usize = 4;

/// Asks for the snapshot, and reads no more of the answer than what it is.
async fn begin(conn: &Connection) -> Result<(Wire, Option<Kind>)> {
    let mut wire = open(conn).await?;
    send(&mut wire, Kind::Pull, &Pull { generation: 0 }).await?;
    peer::finish(&mut wire)?;
    let kind = timeout(SOON, wire.get_mut().reader_mut().read_u8()).await??;
    Ok((wire, Kind::from_number(kind)))
}

/// A config far larger than what a stream carries without being read.
async fn large(scene: &Scene) -> Result<String> {
    let text = format!("{}# {}\n", scene.text(), "x".repeat(3 << 20));
    scene.publish(&text).await?;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_fetches_and_does_not_take_is_refused_the_fifth_over_all_its_connections() -> Result<()> {
    let scene = Scene::new().await?;
    let text = large(&scene).await?;
    let conns = [scene.guest.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?];
    let begun = try_join_all((0..8).map(|number| begin(&conns[number % 2]))).await?;
    let (given, refused): (Vec<_>, Vec<_>) = begun.into_iter().partition(|(_, kind)| *kind == Some(Kind::Snapshot));
    ensure!(given.len() == MOST, "{} are given at once", given.len());
    ensure!(refused.iter().all(|(_, kind)| *kind == Some(Kind::Refused)), "{refused:?}");
    // By name, and over a connection that goes on.
    let mut wire = open(&conns[0]).await?;
    send(&mut wire, Kind::Pull, &Pull { generation: 0 }).await?;
    let failure: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
    ensure!(failure.kind == FailureKind::Busy, "{failure}");
    ping(&conns[0]).await?;
    // Others get it.
    let other = scene.friend.dial(&scene.web01).await?;
    let mut wire = open(&other).await?;
    send(&mut wire, Kind::Pull, &Pull { generation: 0 }).await?;
    let signed: Signed = next(&mut wire).await?.expect(Kind::Snapshot, "Snapshot")?;
    ensure!(signed.verify(&scene.key.id())?.text() == text);
    scene.serves().await?;
    // Given up, they leave room.
    drop(given);
    until("there is room again", || async { Ok(begin(&conns[1]).await?.1 == Some(Kind::Snapshot)) }).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_a_snapshot_as_busy_keeps_its_connection_and_asks_again() -> Result<()> {
    let scene = Scene::new().await?;
    let snapshot = scene.sign(&(scene.text() + "# newer\n"))?;
    let header = snapshot.signed_header().clone();
    let conn = scene.laptop.dial(&scene.web01).await?;
    let (mut control, _) = peer::greet(&conn, Some(header.clone())).await?;
    let mut asked = peer::accept(&conn).await?;
    let _pull: Pull = next(&mut asked).await?.expect(Kind::Pull, "Pull")?;
    send(&mut asked, Kind::Refused, &Failure::new(FailureKind::Busy, "later")).await?;
    peer::finish(&mut asked)?;
    ping(&conn).await?;
    // Announced again, it is asked for again.
    send(&mut control, Kind::Announce, &Announce::of(header)).await?;
    let mut asked = peer::accept(&conn).await?;
    let _pull: Pull = next(&mut asked).await?.expect(Kind::Pull, "Pull")?;
    send(&mut asked, Kind::Snapshot, &snapshot.to_signed()).await?;
    until("it is held", || async { Ok(scene.held().await? == snapshot.header().generation) }).await?;
    scene.web01.stop().await?;
    Ok(())
}
