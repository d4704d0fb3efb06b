//! A machine that the config has no more: it is served nothing from then on, over connections that it has too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::SinkExt;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::{Close, Pull, Resolve};
use malai_protocol::session::{EndedBy, ExitRecord, Started};

use crate::support::peer::{self, Got, Peer, closed, exec, got, hello, open, send};
use crate::support::scene::Scene;
use crate::support::{next, spec};

/// The config without one machine.
fn without(scene: &Scene, name: &str, peer: &Peer) -> String {
    let text = scene.text().replace(&format!("[machine.{name}]\nid52 = \"{}\"\n", peer.id), "");
    text.replace(&format!("allow_from = [\"{name}\"]"), "allow_from = []")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_removed_is_disconnected_at_once_and_told_why() -> Result<()> {
    let scene = Scene::new().await?;
    let (idle, mut control) = scene.guest.come(&scene.web01).await?;
    let silent = scene.guest.dial(&scene.web01).await?;
    peer::ping(&silent).await?;
    scene.publish(&without(&scene, "guest", &scene.guest)).await?;
    let begun = Instant::now();
    for conn in [&idle, &silent] {
        let (code, words) = closed(conn).await?;
        ensure!(code == Some(Close::Removed) && words.contains("not a member"), "{code:?} {words}");
    }
    // It used to be served for 7 s.
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let last = got(&mut control).await?;
    ensure!(matches!(last, Got::Closed(Some(Close::Removed))), "the config that it is not in was announced: {last:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_removed_has_the_records_of_its_sessions_and_is_served_nothing_meanwhile() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut session = exec(&conn, scene.key.id(), &spec(&["sleep", "600"])).await?;
    let _started: Started = next(&mut session).await?.expect(Kind::Started, "Started")?;
    scene.publish(&without(&scene, "friend", &scene.friend)).await?;
    // It greets too late. Its session is not left, so that the connection stays for a while.
    let mut control = open(&conn).await?;
    send(&mut control, Kind::PeerHello, &hello(None)).await?;
    let questions = [
        ("a snapshot", Frame::control(Kind::Pull, &Pull { generation: 0 })?),
        ("a machine", Frame::control(Kind::Resolve, &Resolve { machine: scene.laptop.id, hops: 0 })?),
        ("an answer", Frame::empty(Kind::Ping)),
    ];
    for (what, question) in questions {
        let mut wire = open(&conn).await?;
        wire.send(question).await?;
        let refused: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
        ensure!(refused.kind == FailureKind::NotAMember && refused.hint.is_some(), "{what}: {refused}");
    }
    let refused = peer::run(&conn, scene.key.id(), &["true"]).await?.end.expect_err("it ran");
    ensure!(refused.as_ref().is_some_and(|failure| failure.kind == FailureKind::NotAMember), "{refused:?}");
    let record: ExitRecord = next(&mut session).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Revoked, "{record:?}");
    let last = got(&mut control).await?;
    ensure!(matches!(last, Got::Closed(Some(Close::Removed))), "it was greeted back: {last:?}");
    ensure!(closed(&conn).await?.0 == Some(Close::Removed));
    scene.web01.stop().await?;
    Ok(())
}
