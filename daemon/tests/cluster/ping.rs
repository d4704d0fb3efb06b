//! Pings: what a daemon tells its CLI of each, and what the machine that is asked sees of them.

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::local::{Ping, PingAnswer, PingOutcome, Request, Response, THIS_MACHINE};
use malai_protocol::peer::Close;
use tokio::time::timeout;

use crate::support::peer::{self, Wire};
use crate::support::scene::Scene;
use crate::support::{Machine, SOON, Socket, next};

fn pings(machine: &str, count: Option<u64>) -> Ping {
    Ping { machine: machine.into(), cluster: Some("c".into()), connect_timeout_ms: 10_000, interval_ms: 100, count }
}

async fn begin(machine: &Machine, ask: Ping) -> Result<Socket> {
    let mut socket = machine.connect().await?;
    socket.send(Frame::control(Kind::Request, &Request::Ping(ask))?).await?;
    Ok(socket)
}

async fn response(socket: &mut Socket) -> Result<Response> {
    Ok(next(socket).await?.expect(Kind::Response, "Response")?)
}

async fn answer(socket: &mut Socket) -> Result<PingAnswer> {
    match response(socket).await? {
        Response::Ping(answer) => Ok(answer),
        other => bail!("{other:?}"),
    }
}

/// The number of the first one that is so, soon.
async fn first(socket: &mut Socket, is_so: impl Fn(&PingAnswer) -> bool) -> Result<u64> {
    let found = timeout(SOON, async {
        loop {
            let answer = answer(socket).await?;
            if is_so(&answer) {
                return Ok(answer.seq);
            }
        }
    });
    found.await.context("no ping ended so")?
}

/// All answers, to the last response.
async fn all(machine: &Machine, ask: Ping) -> Result<Vec<PingAnswer>> {
    let mut socket = begin(machine, ask).await?;
    let mut answers = Vec::new();
    loop {
        match response(&mut socket).await? {
            Response::Ping(answer) => answers.push(answer),
            Response::Done => return Ok(answers),
            other => bail!("{other:?} after {answers:?}"),
        }
    }
}

async fn failure(machine: &Machine, ask: Ping) -> Result<Failure> {
    match response(&mut begin(machine, ask).await?).await? {
        Response::Failed(failure) => Ok(failure),
        other => bail!("{other:?}"),
    }
}

/// A ping that arrived at a machine that the test plays.
async fn arrived(conn: &Connection) -> Result<Wire> {
    loop {
        let mut wire = peer::accept(conn).await?;
        match next(&mut wire).await?.kind {
            Kind::Ping => return Ok(wire),
            // Where others are may be asked too.
            Kind::Resolve => {}
            other => bail!("a stream that began with {other:?} is no ping"),
        }
    }
}

