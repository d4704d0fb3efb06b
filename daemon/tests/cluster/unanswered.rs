//! Machines that do not answer: nobody waits long for them, and not for one after the other.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use malai_protocol::codec::Kind;
use malai_protocol::peer::Close;

use crate::support::peer::{self, Peer, closed};
use crate::support::scene::Scene;
use crate::support::{next, spec, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_status_waits_for_all_machines_that_do_not_answer_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let mut silent = Vec::new();
    for peer in [&scene.laptop, &scene.friend, &scene.guest] {
        let conn = peer.dial(&scene.web01).await?;
        let control = peer::greet(&conn, None).await?;
        silent.push((conn, control));
    }
    let begun = Instant::now();
    let status = scene.web01.cluster().await?;
    let took = begun.elapsed();
    for (conn, _) in &silent {
        ensure!(next(&mut peer::accept(conn).await?).await?.kind == Kind::Ping, "one was not asked");
    }
    ensure!(status.machines.iter().all(|machine| machine.connection.is_none()), "{:?}", status.machines);
    // Each has 2 s.
    ensure!(took >= Duration::from_secs(2) && took < Duration::from_secs(4), "it took {took:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_tells_its_peers_and_does_not_wait_for_one_that_vanished() -> Result<()> {
    let scene = Scene::new().await?;
    // Whoever is dialled here takes every packet, and answers none.
    let (vanished, void) = (Peer::new().await?, UdpSocket::bind("127.0.0.1:0")?);
    void.set_nonblocking(true)?;
    let lines = format!("[machine.vanished]\nid52 = \"{}\"\naddresses = [\"{}\"]\n", vanished.id, void.local_addr()?);
    scene.publish(&(scene.text() + &lines)).await?;
    let there = scene.friend.dial(&scene.web01).await?;
    let _control = peer::greet(&there, None).await?;
    let _session = scene.web01.begin("vanished", &spec(&["true"])).await?;
    until("it is dialled", || async { Ok(void.recv(&mut [0; 1]).is_ok()) }).await?;
    let begun = Instant::now();
    scene.web01.finish().await?;
    let took = begun.elapsed();
    ensure!(closed(&there).await?.0 == Some(Close::Shutdown));
    ensure!(took < Duration::from_millis(2500), "it took {took:?}");
    Ok(())
}
