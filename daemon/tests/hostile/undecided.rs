//! Requests that are begun and not decided: what one machine may have of them here is bounded, over all its connections.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join;
use futures_util::stream::{FuturesUnordered, StreamExt};
use iroh::endpoint::Connection;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{Frame, Kind, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::peer::Open;
use malai_protocol::session::ExecSpec;
use serde_bytes::ByteBuf;

use crate::support::peer::{self, Wire, exec, open, ping, raw, send};
use crate::support::scene::Scene;
use crate::support::{follow, next, spec, until};

/// The largest requests that fit, with their streams, into what one machine may have.
const FIT: usize = 15;

/// Begins a request of the largest size, and sends the most of it.
async fn begin(conn: &Connection, scene: &Scene) -> Result<Wire> {
    let mut wire = open(conn).await?;
    let request = Frame::control(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?.to_bytes();
    let exec = [&[Kind::Exec as u8][..], &u32::try_from(MAX_EXEC)?.to_le_bytes()].concat();
    raw(&mut wire, &[&request[..], &exec].concat()).await?;
    // Where it is refused, nobody reads that.
    raw(&mut wire, &vec![b'x'; MAX_EXEC / 2]).await.ok();
    Ok(wire)
}

/// What it is refused by, when it is; the stream stays open meanwhile.
async fn refusal(mut wire: Wire) -> Result<(Failure, Wire)> {
    let failure: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
    Ok((failure, wire))
}

async fn refused(scene: &Scene, conn: &Connection, spec: &ExecSpec) -> Result<FailureKind> {
    let ran = follow(exec(conn, scene.key.id(), spec).await?).await?;
    Ok(ran.end.expect_err("refused").context("a reason")?.kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_begins_many_large_requests_over_many_connections_is_refused_those_too_many() -> Result<()> {
    let scene = Scene::new().await?;
    let conns = [scene.guest.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?];
    let mut asked = FuturesUnordered::new();
    for _ in 0..FIT {
        for conn in &conns {
            asked.push(refusal(begin(conn, &scene).await?));
        }
    }
    for _ in 0..FIT {
        let (failure, _) = asked.next().await.context("an answer")??;
        ensure!(failure.kind == FailureKind::Busy && failure.message.contains("16 MiB"), "{failure}");
        ensure!(failure.hint.is_some(), "{failure:?}");
    }
    ensure!(asked.len() == FIT, "{} are still being taken in", asked.len());
    // Small ones find a place between them, and nobody else is touched.
    ensure!(refused(&scene, &conns[0], &spec(&["true"])).await? == FailureKind::Denied);
    ping(&conns[1]).await?;
    scene.serves().await?;
    let large = ExecSpec { words: vec![ByteBuf::from(vec![b'x'; MAX_EXEC - 1000])], ..spec(&[]) };
    ensure!(refused(&scene, &conns[0], &large).await? == FailureKind::Busy);
    // When they are given up there is room again.
    drop(asked);
    until("there is room again", || async {
        let large = ExecSpec { id: spec(&[]).id, ..large.clone() };
        Ok(refused(&scene, &conns[1], &large).await? == FailureKind::Denied)
    })
    .await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_counts_by_what_it_takes_when_it_is_read() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    // 200 kB as a frame, 13 MB as words. The target waits for the snapshot that is claimed, before it refuses.
    let many = || async {
        let request = ExecSpec { words: vec![ByteBuf::from(vec![b'x']); 100_000], ..spec(&[]) };
        let mut wire = open(&conn).await?;
        send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation: u64::MAX }).await?;
        send(&mut wire, Kind::Exec, &request).await?;
        Ok::<_, anyhow::Error>(refusal(wire).await?.0.message)
    };
    let (one, other) = try_join(many(), many()).await?;
    let told = [one, other];
    let of = |words| told.iter().filter(|message| message.contains(words)).count();
    ensure!(of("wait for a decision") == 1 && of("`guest` is not in") == 1, "{told:?}");
    ping(&conn).await?;
    let ran = peer::run(&scene.friend.dial(&scene.web01).await?, scene.key.id(), &["true"]).await?;
    ensure!(ran.end.is_ok(), "{ran:?}");
    // Both were read, so both were attempts, and each has a line, which tells the length of the words and not all of them.
    let home = scene.web01.home.clone();
    let _dir = scene.web01.stop().await?;
    let text = std::fs::read_to_string(home.audit())?;
    let lines: Vec<Entry> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let refused: Vec<_> = lines.iter().filter(|line| line.who.as_deref() == Some("guest")).collect();
    ensure!(refused.len() == 2, "{} lines", refused.len());
    for line in refused {
        ensure!(line.event == Event::Refused && line.words_bytes == Some(200_000), "{line:?}");
    }
    Ok(())
}
