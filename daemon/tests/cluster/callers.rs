//! The caller's daemon: what it tells its CLI, and what it tells the target when the CLI is gone.

use anyhow::{Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::Incarnation;
use malai_protocol::peer::{Close, Gone, Hello, Open, RESET_CALLER_GONE};
use malai_protocol::session::{Attach, ExecSpec, Sent};

use crate::support::peer::{self, Got, Wire, accept, got, hello, open, ping};
use crate::support::scene::Scene;
use crate::support::{Machine, Socket, again, followed, next};

/// A session whose target is played by the test: the CLI's socket, and the stream that came out.
async fn begun(machine: &Machine, conn: &Connection, spec: &ExecSpec) -> Result<(Socket, Wire)> {
    let mut socket = machine.begin("friend", spec).await?;
    let (wire, first) = session(conn).await?;
    let arrived: ExecSpec = first.expect(Kind::Exec, "Exec")?;
    ensure!(arrived == *spec);
    let _sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    Ok((socket, wire))
}

/// The next stream of a session, and its first frame.
async fn session(conn: &Connection) -> Result<(Wire, Frame)> {
    let mut wire = accept(conn).await?;
    let _open: Open = next(&mut wire).await?.expect(Kind::Open, "Open")?;
    let first = next(&mut wire).await?;
    Ok((wire, first))
}

/// A connection of `friend` that the daemon uses for its own calls.
async fn friend(scene: &Scene) -> Result<Connection> {
    let conn = scene.friend.dial(&scene.web01).await?;
    ping(&conn).await?;
    Ok(conn)
}

/// What the daemon says of a caller that is gone.
async fn told(conn: &Connection) -> Result<(Wire, Gone)> {
    let mut wire = accept(conn).await?;
    let gone = next(&mut wire).await?.expect(Kind::Gone, "Gone")?;
    Ok((wire, gone))
}

fn gone_of(spec: &ExecSpec, number: u32) -> Gone {
    let Attach { owner, id, follower, number, .. } = again(spec, number, 0);
    Gone { owner, id, follower, number }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_is_told_that_its_request_is_sent_and_which_executor_it_meets() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = friend(&scene).await?;
    let spec = followed(&["true"]);
    // Nothing is known of the target's executor before it greets.
    let mut socket = scene.web01.begin("friend", &spec).await?;
    let _wire = session(&conn).await?;
    let sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    ensure!(sent.met.is_none(), "{sent:?}");
    let mut control = open(&conn).await?;
    let executor = Some(Incarnation::from_bytes([7; 16]));
    peer::send(&mut control, Kind::PeerHello, &Hello { executor, ..hello(None) }).await?;
    let theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
    let attach = again(&spec, 2, 17);
    let mut socket = scene.web01.attach("friend", &attach).await?;
    let (_wire, first) = session(&conn).await?;
    ensure!(first.expect::<Attach>(Kind::Attach, "Attach")? == attach);
    let sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    ensure!(sent.met == executor, "{sent:?}");
    // On this very machine it is the own one, which is what the others are told.
    let mut socket = scene.web01.begin("web01", &followed(&["true"])).await?;
    let sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    ensure!(sent.met.is_some() && sent.met == theirs.executor, "{sent:?} {theirs:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_is_refused_at_once_was_not_told_that_anything_was_sent() -> Result<()> {
    let scene = Scene::new().await?;
    let mut socket = scene.web01.begin("nobody", &followed(&["true"])).await?;
    let failure: Failure = next(&mut socket).await?.expect(Kind::Refused, "Refused")?;
    ensure!(failure.kind == FailureKind::UnknownTarget, "{failure}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_may_not_have_heard_of_the_gone_cli_is_told_on_another_stream_until_it_answers() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = friend(&scene).await?;
    let (heard, unheard) = (followed(&["true"]), followed(&["true"]));
    for (spec, ends) in [(&heard, true), (&unheard, false)] {
        let (socket, mut wire) = begun(&scene.web01, &conn, spec).await?;
        drop(socket);
        let end = got(&mut wire).await?;
        ensure!(matches!(end, Got::Reset(code) if code == u64::from(RESET_CALLER_GONE)), "{end:?}");
        if ends {
            peer::finish(&mut wire)?;
        }
        std::mem::forget(wire);
    }
    // It is not taken for told before the answer.
    let (wire, first) = told(&conn).await?;
    ensure!(first == gone_of(&unheard, 1), "{first:?}");
    drop(wire);
    let (mut wire, second) = told(&conn).await?;
    ensure!(second == first, "{second:?}");
    wire.send(Frame::empty(Kind::Pong)).await?;
    peer::finish(&mut wire)?;
    // Then it is: the next that is said is another.
    let last = followed(&["true"]);
    let (socket, wire) = begun(&scene.web01, &conn, &last).await?;
    std::mem::forget(wire);
    drop(socket);
    let (_wire, third) = told(&conn).await?;
    ensure!(third == gone_of(&last, 1), "{third:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_is_gone_while_its_target_is_away_is_told_of_over_the_next_connection() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = friend(&scene).await?;
    let spec = followed(&["true"]);
    let (mut socket, wire) = begun(&scene.web01, &conn, &spec).await?;
    conn.close(0u32.into(), b"");
    drop(wire);
    ensure!(next(&mut socket).await.is_err(), "the CLI is not told that its attachment is lost");
    // It comes back, and is gone before there is a connection.
    let socket = scene.web01.attach("friend", &again(&spec, 2, 0)).await?;
    drop(socket);
    let conn = friend(&scene).await?;
    let (mut wire, gone) = told(&conn).await?;
    ensure!(gone == gone_of(&spec, 2), "{gone:?}");
    wire.send(Frame::empty(Kind::Pong)).await?;
    peer::finish(&mut wire)?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_says_goodbye_is_not_gone() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = friend(&scene).await?;
    let (mut socket, mut wire) = begun(&scene.web01, &conn, &followed(&["true"])).await?;
    socket.send(Frame::empty(Kind::Goodbye)).await?;
    drop(socket);
    ensure!(next(&mut wire).await?.kind == Kind::Goodbye);
    let end = got(&mut wire).await?;
    ensure!(matches!(end, Got::End), "{end:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_says_of_no_caller_that_it_is_gone() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = friend(&scene).await?;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(begun(&scene.web01, &conn, &followed(&["true"])).await?);
    }
    let Scene { web01, .. } = scene;
    let stopped = tokio::spawn(web01.stop());
    for (socket, wire) in &mut sessions {
        ensure!(next(socket).await.is_err(), "the CLI's socket stays open");
        let end = got(wire).await?;
        ensure!(matches!(end, Got::End | Got::Closed(Some(Close::Shutdown))), "{end:?}");
    }
    stopped.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cli_sends_while_its_target_is_dialled_arrives() -> Result<()> {
    let scene = Scene::new().await?;
    let spec = followed(&["true"]);
    let mut socket = scene.web01.begin("friend", &spec).await?;
    let input = vec![b'x'; 60_000];
    for _ in 0..2 {
        socket.send(Frame::data(Kind::Stdin, input.clone().into())).await?;
    }
    socket.send(Frame::empty(Kind::StdinEof)).await?;
    let conn = friend(&scene).await?;
    let (mut wire, _exec) = session(&conn).await?;
    for _ in 0..2 {
        let frame = next(&mut wire).await?;
        ensure!(frame.kind == Kind::Stdin && frame.payload == input, "{:?}", frame.kind);
    }
    ensure!(next(&mut wire).await?.kind == Kind::StdinEof);
    scene.web01.stop().await?;
    Ok(())
}
