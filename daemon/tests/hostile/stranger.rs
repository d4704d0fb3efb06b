//! Keys that are not in the config, at the machine key's endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::peer::{ALPN, Close, Hello, Open, Pull, Resolve};

use tokio::task::JoinSet;

use crate::support::peer::{self, Got, Peer, closed, forge, got, hello, open, raw};
use crate::support::scene::{Scene, deliver, false_deliveries, offer};
use crate::support::{spec, until};

/// What a stranger may begin with instead of a proper greeting, by name.
fn openings(scene: &Scene) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let frame = |kind, value: &Hello| anyhow::Ok(Frame::control(kind, value)?.to_bytes().to_vec());
    let newer = scene.sign_as(9, "x")?.signed_header().clone();
    let forged = forge(&newer)?;
    let other = ClusterKey::generate()?.sign(9, 1, "x".into())?.signed_header().clone();
    let same = scene.sign_as(1, &scene.text())?.signed_header().clone();
    let older = scene.sign_as(0, &scene.text())?.signed_header().clone();
    let mut request = Frame::control(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?.to_bytes().to_vec();
    request.extend(Frame::control(Kind::Exec, &spec(&["true"]))?.to_bytes());
    let length = |length: u32| [&[Kind::PeerHello as u8][..], &length.to_le_bytes()].concat();
    Ok(vec![
        ("a session", request),
        ("a pull", Frame::control(Kind::Pull, &Pull { generation: 1 })?.to_bytes().to_vec()),
        (
            "a question where a machine is",
            Frame::control(Kind::Resolve, &Resolve { machine: scene.web01_id, hops: 1 })?.to_bytes().to_vec(),
        ),
        ("a ping", Frame::empty(Kind::Ping).to_bytes().to_vec()),
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("garbage", vec![0xff; 4096]),
        ("nothing but the end", Vec::new()),
        ("a greeting over its cap", length(MAX_HELLO as u32 + 1)),
        ("a greeting of 4 GiB", length(u32::MAX)),
        ("a greeting cut short", frame(Kind::PeerHello, &hello(None))?[..20].to_vec()),
        ("a greeting that is no CBOR", [length(3), vec![0xff; 3]].concat()),
        ("a greeting without a snapshot", frame(Kind::PeerHello, &hello(None))?),
        ("a forged signature", frame(Kind::PeerHello, &hello(Some(forged)))?),
        ("another cluster's snapshot", frame(Kind::PeerHello, &hello(Some(other)))?),
        ("the same snapshot", frame(Kind::PeerHello, &hello(Some(same)))?),
        ("an older snapshot", frame(Kind::PeerHello, &hello(Some(older)))?),
        ("an agent's greeting", frame(Kind::PeerHello, &Hello { caller_only: true, ..hello(Some(newer.clone())) })?),
        ("an unknown need", frame(Kind::PeerHello, &Hello { needs: vec!["x".into()], ..hello(Some(newer)) })?),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_nothing_but_that_it_is_no_member_however_it_begins() -> Result<()> {
    let scene = Scene::new().await?;
    for (what, bytes) in openings(&scene)? {
        let stranger = Peer::new().await?;
        let conn = stranger.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &bytes).await?;
        peer::finish(&mut wire)?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::NotAMember), "{what}: {code:?} {words}");
        let answer = got(&mut wire).await?;
        ensure!(matches!(answer, Got::Closed(Some(Close::NotAMember))), "{what}: {answer:?}");
    }
    ensure!(scene.audited() == 0, "a stranger got as far as the audit");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_keeps_its_greeting_to_itself_is_closed_after_two_seconds() -> Result<()> {
    let scene = Scene::new().await?;
    let (silent, half) = (Peer::new().await?, Peer::new().await?);
    let begun = Instant::now();
    let (one, other) = (silent.dial(&scene.web01).await?, half.dial(&scene.web01).await?);
    let mut wire = open(&other).await?;
    raw(&mut wire, &Frame::control(Kind::PeerHello, &hello(None))?.to_bytes()[..6]).await?;
    for conn in [&one, &other] {
        ensure!(closed(conn).await?.0 == Some(Close::NotAMember));
        ensure!(begun.elapsed() < Duration::from_secs(10), "closed after {:?}", begun.elapsed());
    }
    ensure!(begun.elapsed() >= Duration::from_secs(2), "it had less than its time");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_in_every_place_do_not_keep_a_member_out() -> Result<()> {
    let scene = Scene::new().await?;
    let address = scene.web01.address().await?;
    let (came, here) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crowd = JoinSet::new();
    // Each comes again when it was turned out, so that on a busy machine there are strangers all the time, too.
    for _ in 0..100 {
        let (stranger, address) = (Peer::new().await?, address.clone());
        let (came, here) = (Arc::clone(&came), Arc::clone(&here));
        crowd.spawn(async move {
            loop {
                if let Ok(conn) = stranger.endpoint.connect(address.clone(), ALPN).await {
                    came.fetch_add(1, Ordering::Relaxed);
                    here.fetch_add(1, Ordering::Relaxed);
                    conn.closed().await;
                    here.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
    }
    until("most strangers have come", || async { Ok(came.load(Ordering::Relaxed) >= 60) }).await?;
    scene.serves().await?;
    ensure!(here.load(Ordering::Relaxed) > 0, "it served only when the strangers had gone");
    crowd.shutdown().await;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_a_newer_snapshot_that_names_it_is_served() -> Result<()> {
    let scene = Scene::new().await?;
    let stranger = Peer::new().await?;
    let line = format!("[machine.newcomer]\nid52 = \"{}\"\n", stranger.id);
    let snapshot = scene.sign(&(scene.text().replace("[\"friend\"]", "[\"newcomer\"]") + &line))?;
    let conn = stranger.dial(&scene.web01).await?;
    let _control = offer(&conn, &snapshot).await?;
    let ran = peer::run(&conn, scene.key.id(), &["echo", "hello"]).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    ensure!(scene.held().await? == snapshot.header().generation);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_a_newer_snapshot_that_does_not_name_it_is_closed() -> Result<()> {
    let scene = Scene::new().await?;
    let stranger = Peer::new().await?;
    let snapshot = scene.sign(&scene.text())?;
    let conn = stranger.dial(&scene.web01).await?;
    let _control = offer(&conn, &snapshot).await?;
    ensure!(closed(&conn).await?.0 == Some(Close::NotAMember));
    ensure!(scene.held().await? == snapshot.header().generation, "what is signed is taken from anybody");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_whose_snapshot_is_not_what_it_announced_is_closed_and_changes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let announced = scene.sign_as(9, &scene.text())?;
    for (what, bytes) in false_deliveries(&announced)? {
        let stranger = Peer::new().await?;
        let conn = stranger.dial(&scene.web01).await?;
        let (code, words) = deliver(&conn, &announced, &bytes).await?;
        ensure!(code == Some(Close::NotAMember), "{what}: {code:?} {words}");
        ensure!(scene.held().await? == 1, "{what}: it was taken");
    }
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_comes_back_at_once_is_closed_unread() -> Result<()> {
    let scene = Scene::new().await?;
    let stranger = Peer::new().await?;
    let first = stranger.dial(&scene.web01).await?;
    let mut wire = open(&first).await?;
    peer::send(&mut wire, Kind::PeerHello, &hello(None)).await?;
    ensure!(closed(&first).await?.0 == Some(Close::NotAMember));
    // The second would be read, and its snapshot asked for, if it did not come too soon.
    let second = stranger.dial(&scene.web01).await?;
    let newer = scene.sign_as(9, "x")?.signed_header().clone();
    let greeted = peer::greet(&second, Some(newer)).await;
    ensure!(greeted.is_err(), "it was greeted back");
    ensure!(closed(&second).await?.0 == Some(Close::NotAMember));
    scene.web01.stop().await?;
    Ok(())
}
