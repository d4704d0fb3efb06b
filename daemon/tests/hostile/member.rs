//! Machines of the config that break the protocol, with grants and without.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use iroh::endpoint::Connection;
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind, MAX_CONTROL, MAX_DATA, MAX_EXEC, MAX_HELLO};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::peer::{Announce, Close, Hello, Open, RESET_PROTOCOL};
use malai_protocol::session::ExecSpec;
use nix::errno::Errno;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::support::peer::{self, Got, Peer, Wire, accept, closed, exec, forge, got, hello, open, ping, raw, send};
use crate::support::scene::Scene;
use crate::support::{Machine, SOON, follow, next, spec, until};

fn bytes<T: serde::Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>> {
    Ok(Frame::control(kind, value)?.to_bytes().to_vec())
}

/// A frame's first bytes: its kind, and the length that it claims.
fn claim(kind: Kind, length: usize) -> Vec<u8> {
    [&[kind as u8][..], &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()].concat()
}

/// Streams that break the protocol before a session has begun, by name.
fn broken_streams(scene: &Scene) -> Result<Vec<(String, Vec<u8>)>> {
    let request = bytes(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?;
    let exec = bytes(Kind::Exec, &spec(&["true"]))?;
    let mut all = vec![
        ("nothing but the end".into(), Vec::new()),
        ("garbage".into(), vec![0xff; 4096]),
        ("an unknown kind".into(), vec![0xfe, 0, 0, 0, 0]),
        ("a request over its cap".into(), claim(Kind::Open, MAX_CONTROL + 1)),
        ("a request of 4 GiB".into(), claim(Kind::Open, usize::MAX)),
        ("a request cut short".into(), request[..10].to_vec()),
        ("a request that is no CBOR".into(), [claim(Kind::Open, 3), vec![0xff; 3]].concat()),
        ("a header only".into(), request.clone()),
        ("two headers".into(), [&request[..], &request].concat()),
        ("a ping in place of the command".into(), [&request[..], &claim(Kind::Ping, 0)].concat()),
        ("a command over its cap".into(), [&request[..], &claim(Kind::Exec, MAX_EXEC + 1)].concat()),
        ("a command cut short".into(), [&request[..], &exec[..9]].concat()),
        ("a command that is no CBOR".into(), [&request[..], &claim(Kind::Exec, 2), &[0xff; 2]].concat()),
        ("an attachment over its cap".into(), [&request[..], &claim(Kind::Attach, MAX_CONTROL + 1)].concat()),
        ("an attachment that is no CBOR".into(), [&request[..], &claim(Kind::Attach, 2), &[0xff; 2]].concat()),
        ("a caller gone over its cap".into(), claim(Kind::Gone, MAX_HELLO + 1)),
        ("a caller gone that is no CBOR".into(), [claim(Kind::Gone, 2), vec![0xff; 2]].concat()),
        ("a question where a machine is over its cap".into(), claim(Kind::Resolve, MAX_HELLO + 1)),
        ("a question where a machine is that is no CBOR".into(), [claim(Kind::Resolve, 2), vec![0xff; 2]].concat()),
    ];
    let beginnings = [Kind::Open, Kind::PeerHello, Kind::Pull, Kind::Ping, Kind::Gone, Kind::Resolve];
    for kind in Kind::ALL.iter().filter(|kind| !beginnings.contains(kind)) {
        all.push((format!("{kind:?} first"), [claim(*kind, 0), vec![0; 64]].concat()));
    }
    Ok(all)
}

/// Sends these bytes on a stream of their own, which has to be given up by its code.
async fn is_reset(conn: &Connection, what: &str, bytes: &[u8]) -> Result<()> {
    let mut wire = open(conn).await?;
    raw(&mut wire, bytes).await?;
    peer::finish(&mut wire)?;
    let answer = got(&mut wire).await?;
    ensure!(matches!(answer, Got::Reset(code) if code == u64::from(RESET_PROTOCOL)), "{what}: {answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_the_protocol_is_reset_and_the_connection_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    for peer in [&scene.guest, &scene.friend] {
        let conn = peer.dial(&scene.web01).await?;
        for (what, bytes) in broken_streams(&scene)? {
            is_reset(&conn, &what, &bytes).await?;
        }
        ping(&conn).await?;
    }
    ensure!(scene.audited() == 0, "what is no request got as far as the audit");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

/// A stream without a first frame, or without a command, is reset.
pub(crate) async fn late() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let request = bytes(Kind::Open, &Open { cluster: scene.key.id(), generation: 0 })?;
    let begun = tokio::time::Instant::now();
    let mut late: Vec<(Wire, &str)> = Vec::new();
    for (what, bytes) in [("half a frame", &request[..3]), ("no command", &request[..])] {
        let mut wire = open(&conn).await?;
        raw(&mut wire, bytes).await?;
        late.push((wire, what));
    }
    for (wire, what) in &mut late {
        let answer = got(wire).await?;
        ensure!(matches!(answer, Got::Reset(code) if code == u64::from(RESET_PROTOCOL)), "{what}: {answer:?}");
    }
    ensure!(begun.elapsed() >= Duration::from_secs(9), "they had less than their time");
    ping(&conn).await?;
    scene.web01.stop().await?;
    Ok(())
}

/// What breaks a control stream, by name: after the greeting, if one is given.
fn broken_controls(scene: &Scene) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let newer = scene.sign_as(9, "x")?.signed_header().clone();
    let other = ClusterKey::generate()?.sign(9, 1, "x".into())?.signed_header().clone();
    let greeting = bytes(Kind::PeerHello, &hello(None))?;
    let announce = |header| bytes(Kind::Announce, &Announce::of(header));
    let after = |bytes: &[u8]| [&greeting[..], bytes].concat();
    Ok(vec![
        ("an announcement over its cap", after(&claim(Kind::Announce, MAX_HELLO + 1))),
        ("an unknown kind", after(&[0xfe, 0, 0, 0, 0])),
        ("garbage", after(&[0xff; 100])),
        ("a second greeting on the stream", after(&greeting)),
        ("a request on the stream", after(&bytes(Kind::Exec, &spec(&["true"]))?)),
        ("an announcement cut short", after(&announce(newer.clone())?[..40])),
        ("an announcement that is no CBOR", after(&[claim(Kind::Announce, 2), vec![0xff; 2]].concat())),
        ("a forged announcement", after(&announce(forge(&newer)?)?)),
        ("an announcement of another cluster", after(&announce(other.clone())?)),
        ("a forged greeting", bytes(Kind::PeerHello, &hello(Some(forge(&newer)?)))?),
        ("a greeting of another cluster", bytes(Kind::PeerHello, &hello(Some(other)))?),
        ("a greeting that is no CBOR", [claim(Kind::PeerHello, 2), vec![0xff; 2]].concat()),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_stream_that_breaks_the_protocol_closes_its_connection() -> Result<()> {
    let scene = Scene::new().await?;
    for (what, bytes) in broken_controls(&scene)? {
        let conn = scene.guest.dial(&scene.web01).await?;
        let mut wire = open(&conn).await?;
        raw(&mut wire, &bytes).await?;
        peer::finish(&mut wire)?;
        let (code, words) = closed(&conn).await?;
        ensure!(code == Some(Close::Protocol), "{what}: {code:?} {words}");
    }
    ensure!(scene.held().await? == 1);
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_stream_closes_the_connection() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    let _control = peer::greet(&conn, None).await?;
    let mut second = open(&conn).await?;
    peer::send(&mut second, Kind::PeerHello, &hello(None)).await?;
    let (code, words) = closed(&conn).await?;
    ensure!(code == Some(Close::Protocol), "{code:?} {words}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_need_is_refused_by_its_name() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let needy = ExecSpec { needs: vec!["colour".into()], ..spec(&["true"]) };
    let ran = follow(exec(&conn, scene.key.id(), &needy).await?).await?;
    let failure = ran.end.expect_err("refused").expect("a reason");
    ensure!(failure.kind == FailureKind::Unsupported && failure.message.contains("`colour`"), "{failure}");
    ensure!(failure.hint.is_some(), "{failure:?}");
    let mut control = open(&conn).await?;
    peer::send(&mut control, Kind::PeerHello, &Hello { needs: vec!["sound".into()], ..hello(None) }).await?;
    let (code, words) = closed(&conn).await?;
    ensure!(code == Some(Close::Unsupported) && words.contains("`sound`"), "{code:?} {words}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_cluster_is_refused_by_name() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = peer::run(&conn, ClusterKey::generate()?.id(), &["true"]).await?;
    let failure = ran.end.expect_err("refused").expect("a reason");
    ensure!(failure.kind == FailureKind::UnknownTarget && failure.message.contains("another cluster"), "{failure}");
    ping(&conn).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_runs_once_however_often_it_is_sent() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let request = ExecSpec { stdin: true, ..spec(&["sh", "-c", "echo ran; cat"]) };
    let mut first = exec(&conn, scene.key.id(), &request).await?;
    while next(&mut first).await?.kind != Kind::Stdout {}
    // While it runs, over the same connection and over another one.
    let other = scene.friend.dial(&scene.web01).await?;
    for conn in [&conn, &other] {
        let again = follow(exec(conn, scene.key.id(), &request).await?).await?;
        let failure = again.end.expect_err("refused").expect("a reason");
        ensure!(failure.kind == FailureKind::Conflict && again.stdout.is_empty(), "{failure}");
    }
    raw(&mut first, &Frame::empty(Kind::StdinEof).to_bytes()).await?;
    let ran = follow(first).await?;
    ensure!(ran.end.is_ok(), "the first one was disturbed: {ran:?}");
    // And when it is over.
    let again = follow(exec(&conn, scene.key.id(), &request).await?).await?;
    let failure = again.end.expect_err("refused").expect("a reason");
    ensure!(failure.kind == FailureKind::Unknown && again.stdout.is_empty(), "{failure}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_grants_is_refused_and_nothing_it_sends_along_is_carried_out() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    let trace = scene.web01.home.root().join("trace");
    let path = trace.display().to_string();
    let mut wire = exec(&conn, scene.key.id(), &ExecSpec { stdin: true, ..spec(&["touch", &path]) }).await?;
    for _ in 0..4 {
        raw(&mut wire, &[claim(Kind::Stdin, MAX_DATA), vec![b'x'; MAX_DATA]].concat()).await.ok();
    }
    let ran = follow(wire).await?;
    let failure = ran.end.expect_err("refused").expect("a reason");
    ensure!(failure.kind == FailureKind::Denied && failure.message.contains("`guest`"), "{failure}");
    ensure!(!trace.exists() && ran.started.is_none(), "it ran");
    ensure!(scene.audited() == 1, "the refusal is not in the audit, or more than it");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_session_that_breaks_the_protocol_ends_with_its_whole_tree() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let wrong = [
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("a second command", bytes(Kind::Exec, &spec(&["true"]))?),
        ("a frame of the target's", claim(Kind::Started, 0)),
        ("data over its cap", claim(Kind::Stdin, MAX_DATA + 1)),
        (
            "a signal that there is not",
            bytes(Kind::Signal, &malai_protocol::session::Signal { number: 200, order: 0 })?,
        ),
        (
            "a confirmation of what was not sent",
            bytes(Kind::Ack, &malai_protocol::session::Ack { out_offset: 1 << 40 })?,
        ),
    ];
    try_join_all(wrong.iter().map(|(what, bytes)| breaks(&scene, &conn, what, bytes))).await?;
    ping(&conn).await?;
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

/// Sends these bytes in a running session, which is given up for it, and its processes ended.
async fn breaks(scene: &Scene, conn: &Connection, what: &str, bytes: &[u8]) -> Result<()> {
    let request = ExecSpec { stdin: true, ..spec(&["sh", "-c", "echo $$; sleep 600 & wait"]) };
    let mut wire = exec(conn, scene.key.id(), &request).await?;
    let pid = loop {
        let frame = next(&mut wire).await?;
        if frame.kind == Kind::Stdout {
            break String::from_utf8(frame.payload.to_vec())?;
        }
    };
    raw(&mut wire, bytes).await?;
    let answer = loop {
        match got(&mut wire).await? {
            Got::Frame(frame) if frame.kind != Kind::Exit => {}
            last => break last,
        }
    };
    ensure!(matches!(answer, Got::Reset(_)), "{what}: {answer:?}");
    let group = Pid::from_raw(pid.trim().parse()?);
    until(&format!("{what}: the tree ends"), || async { Ok(killpg(group, None) == Err(Errno::ESRCH)) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_taken_out_of_the_config_is_closed_and_stays_out() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    ping(&conn).await?;
    let stranger = Peer::new().await?;
    scene.publish(&scene.text().replace(&scene.friend.id.to_string(), &stranger.id.to_string())).await?;
    let again = scene.friend.dial(&scene.web01).await?;
    ensure!(closed(&again).await?.0 == Some(Close::NotAMember));
    ensure!(closed(&conn).await?.0 == Some(Close::Removed));
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_of_a_machine_that_dialled_before_it_says_that_it_is_no_agent() -> Result<()> {
    for caller_only in [true, false] {
        let scene = Scene::new().await?;
        let conn = scene.laptop.dial(&scene.web01).await?;
        // It is served, and so the daemon has it.
        peer::ping(&conn).await?;
        let _session = scene.web01.begin("laptop", &spec(&["true"])).await?;
        let soon = Duration::from_millis(300);
        ensure!(timeout(soon, conn.accept_bi()).await.is_err(), "a stream was opened before the greeting");
        let mut control = open(&conn).await?;
        send(&mut control, Kind::PeerHello, &Hello { caller_only, ..hello(None) }).await?;
        let _theirs: Hello = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
        if caller_only {
            ensure!(timeout(soon, conn.accept_bi()).await.is_err(), "a stream was opened to an agent");
        } else {
            let mut asked = accept(&conn).await?;
            let _open: Open = next(&mut asked).await?.expect(Kind::Open, "Open")?;
        }
        scene.web01.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_runs_nothing_and_does_not_say_that_nothing_ran() -> Result<()> {
    let scene = Scene::new().await?;
    let sockets = scene.friend.endpoint.bound_sockets();
    let (key, address) = (format!("id52 = \"{}\"\n", scene.friend.id), sockets.first().context("no address")?);
    scene.publish(&scene.text().replace(&key, &format!("{key}addresses = [\"{address}\"]\n"))).await?;
    let agent = Machine::start_agent_in(scene.web01.stop().await?).await?;
    let _session = agent.begin("friend", &spec(&["true"])).await?;
    let incoming = timeout(SOON, scene.friend.endpoint.accept()).await.context("nobody dials")?;
    let conn = incoming.context("no endpoint")?.await?;
    let _control = accept(&conn).await?;
    let ran = peer::run(&conn, scene.key.id(), &["true"]).await?;
    let refused = ran.end.err().flatten().context("it is not refused")?;
    ensure!(refused.kind == FailureKind::Unreachable && ran.started.is_none(), "{refused:?}");
    agent.stop().await?;
    Ok(())
}
