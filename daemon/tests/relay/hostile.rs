//! Whoever breaks the rules at one of the relay's ports changes nothing, and machines are served meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use malai_daemon::store;
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind, MAX_HELLO};
use malai_protocol::peer::{ALPN, Close, Hello, Pull};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::stage::{Stage, key};
use crate::support::forge::{Flood, addresses, record};
use crate::support::peer::{self, Peer, closed, forge, hello, open, raw};
use crate::support::scene::{deliver, false_deliveries};
use crate::support::{SOON, until};

/// What may come in place of a proper greeting, by name.
fn openings(stage: &Stage) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let frame = |value: &Hello| anyhow::Ok(Frame::control(Kind::PeerHello, value)?.to_bytes().to_vec());
    let newer = stage.sign(9, &[&key()])?.signed_header().clone();
    let other = ClusterKey::generate()?.sign(9, 1, "x".into())?.signed_header().clone();
    let length = |length: u32| [&[Kind::PeerHello as u8][..], &length.to_le_bytes()].concat();
    Ok(vec![
        ("a pull", Frame::control(Kind::Pull, &Pull { generation: 1 })?.to_bytes().to_vec()),
        ("a ping", Frame::empty(Kind::Ping).to_bytes().to_vec()),
        ("garbage", vec![0xff; 4096]),
        ("nothing but the end", Vec::new()),
        ("a greeting over its cap", length(MAX_HELLO as u32 + 1)),
        ("a greeting of 4 GiB", length(u32::MAX)),
        ("a greeting cut short", frame(&hello(None))?[..20].to_vec()),
        ("a greeting that is no CBOR", [length(3), vec![0xff; 3]].concat()),
        ("a greeting without a snapshot", frame(&hello(None))?),
        ("a forged signature", frame(&hello(Some(forge(&newer)?)))?),
        ("another cluster's snapshot", frame(&hello(Some(other)))?),
        ("an unknown need", frame(&Hello { needs: vec!["x".into()], ..hello(Some(newer)) })?),
    ])
}

async fn alarm(stage: &Stage) -> Result<Option<String>> {
    Ok(stage.status().await?.clusters[0].alarm.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shows_no_header_of_a_cluster_of_the_relay_is_told_nothing_and_changes_nothing() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(5, &[&machine])?).await?;
    for (what, bytes) in openings(&stage)? {
        let stranger = Peer::new().await?;
        // Each from the same address: more than the burst would be refused, at the pace they are heard.
        let conn = dial_at_pace(&stage, &stranger).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &bytes).await?;
        peer::finish(&mut wire)?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::NotAMember), "{what}: {code:?} {words}");
        ensure!(stage.holds().await? == Some(5), "{what}");
    }
    let _serves = stage.admitted(&machine, None).await?;
    stage.stop().await
}

