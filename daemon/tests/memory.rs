//! What is claimed to be large costs nothing. Alone in its process, whose memory it watches.

mod support;

use anyhow::{Context, Result, ensure};
use malai_protocol::codec::{Frame, Kind, MAX_EXEC, MAX_SNAPSHOT};
use malai_protocol::local::{Hello, VERSION};
use malai_protocol::peer::Open;
use support::SOON;
use support::peer::{self, Peer, Wire, closed, open, raw};
use support::scene::{Scene, asked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Far less than one of the messages below, were it taken for what it says.
const MOST: u64 = 24 << 20;

/// The length that messages claim: they send as much as is taken.
const CLAIMED: usize = 100_000_000;

/// What this process has in memory, in bytes.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("a second field")?.parse()?;
    Ok(pages * u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.context("a page size")?)?)
}

fn claim(kind: Kind, length: usize) -> Vec<u8> {
    [&[kind as u8][..], &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()].concat()
}

/// Writes until it is told to stop, or all is sent; returns how much that was.
async fn pour(wire: &mut Wire) -> usize {
    let chunk = vec![b'x'; 65536];
    let mut sent = 0;
    while sent < CLAIMED && timeout(SOON, raw(wire, &chunk)).await.is_ok_and(|sent| sent.is_ok()) {
        sent += chunk.len();
    }
    sent
}

async fn as_member(scene: &Scene) -> Result<()> {
    let conn = scene.guest.dial(&scene.web01).await?;
    let request = Frame::control(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?.to_bytes();
    for (kind, length) in
        [(Kind::Open, CLAIMED), (Kind::Exec, CLAIMED), (Kind::Stdin, CLAIMED), (Kind::Open, usize::MAX)]
    {
        let mut wire = open(&conn).await?;
        raw(&mut wire, &claim(kind, length)).await?;
        let sent = pour(&mut wire).await;
        ensure!(sent < CLAIMED, "{kind:?} of {length} bytes was taken");
        let mut wire = open(&conn).await?;
        raw(&mut wire, &[&request[..], &claim(kind, length)].concat()).await?;
        let sent = pour(&mut wire).await;
        ensure!(sent < CLAIMED, "{kind:?} of {length} bytes was taken after the header");
    }
    // As large as may be, and never sent: the place is not taken before the bytes are there.
    let mut claimed = Vec::new();
    for _ in 0..200 {
        let mut wire = open(&conn).await?;
        raw(&mut wire, &[&request[..], &claim(Kind::Exec, MAX_EXEC)].concat()).await?;
        claimed.push(wire);
    }
    peer::ping(&conn).await
}

async fn as_the_one_that_is_asked(scene: &Scene) -> Result<()> {
    let announced = scene.sign_as(9, &scene.text())?;
    for (kind, length) in [(Kind::Snapshot, CLAIMED), (Kind::Snapshot, usize::MAX), (Kind::Stdout, CLAIMED)] {
        for stranger in [true, false] {
            let unknown = Peer::new().await?;
            let conn = if stranger { &unknown } else { &scene.guest }.dial(&scene.web01).await?;
            let _control = peer::greet(&conn, Some(announced.signed_header().clone())).await?;
            let mut wire = asked(&conn).await?;
            raw(&mut wire, &claim(kind, length)).await?;
            let sent = pour(&mut wire).await;
            ensure!(sent < CLAIMED, "{kind:?} of {length} bytes was taken");
            closed(&conn).await?;
        }
    }
    ensure!(scene.held().await? == 1);
    Ok(())
}

async fn as_a_stranger(scene: &Scene) -> Result<()> {
    for kind in [Kind::PeerHello, Kind::Snapshot, Kind::Stdin] {
        let stranger = Peer::new().await?;
        let conn = stranger.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &claim(kind, MAX_SNAPSHOT)).await?;
        let sent = pour(&mut wire).await;
        ensure!(sent < CLAIMED, "{kind:?} was taken");
        closed(&conn).await?;
    }
    Ok(())
}

async fn as_a_cli(scene: &Scene) -> Result<()> {
    let hello = Hello { version: VERSION, malai: "test".into(), pid: 0, agent: false };
    let hello = Frame::control(Kind::LocalHello, &hello)?.to_bytes();
    for begin in [claim(Kind::LocalHello, CLAIMED), [&hello[..], &claim(Kind::Request, CLAIMED)].concat()] {
        let mut stream = UnixStream::connect(scene.web01.home.socket()).await?;
        stream.write_all(&begin).await?;
        let chunk = vec![b'x'; 65536];
        let mut sent = 0;
        while sent < CLAIMED && stream.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        ensure!(sent < CLAIMED, "it was taken");
        drop(timeout(SOON, stream.read_to_end(&mut Vec::new())).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_to_be_large_is_not_taken_and_takes_no_memory() -> Result<()> {
    let scene = Scene::new().await?;
    scene.serves().await?;
    let before = resident()?;
    as_member(&scene).await?;
    as_the_one_that_is_asked(&scene).await?;
    as_a_stranger(&scene).await?;
    as_a_cli(&scene).await?;
    let grown = resident()?.saturating_sub(before);
    ensure!(grown < MOST, "{} MiB more than before", grown >> 20);
    // The comparison would see it: half of a claimed message, taken in, is more than what is allowed.
    let taken = vec![1u8; CLAIMED / 2];
    ensure!(resident()?.saturating_sub(before) > MOST, "the measure sees nothing ({} bytes)", taken.len());
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}
