//! Attachments that make no sense, and too many of them: the session goes on.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::peer::{Gone, RESET_LOST, RESET_PROTOCOL};
use malai_protocol::session::{Ack, Attached, ExecSpec, Signal, Started};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::support::peer::{self, Got, Wire, attach, exec, got};
use crate::support::scene::Scene;
use crate::support::{again, follow, followed, next};

/// Attachments at once, fewer than a connection may have.
const MANY: u32 = 1000;

fn framed<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>> {
    Ok(Frame::control(kind, value)?.to_bytes().to_vec())
}

async fn cat(scene: &Scene, conn: &Connection) -> Result<(ExecSpec, Wire)> {
    let spec = followed(&["cat"]);
    let mut wire = exec(conn, scene.key.id(), &spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    Ok((spec, wire))
}

/// Attaches, and has the command echo something and end.
async fn works(scene: &Scene, conn: &Connection, spec: &ExecSpec, number: u32) -> Result<()> {
    let mut wire = attach(conn, scene.key.id(), &again(spec, number, 0)).await?;
    let _attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    wire.send(Frame::data(Kind::Stdin, Bytes::from_static(b"hello\n"))).await?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let ran = follow(wire).await?;
    ensure!(ran.stdout == b"hello\n" && ran.end.is_ok(), "{ran:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_attachments_at_once_leave_the_newest_one() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, other) = (scene.friend.dial(&scene.web01).await?, scene.friend.dial(&scene.web01).await?);
    let (spec, _wire) = cat(&scene, &conn).await?;
    let mut crowd = JoinSet::new();
    for number in 2..MANY + 2 {
        let (conn, cluster, ask) = (conn.clone(), scene.key.id(), again(&spec, number, 0));
        crowd.spawn(async move {
            let mut wire = attach(&conn, cluster, &ask).await?;
            while let Got::Frame(frame) = got(&mut wire).await? {
                ensure!(matches!(frame.kind, Kind::Attached | Kind::Superseded | Kind::Refused), "{frame:?}");
                if number == MANY + 1 && frame.kind == Kind::Attached {
                    return Ok(true);
                }
            }
            Ok(false)
        });
    }
    let mut newest = false;
    while let Some(answer) = crowd.join_next().await {
        newest |= answer??;
    }
    ensure!(newest, "the newest was turned away");
    works(&scene, &other, &spec, MANY + 2).await?;
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_that_wants_output_from_the_future_is_refused_and_changes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire) = cat(&scene, &conn).await?;
    for out_offset in [1, 1 << 40, u64::MAX] {
        let ran = follow(attach(&conn, scene.key.id(), &again(&spec, 9, out_offset)).await?).await?;
        let failure = ran.end.expect_err("refused").context("a reason")?;
        ensure!(failure.kind == FailureKind::Unknown, "{out_offset}: {failure}");
    }
    works(&scene, &conn, &spec, 2).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_gone_of_all_numbers_that_are_not_current_end_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire) = cat(&scene, &conn).await?;
    let mut wire = attach(&conn, scene.key.id(), &again(&spec, 500, 0)).await?;
    let _attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    let follower = spec.follower.context("a follower")?;
    let mut crowd = JoinSet::new();
    for number in 0..500 {
        let (conn, gone) = (conn.clone(), Gone { owner: None, id: spec.id, follower, number });
        crowd.spawn(async move { peer::gone(&conn, &gone).await });
    }
    while let Some(answer) = crowd.join_next().await {
        ensure!(answer??.kind == Kind::Pong);
    }
    works(&scene, &conn, &spec, 501).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_breaks_the_protocol_loses_its_attachment_and_may_come_back() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let wrong = [
        ("an unknown kind", RESET_PROTOCOL, vec![0xfe, 0, 0, 0, 0]),
        ("a frame over its cap", RESET_PROTOCOL, vec![Kind::Ack as u8, 0, 0, 2, 0]),
        ("a second attachment", RESET_PROTOCOL, framed(Kind::Attach, &again(&followed(&[]), 2, 0))?),
        ("a confirmation of what was not sent", RESET_LOST, framed(Kind::Ack, &Ack { out_offset: 1 << 40 })?),
        ("a payload that is no CBOR", RESET_LOST, vec![Kind::Ack as u8, 1, 0, 0, 0, 0xff]),
        ("a signal that there is not", RESET_LOST, framed(Kind::Signal, &Signal { number: 99, order: 0 })?),
    ];
    for (what, code, bytes) in wrong {
        let (spec, mut wire) = cat(&scene, &conn).await?;
        peer::raw(&mut wire, &bytes).await?;
        let answer = got(&mut wire).await?;
        ensure!(matches!(answer, Got::Reset(got) if got == u64::from(code)), "{what}: {answer:?}");
        works(&scene, &conn, &spec, 2).await.context(what)?;
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn input_after_its_end_loses_the_attachment_and_nothing_more() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = followed(&["sleep", "600"]);
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    wire.send(Frame::data(Kind::Stdin, Bytes::from_static(b"more"))).await?;
    let answer = got(&mut wire).await?;
    ensure!(matches!(answer, Got::Reset(code) if code == u64::from(RESET_LOST)), "{answer:?}");
    let mut wire = attach(&conn, scene.key.id(), &again(&spec, 2, 0)).await?;
    let attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    ensure!(attached.stdin_offset == 0 && attached.stdin_closed, "{attached:?}");
    scene.web01.stop().await?;
    Ok(())
}