/// Dials until the pace of this address admits it.
async fn dial_at_pace(stage: &Stage, peer: &Peer) -> Result<iroh::endpoint::Connection> {
    let deadline = Instant::now() + SOON;
    loop {
        match stage.dial(peer).await {
            Err(_) if Instant::now() < deadline => {}
            dialled => return dialled,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_snapshot_of_the_same_number_is_not_taken() -> Result<()> {
    let stage = Stage::new().await?;
    let (machine, other) = (key(), key());
    stage.bring(&stage.sign(5, &[&machine])?).await?;
    let stranger = Peer::new().await?;
    let conn = stage.dial(&stranger).await?;
    let snapshot = stage.sign(5, &[&other])?;
    let (_wire, theirs) = peer::greet(&conn, Some(snapshot.signed_header().clone())).await?;
    let held = theirs.header.clone().context("it holds one")?.verify(&stage.key.id())?;
    ensure!(held.generation == 5 && theirs.addresses.is_empty(), "{theirs:?}");
    conn.close(0u32.into(), b"");
    crate::support::until("the alarm", || async { Ok(stage.status().await?.clusters[0].alarm.is_some()) }).await?;
    stage.refused(&other, None, "not a machine").await?;
    let _serves = stage.admitted(&machine, None).await?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_a_machine_once_and_has_nothing_newer_is_told_nothing() -> Result<()> {
    let stage = Stage::new().await?;
    let (machine, other) = (key(), key());
    let (first, last) = (stage.sign(4, &[&machine, &other])?, stage.sign(5, &[&machine])?);
    stage.bring(&first).await?;
    stage.bring(&last).await?;
    for shown in [first, last] {
        let ex = Peer::new().await?;
        let conn = stage.dial(&ex).await?;
        let greeted = peer::greet(&conn, Some(shown.signed_header().clone())).await;
        ensure!(greeted.is_err(), "it was greeted: {greeted:?}");
        ensure!(closed(&conn).await?.0 == Some(Close::NotAMember));
    }
    let alarm = stage.status().await?.clusters[0].alarm.clone();
    ensure!(alarm.is_none(), "{alarm:?}");
    stage.refused(&other, None, "not a machine").await?;
    let _serves = stage.admitted(&machine, None).await?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_cannot_be_stored_holds_all_the_same_and_is_told_of_until_it_is_stored() -> Result<()> {
    let stage = Stage::new().await?;
    let (machine, other) = (key(), key());
    stage.bring(&stage.sign(4, &[&machine, &other])?).await?;
    // Nothing can be stored in the place of a directory.
    let stored = stage.home.relay().snapshot(&stage.key.id());
    let reserve = stage.home.relay().snapshot_reserve(&stage.key.id());
    until("the first one is stored", || async { Ok(stored.is_file() && reserve.is_file()) }).await?;
    std::fs::rename(&stored, stored.with_extension("aside"))?;
    std::fs::create_dir(&stored)?;
    ensure!(stage.bring(&stage.sign(5, &[&machine])?).await? == 5);
    stage.refused(&other, None, "not a machine").await?;
    let serves = stage.admitted(&machine, None).await?;
    until("the alarm", || async { Ok(alarm(&stage).await?.is_some()) }).await?;
    let told = alarm(&stage).await?.context("no alarm")?;
    ensure!(told.starts_with("the config of generation 5 is in force but cannot be stored: "), "{told}");
    ensure!(told.contains("after a restart"), "{told}");
    // As on a full disk the old one is still there, and the new one in the reserve.
    drop(serves);
    let room_again = || {
        std::fs::remove_dir(&stored)?;
        Ok(std::fs::rename(stored.with_extension("aside"), &stored)?)
    };
    let stage = stage.restart_after(room_again).await?;
    ensure!(stage.holds().await? == Some(5));
    stage.refused(&other, None, "not a machine").await?;
    let id = stage.key.id();
    let filed = || store::snapshot::load(&stored, &id).map(|found| found.map(|filed| filed.header().generation));
    until("it is stored", || async { Ok(filed()? == Some(5)) }).await?;
    until("the alarm is over", || async { Ok(alarm(&stage).await?.is_none()) }).await?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_what_was_announced_is_not_taken() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(5, &[&machine])?).await?;
    let announced = stage.sign(9, &[&key()])?;
    for (what, bytes) in false_deliveries(&announced)? {
        let stranger = Peer::new().await?;
        let conn = dial_at_pace(&stage, &stranger).await?;
        let (code, words) = deliver(&conn, &announced, &bytes).await?;
        ensure!(code == Some(Close::NotAMember), "{what}: {code:?} {words}");
        ensure!(stage.holds().await? == Some(5), "{what}: it was taken");
    }
    ensure!(stage.bring(&announced).await? == 9, "the true one is taken after all");
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_at_both_ports_does_not_keep_a_machine_out() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(1, &[&machine])?).await?;
    let udp = UdpSocket::bind("127.0.0.1:0").await?;
    let mut silent = Vec::new();
    for number in 0..100u8 {
        let mut stream = TcpStream::connect(stage.address).await?;
        match number % 3 {
            0 => stream.write_all(&[0xff; 4096]).await?,
            1 => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?,
            _ => {}
        }
        silent.push(stream);
        udp.send_to(&[number; 1200], stage.address).await?;
    }
    let _serves = stage.admitted(&machine, None).await?;
    ensure!(stage.bring(&stage.sign(2, &[&machine])?).await? == 2);
    // Those that say nothing have ten seconds.
    for mut stream in silent {
        // The end may come as a reset, which is one as well.
        timeout(SOON, async { while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} })
            .await
            .context("it stays open")?;
    }
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_strangers_are_refused_and_a_machine_is_served_among_them() -> Result<()> {
    let stage = std::sync::Arc::new(Stage::new().await?);
    let machine = key();
    stage.bring(&stage.sign(1, &[&machine])?).await?;
    let mut crowd = JoinSet::new();
    for _ in 0..1000 {
        while crowd.len() >= 50 {
            ensure!(crowd.join_next().await.context("one")???, "a stranger was admitted");
        }
        let stage = std::sync::Arc::clone(&stage);
        crowd.spawn(async move { anyhow::Ok(stage.client(&key(), None).await?.is_err()) });
    }
    let deadline = Instant::now() + SOON;
    let served = loop {
        match stage.client(&machine, None).await? {
            Ok(client) => break client,
            // It comes from the same address as all of them.
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(why) => anyhow::bail!("not served: {why}"),
        }
    };
    while let Some(refused) = crowd.join_next().await {
        ensure!(refused??, "a stranger was admitted");
    }
    let status = stage.status().await?;
    ensure!(status.connected == 1 && status.refused + status.unheard >= 1000, "{status:?}");
    drop(served);
    std::sync::Arc::into_inner(stage).context("somebody still has it")?.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_of_another_version_is_closed_as_unsupported() -> Result<()> {
    let stage = Stage::new().await?;
    let newer = stage.sign(5, &[&key()])?.signed_header().clone();
    for version in [0, 2, u32::MAX] {
        let stranger = Peer::new().await?;
        let conn = dial_at_pace(&stage, &stranger).await?;
        let mut wire = open(&conn).await?;
        peer::send(&mut wire, Kind::PeerHello, &Hello { version, ..hello(Some(newer.clone())) }).await?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::Unsupported) && words.contains(&format!("version {version} ")), "{code:?} {words}");
    }
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_is_told_a_change_while_recorded_first_packets_come_from_forged_addresses() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(1, &[&machine])?).await?;
    let id = iroh::EndpointId::from_bytes(stage.made.id52.as_bytes())?;
    let packets = record(id, ALPN, 320).await?;
    // From everywhere, and from where all peers of this test are.
    let mut from = addresses(100).await?;
    from.push(UdpSocket::bind("127.0.0.1:0").await?);
    let flood = Flood::begin(stage.address, packets, from, 600);
    flood.sent(900).await?;
    ensure!(stage.bring(&stage.sign(2, &[&machine])?).await? == 2);
    drop(flood);
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_lose_their_places_at_the_relay_to_a_machine() -> Result<()> {
    let stage = Stage::new().await?;
    let machine = key();
    stage.bring(&stage.sign(1, &[&machine])?).await?;
    let mut silent = Vec::new();
    // As many as there are places, from several addresses, none of which comes too fast.
    for number in 0..600u32 {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(std::net::SocketAddr::from(([127, 0, 7, 1 + (number % 4) as u8], 0)))?;
        silent.push(timeout(SOON, socket.connect(stage.address)).await.context("it does not connect")??);
    }
    let _serves = stage.admitted(&machine, None).await?;
    let unheard = stage.status().await?.unheard;
    ensure!(unheard >= 600 - 512, "{unheard} lost their places");
    stage.stop().await
}
