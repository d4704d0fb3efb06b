//! Who may say that two machines hold one key: the key's own connections, and the cluster manager.

use anyhow::{Context, Result, ensure};
use iroh::endpoint::Connection;
use malai_protocol::codec::Kind;
use malai_protocol::id::Incarnation;
use malai_protocol::peer::{Announce, Hello};

use crate::support::peer::{self, Peer, Wire, hello, open, send};
use crate::support::scene::Scene;
use crate::support::{next, until};

/// A connection whose greeting names this life.
async fn greeted(scene: &Scene, from: &Peer, life: u8) -> Result<(Connection, Wire)> {
    let conn = from.dial(&scene.web01).await?;
    let mut control = open(&conn).await?;
    let boot = Some(Incarnation::from_bytes([life; 16]));
    send(&mut control, Kind::PeerHello, &Hello { boot, ..hello(None) }).await?;
    let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    Ok((conn, control))
}

async fn alarm(scene: &Scene) -> Result<Option<String>> {
    Ok(scene.web01.cluster().await?.alarm)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_member_can_have_it_said_of_another_that_two_machines_hold_its_key() -> Result<()> {
    let scene = Scene::new().await?;
    let mut all = Vec::new();
    // The guest knows the names of the friend's lives, and says that they are its own.
    for (peer, life) in
        [(&scene.friend, 1), (&scene.guest, 2), (&scene.friend, 3), (&scene.guest, 1), (&scene.friend, 3)]
    {
        all.push(greeted(&scene, peer, life).await?);
    }
    ensure!(alarm(&scene).await?.is_none(), "{:?}", alarm(&scene).await?);
    // It can have it said of itself.
    all.push(greeted(&scene, &scene.guest, 2).await?);
    let text = alarm(&scene).await?.context("an alarm")?;
    ensure!(text.contains("the key of guest") && !text.contains("friend"), "{text}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_alone_is_believed_that_another_machine_holds_the_own_key() -> Result<()> {
    let scene = Scene::new().await?;
    let header = scene.sign_as(1, &scene.text())?.signed_header().clone();
    let says = |twin: Option<&str>| Announce { twin: twin.map(str::to_owned), ..Announce::of(header.clone()) };
    let (guest, mut control) = greeted(&scene, &scene.guest, 1).await?;
    send(&mut control, Kind::Announce, &says(Some("direct 192.0.2.9:4001"))).await?;
    // A second one is read after the first was taken in.
    send(&mut control, Kind::Announce, &says(None)).await?;
    peer::ping(&guest).await?;
    let (_laptop, mut control) = greeted(&scene, &scene.laptop, 1).await?;
    ensure!(alarm(&scene).await?.is_none());
    send(&mut control, Kind::Announce, &says(Some("direct 192.0.2.7:4001\u{1b}[2J"))).await?;
    until("the alarm", || async { Ok(alarm(&scene).await?.is_some()) }).await?;
    let text = alarm(&scene).await?.context("an alarm")?;
    ensure!(text.contains("192.0.2.7:4001") && !text.contains('\u{1b}'), "{text}");
    send(&mut control, Kind::Announce, &says(None)).await?;
    until("the alarm is over", || async { Ok(alarm(&scene).await?.is_none()) }).await?;
    scene.web01.stop().await?;
    Ok(())
}