async fn pong(mut wire: Wire) -> Result<()> {
    wire.send(Frame::empty(Kind::Pong)).await?;
    peer::finish(&mut wire)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_ping_is_answered_by_the_other_daemon_with_its_time_and_path() -> Result<()> {
    let (laptop, web01) = (Machine::start().await?, Machine::start().await?);
    laptop.init("laptop").await?;
    web01.join(laptop.invite("web01").await?).await?;
    // web01 is granted nothing on the laptop.
    for (from, to) in [(&laptop, "web01"), (&web01, "laptop")] {
        let answers = all(from, pings(to, Some(3))).await?;
        assert_eq!(answers.iter().map(|answer| answer.seq).collect::<Vec<_>>(), [1, 2, 3]);
        for answer in answers {
            ensure!(matches!(answer.outcome, PingOutcome::Answered { rtt_us: 1.., .. }), "{answer:?}");
            ensure!(answer.outcome.is_direct(), "{answer:?}");
        }
    }
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_of_a_machine_that_is_away_are_lost_and_answered_again_when_it_is_back() -> Result<()> {
    let (laptop, web01) = (Machine::start().await?, Machine::start().await?);
    laptop.init("laptop").await?;
    web01.join(laptop.invite("web01").await?).await?;
    let mut socket = begin(&laptop, pings("web01", None)).await?;
    ensure!(answer(&mut socket).await?.outcome.is_direct(), "it is not answered while both are there");
    let dir = web01.stop().await?;
    let lost = first(&mut socket, |answer| answer.outcome == PingOutcome::Lost { after_ms: 1000 }).await?;
    let web01 = Machine::start_in(dir).await?;
    first(&mut socket, |answer| answer.seq > lost && answer.outcome.is_direct()).await?;
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_connection_is_lost_is_dialled_again() -> Result<()> {
    let scene = Scene::new().await?;
    let sockets = scene.friend.endpoint.bound_sockets();
    let address = sockets.first().context("friend has no address")?;
    let key = format!("id52 = \"{}\"\n", scene.friend.id);
    scene.publish(&scene.text().replace(&key, &format!("{key}addresses = [\"{address}\"]\n"))).await?;
    // With its manager there, the daemon has no other reason to dial.
    let _manager = scene.laptop.come(&scene.web01).await?;
    let (conn, _control) = scene.friend.come(&scene.web01).await?;
    let mut socket = begin(&scene.web01, pings("friend", None)).await?;
    pong(arrived(&conn).await?).await?;
    answer(&mut socket).await?;
    conn.close((Close::Done as u32).into(), b"");
    let conn = timeout(SOON, async {
        loop {
            let incoming = scene.friend.endpoint.accept().await.context("no endpoint")?;
            // One that was begun before there was a connection may have been given up.
            if let Ok(conn) = incoming.await {
                return anyhow::Ok(conn);
            }
        }
    });
    let conn = conn.await.context("nobody dials")??;
    let _control = peer::accept(&conn).await?;
    pong(arrived(&conn).await?).await?;
    first(&mut socket, |answer| answer.seq > 1 && answer.outcome.is_direct()).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_that_is_lost_does_not_delay_the_next() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, _control) = scene.friend.come(&scene.web01).await?;
    let mut socket = begin(&scene.web01, pings("friend", Some(2))).await?;
    let _unanswered = arrived(&conn).await?;
    pong(arrived(&conn).await?).await?;
    let second = answer(&mut socket).await?;
    ensure!(second.seq == 2 && second.outcome.is_direct(), "{second:?}");
    let first = answer(&mut socket).await?;
    ensure!(first == PingAnswer { seq: 1, outcome: PingOutcome::Lost { after_ms: 1000 } }, "{first:?}");
    ensure!(response(&mut socket).await? == Response::Done);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_wake_no_heartbeat() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, _control) = scene.friend.come(&scene.web01).await?;
    let ask = Ping { interval_ms: 1500, ..pings("friend", Some(2)) };
    let mut socket = begin(&scene.web01, ask).await?;
    let mut asked = 0;
    let done = loop {
        tokio::select! {
            wire = arrived(&conn) => {
                pong(wire?).await?;
                asked += 1;
            }
            response = response(&mut socket) => match response? {
                Response::Ping(answer) => ensure!(answer.outcome.is_direct(), "{answer:?}"),
                last => break last,
            },
        }
    };
    ensure!(done == Response::Done, "{done:?}");
    // A heartbeat would have asked by itself between the two.
    assert_eq!(asked, 2);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_end_when_the_cli_leaves() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, _control) = scene.friend.come(&scene.web01).await?;
    let socket = begin(&scene.web01, pings("friend", None)).await?;
    let unanswered = arrived(&conn).await?;
    drop(socket);
    let (_, left) = unanswered.into_inner().into_inner();
    timeout(SOON, left.stopped()).await.context("the ping is not given up")??;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_asks_itself_without_any_network() -> Result<()> {
    let scene = Scene::new().await?;
    let here = PingOutcome::Answered { rtt_us: 0, path: THIS_MACHINE.into() };
    let answers = all(&scene.web01, pings("web01", Some(2))).await?;
    ensure!(answers.iter().all(|answer| answer.outcome == here) && answers.len() == 2, "{answers:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_that_cannot_be_says_why() -> Result<()> {
    let scene = Scene::new().await?;
    let away = Ping { connect_timeout_ms: 200, ..pings("friend", None) };
    let hasty = Ping { interval_ms: 99, ..pings("friend", None) };
    for (ask, kind, words) in [
        (away, FailureKind::Unreachable, "friend.c cannot be reached"),
        (pings("freind", None), FailureKind::UnknownTarget, "is it friend.c?"),
        (hasty, FailureKind::Usage, "at least 100 ms"),
        (pings("friend", Some(0)), FailureKind::Usage, "--count must be at least 1"),
    ] {
        let failure = failure(&scene.web01, ask).await?;
        ensure!(failure.kind == kind && failure.message.contains(words) && failure.hint.is_some(), "{failure:?}");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_know_this_one_is_not_asked_again() -> Result<()> {
    let scene = Scene::new().await?;
    let (conn, _control) = scene.friend.come(&scene.web01).await?;
    let mut socket = begin(&scene.web01, pings("friend", None)).await?;
    pong(arrived(&conn).await?).await?;
    answer(&mut socket).await?;
    conn.close((Close::NotAMember as u32).into(), b"not a member of the cluster");
    let refused = timeout(SOON, async {
        loop {
            match response(&mut socket).await? {
                Response::Failed(failure) => return Ok(failure),
                Response::Ping(PingAnswer { outcome: PingOutcome::Lost { .. }, .. }) => {}
                other => bail!("{other:?}"),
            }
        }
    });
    let refused = refused.await.context("it is asked again and again")??;
    ensure!(refused.kind == FailureKind::NotAMember, "{refused:?}");
    refused.hint.context("no hint")?;
    scene.web01.stop().await?;
    Ok(())
}
