//! Coming back to a session, at the target: attachments, requests that are sent again, callers that are gone.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::id::{FollowerId, Incarnation};
use malai_protocol::local::ClusterStatus;
use malai_protocol::peer::{Close, Gone, RESET_CALLER_GONE, RESET_LOST};
use malai_protocol::session::{Ack, Attached, EndedBy, ExecSpec, Resend, Started, Status, Superseded};

use crate::support::peer::{self, Got, Wire, attach, exec, got};
use crate::support::scene::Scene;
use crate::support::{Ran, again, follow, followed, next, random, until};

/// Sends a line to `cat`, and reads it back.
pub(crate) async fn echo(wire: &mut Wire, line: &str) -> Result<()> {
    wire.send(Frame::data(Kind::Stdin, Bytes::from(line.to_owned()))).await?;
    let mut back = Vec::new();
    while back.len() < line.len() {
        let frame = next(wire).await?;
        match frame.kind {
            Kind::Stdout => back.extend_from_slice(&frame.payload),
            Kind::StdinAck => {}
            other => bail!("{other:?} came"),
        }
    }
    ensure!(back == line.as_bytes());
    Ok(())
}

/// A session of `cat` that has echoed four bytes.
pub(crate) async fn cat(scene: &Scene, conn: &Connection) -> Result<(ExecSpec, Wire)> {
    let spec = followed(&["cat"]);
    let mut wire = exec(conn, scene.key.id(), &spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    echo(&mut wire, "one\n").await?;
    peer::send(&mut wire, Kind::Ack, &Ack { out_offset: 4 }).await?;
    Ok((spec, wire))
}

async fn attached(wire: &mut Wire) -> Result<Attached> {
    Ok(next(wire).await?.expect(Kind::Attached, "Attached")?)
}

/// Ends `cat`, whose record has to tell of so many bytes.
async fn end(mut wire: Wire, bytes: u64) -> Result<()> {
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let record = follow(wire).await?.end.expect("a record");
    ensure!(record.status == Status::Exited { code: 0 } && record.ended_by == EndedBy::Itself, "{record:?}");
    ensure!(record.stdout_bytes == bytes, "{record:?}");
    Ok(())
}

/// A way in which an attachment is lost.
#[derive(Debug, Clone, Copy)]
enum Way {
    Finished,
    Reset,
    Protocol,
    Closed(Close),
}

/// Loses an attachment, and waits until the target has noticed.
async fn lose(scene: &Scene, mut wire: Wire, conn: &Connection, way: Way) -> Result<()> {
    match way {
        Way::Finished => peer::finish(&mut wire)?,
        Way::Reset => peer::reset(&mut wire, RESET_LOST)?,
        Way::Protocol => peer::reset(&mut wire, 99)?,
        Way::Closed(code) => {
            conn.close((code as u32).into(), b"as the test wants it");
            let friend = scene.friend.id;
            let is_seen = |cluster: ClusterStatus| {
                cluster.machines.iter().any(|machine| machine.id == friend && machine.connection.is_some())
            };
            return until("the target sees that it is closed", || async { Ok(!is_seen(scene.web01.cluster().await?)) })
                .await;
        }
    }
    loop {
        match got(&mut wire).await? {
            Got::Frame(_) => {}
            Got::Reset(code) if code == u64::from(RESET_LOST) => return Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

/// One request on two streams at once: as it was sent first, and as it is sent again and then refused. Returns whether
/// each was told that the command did not run.
async fn race(scene: &Scene, conns: &[Connection; 2], met: Option<Incarnation>, spec: &ExecSpec) -> Result<[bool; 2]> {
    let resend = Some(Resend { number: 2, met, since_ms: 0 });
    let again = ExecSpec { resend, needs: vec!["what nobody has".into()], ..spec.clone() };
    let wires = futures_util::try_join!(exec(&conns[0], scene.key.id(), spec), exec(&conns[1], scene.key.id(), &again));
    let (first, second) = wires?;
    // Of two that follow one session, one may have to give way to the other.
    let (first, second) = futures_util::join!(follow(first), follow(second));
    let did_not = |ran: Result<Ran>| {
        let told = ran.ok().and_then(|ran| ran.end.err().flatten());
        told.is_some_and(|failure| failure.kind != FailureKind::Unknown)
    };
    Ok([first, second].map(did_not))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_resend_was_told_that_it_did_not_run_does_not_run_however_closely_the_two_come() -> Result<()> {
    let scene = Scene::new().await?;
    let conns = [scene.friend.dial(&scene.web01).await?, scene.friend.dial(&scene.web01).await?];
    let (_control, hello) = peer::greet(&conns[0], None).await?;
    ensure!(hello.executor.is_some(), "it does not greet with its executor");
    let mut refused = 0;
    for _ in 0..40 {
        let traces: Vec<_> = (0..8).map(|_| scene.web01.home.root().join(format!("{:x?}", random()))).collect();
        let specs: Vec<_> = traces.iter().map(|trace| followed(&["touch", &trace.display().to_string()])).collect();
        let races = specs.iter().map(|spec| race(&scene, &conns, hello.executor, spec));
        for (told, trace) in futures_util::future::try_join_all(races).await?.into_iter().zip(&traces) {
            let [first_did_not, resend_did_not] = told;
            ensure!(!(resend_did_not && trace.exists()), "it ran, and its caller was told that it did not");
            ensure!(!(first_did_not && trace.exists()), "it ran, and its first sending was told that it did not");
            refused += usize::from(resend_did_not);
        }
    }
    ensure!(refused > 0, "no resend came first: nothing was raced");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_however_its_attachment_is_lost_and_is_followed_over_another_connection() -> Result<()> {
    let scene = Scene::new().await?;
    let closes = [Close::Done, Close::Shutdown, Close::Replaced, Close::Protocol].map(Way::Closed);
    for way in [Way::Finished, Way::Reset, Way::Protocol].into_iter().chain(closes) {
        let first = scene.friend.dial(&scene.web01).await?;
        let (spec, wire) = cat(&scene, &first).await?;
        lose(&scene, wire, &first, way).await?;
        let second = scene.friend.dial(&scene.web01).await?;
        let mut wire = attach(&second, scene.key.id(), &again(&spec, 2, 4)).await?;
        let there = attached(&mut wire).await.with_context(|| format!("{way:?}"))?;
        ensure!((there.out_offset, there.stdin_offset) == (4, 4) && there.started.is_some(), "{way:?}: {there:?}");
        echo(&mut wire, "two\n").await?;
        end(wire, 8).await.with_context(|| format!("{way:?}"))?;
        first.close(0u32.into(), b"");
        second.close(0u32.into(), b"");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_written_out_comes_again_and_the_record_too() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = followed(&["echo", "hello"]);
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    while next(&mut wire).await?.kind != Kind::Exit {}
    peer::finish(&mut wire)?;
    let ran = follow(attach(&conn, scene.key.id(), &again(&spec, 2, 0)).await?).await?;
    ensure!(ran.stdout == b"hello\n" && ran.end.is_ok(), "{ran:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attachment_takes_the_place_of_the_older_one_and_an_older_one_changes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, mut first) = cat(&scene, &conn).await?;
    let mut second = attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?;
    attached(&mut second).await?;
    let superseded: Superseded = next(&mut first).await?.expect(Kind::Superseded, "Superseded")?;
    ensure!(Some(superseded.follower) == spec.follower && superseded.by == scene.friend.id, "{superseded:?}");
    ensure!(matches!(got(&mut first).await?, Got::End));
    for number in [1, 2] {
        let stale = follow(attach(&conn, scene.key.id(), &again(&spec, number, 4)).await?).await?;
        let failure = stale.end.as_ref().expect_err("refused").as_ref().context("a reason")?;
        ensure!(failure.kind == FailureKind::Unknown && stale.stdout.is_empty(), "{number}: {stale:?}");
        ensure!(failure.message.contains("a later attachment"), "it is not why: {failure}");
    }
    echo(&mut second, "two\n").await?;
    end(second, 8).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_caller_said_goodbye_tells_its_record_to_an_attachment_of_any_number() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = followed(&["echo", "hello"]);
    let ran = follow(exec(&conn, scene.key.id(), &spec).await?).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    until("the output is forgotten", || async {
        let late = follow(attach(&conn, scene.key.id(), &again(&spec, 1, 0)).await?).await?;
        Ok(late.stdout.is_empty() && late.end.is_ok_and(|record| record.stdout_bytes == 6))
    })
    .await?;
    scene.web01.stop().await?;
    Ok(())
}

fn gone_of(spec: &ExecSpec, number: u32) -> Gone {
    let follower = spec.follower.expect("a follower");
    Gone { owner: None, id: spec.id, follower, number }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_gone_ends_its_session_over_any_connection_but_only_by_its_current_attachment() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, other) = (scene.friend.dial(&scene.web01).await?, scene.friend.dial(&scene.web01).await?);
    for lost in [false, true] {
        let (spec, _first) = cat(&scene, &conn).await?;
        let mut wire = attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?;
        attached(&mut wire).await?;
        let stranger = Gone { follower: FollowerId::from_bytes(random()), ..gone_of(&spec, 2) };
        for stale in [gone_of(&spec, 1), stranger, gone_of(&followed(&[]), 2)] {
            ensure!(peer::gone(&other, &stale).await?.kind == Kind::Pong);
        }
        echo(&mut wire, "two\n").await?;
        if lost {
            lose(&scene, wire, &conn, Way::Reset).await?;
            ensure!(peer::gone(&other, &gone_of(&spec, 2)).await?.kind == Kind::Pong);
        } else {
            ensure!(peer::gone(&other, &gone_of(&spec, 2)).await?.kind == Kind::Pong);
            // Nobody is there to be told.
            ensure!(follow(wire).await?.end.is_err());
        }
        until("the end is in the audit", || async { ended_by(&scene, &spec, "caller-gone") }).await?;
    }
    scene.web01.stop().await?;
    Ok(())
}

/// Whether the audit says that this ended the session.
fn ended_by(scene: &Scene, spec: &ExecSpec, by: &str) -> Result<bool> {
    let audit = std::fs::read_to_string(scene.web01.home.audit())?;
    Ok(audit.lines().any(|line| line.contains(&spec.id.to_string()) && line.contains(by)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reset_of_an_attachment_that_was_superseded_ends_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, mut first) = cat(&scene, &conn).await?;
    let mut second = attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?;
    attached(&mut second).await?;
    peer::reset(&mut first, RESET_CALLER_GONE)?;
    echo(&mut second, "two\n").await?;
    end(second, 8).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_knows_is_an_unknown_outcome() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = follow(attach(&conn, scene.key.id(), &again(&followed(&[]), 2, 0)).await?).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Unknown && failure.hint.is_some(), "{failure:?}");
    scene.web01.stop().await?;
    Ok(())
}

/// A command that leaves a line in a file whenever it runs.
struct Trace(PathBuf);

impl Trace {
    fn new(scene: &Scene, name: &str) -> Self {
        Self(scene.web01.home.root().join(name))
    }

    fn spec(&self) -> ExecSpec {
        followed(&["sh", "-c", &format!("echo ran >> {}; echo hello", self.0.display())])
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(&self.0).unwrap_or_default().lines().count()
    }
}

/// The life of the daemon's executor, as it greets.
async fn executor(scene: &Scene) -> Result<Incarnation> {
    let conn = scene.laptop.dial(&scene.web01).await?;
    let (_control, hello) = peer::greet(&conn, None).await?;
    conn.close(0u32.into(), b"");
    hello.executor.context("no executor")
}

fn resend(spec: &ExecSpec, met: Option<Incarnation>, since_ms: u64) -> ExecSpec {
    ExecSpec { resend: Some(Resend { number: 2, met, since_ms }), ..spec.clone() }
}

async fn run(scene: &Scene, conn: &Connection, spec: &ExecSpec) -> Result<Ran> {
    follow(exec(conn, scene.key.id(), spec).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_runs_once() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let met = Some(executor(&scene).await?);
    // The first sending ran.
    let trace = Trace::new(&scene, "ran");
    let spec = trace.spec();
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    next(&mut wire).await?.expect::<Started>(Kind::Started, "Started")?;
    peer::reset(&mut wire, RESET_LOST)?;
    for met in [met, None] {
        let mut again = resend(&spec, met, u64::MAX);
        let number = if met.is_some() { 2 } else { 3 };
        again.resend = again.resend.map(|resend| Resend { number, ..resend });
        let mut wire = exec(&conn, scene.key.id(), &again).await?;
        let there = attached(&mut wire).await?;
        ensure!(Some(there.incarnation) == Some(executor(&scene).await?), "{there:?}");
        if number == 3 {
            let ran = follow(wire).await?;
            ensure!(ran.stdout == b"hello\n" && ran.end.is_ok(), "{ran:?}");
        }
    }
    ensure!(trace.runs() == 1);
    // The first sending did not arrive.
    let trace = Trace::new(&scene, "lost");
    let ran = run(&scene, &conn, &resend(&trace.spec(), met, 0)).await?;
    ensure!(ran.started.is_some() && ran.stdout == b"hello\n" && trace.runs() == 1, "{ran:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_run_before_this_executor_is_never_run() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let trace = Trace::new(&scene, "trace");
    for met in [Some(Incarnation::from_bytes([9; 16])), None] {
        let ran = run(&scene, &conn, &resend(&trace.spec(), met, 3_600_000)).await?;
        let failure = ran.end.expect_err("refused").context("a reason")?;
        ensure!(failure.kind == FailureKind::Unknown, "{met:?}: {failure}");
        ensure!(ran.started.is_none() && trace.runs() == 0, "{met:?}: it ran");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sendings_of_a_request_at_once_run_it_once() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, other) = (scene.friend.dial(&scene.web01).await?, scene.friend.dial(&scene.web01).await?);
    let met = Some(executor(&scene).await?);
    for number in 0..30 {
        let trace = Trace::new(&scene, &format!("trace{number}"));
        let spec = trace.spec();
        let first = exec(&conn, scene.key.id(), &spec).await?;
        let second = run(&scene, &other, &resend(&spec, met, 1)).await?;
        ensure!(second.stdout == b"hello\n" && second.end.is_ok(), "{second:?}");
        drop(first);
        ensure!(trace.runs() == 1, "{} times", trace.runs());
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_when_it_was_sent_again_does_not_run_by_its_first_sending() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let met = Some(executor(&scene).await?);
    let trace = Trace::new(&scene, "trace");
    let spec = trace.spec();
    scene.publish(&scene.text().replace("[\"friend\"]", "[]")).await?;
    let ran = run(&scene, &conn, &resend(&spec, met, 0)).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Denied, "{failure}");
    scene.publish(&scene.text()).await?;
    let ran = run(&scene, &conn, &spec).await?;
    ensure!(ran.end.is_err() && trace.runs() == 0, "{ran:?}");
    scene.web01.stop().await?;
    Ok(())
}
