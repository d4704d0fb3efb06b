//! The caller's daemon: what it tells its CLI, and what it tells the target when the CLI is gone.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::Incarnation;
use malai_protocol::peer::{Close, Gone, Hello, Open, RESET_CALLER_GONE};
use malai_protocol::session::{Attach, ExecSpec, Sent};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::peer::{self, Got, Wire, got, hello, open};
use crate::support::scene::Scene;
use crate::support::{Machine, SOON, Socket, again, followed, next};

/// `friend`, as a target that the test plays.
struct Target {
    conn: Connection,
    /// With it the connection would end.
    _control: Wire,
    /// Streams that the daemon opens, with their first frames; those that only ask whether it is there are answered.
    streams: mpsc::Receiver<(Wire, Frame)>,
}

impl Target {
    /// A connection that the daemon uses for its own calls.
    async fn new(scene: &Scene) -> Result<Self> {
        Self::that_says(scene, &hello(None)).await.map(|(target, _)| target)
    }

    /// The same, greeting so; and how it is greeted.
    async fn that_says(scene: &Scene, hello: &Hello) -> Result<(Self, Hello)> {
        let conn = scene.friend.dial(&scene.web01).await?;
        let (found, streams) = mpsc::channel(64);
        tokio::spawn(streams_of(conn.clone(), found));
        let mut control = open(&conn).await?;
        peer::send(&mut control, Kind::PeerHello, hello).await?;
        let theirs = next(&mut control).await?.expect(Kind::PeerHello, "PeerHello")?;
        Ok((Self { conn, _control: control, streams }, theirs))
    }

    /// The next stream, but for questions where a machine is, which get no answer.
    async fn stream(&mut self) -> Result<(Wire, Frame)> {
        loop {
            let next = timeout(SOON, self.streams.recv()).await.context("no stream was opened")?;
            match next.context("no streams any more")? {
                (_, frame) if frame.kind == Kind::Resolve => {}
                stream => return Ok(stream),
            }
        }
    }

    /// The next stream of a session, and its first frame.
    async fn session(&mut self) -> Result<(Wire, Frame)> {
        let (mut wire, open) = self.stream().await?;
        let _open: Open = open.expect(Kind::Open, "Open")?;
        let first = next(&mut wire).await?;
        Ok((wire, first))
    }

    /// What the daemon says of a caller that is gone.
    async fn told(&mut self) -> Result<(Wire, Gone)> {
        let (wire, gone) = self.stream().await?;
        Ok((wire, gone.expect(Kind::Gone, "Gone")?))
    }

    /// Begins a session: the CLI's socket, and the stream that came out.
    async fn begun(&mut self, machine: &Machine, spec: &ExecSpec) -> Result<(Socket, Wire)> {
        let mut socket = machine.begin("friend", spec).await?;
        let (wire, first) = self.session().await?;
        let arrived: ExecSpec = first.expect(Kind::Exec, "Exec")?;
        ensure!(arrived == *spec);
        let _sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
        Ok((socket, wire))
    }
}

async fn streams_of(conn: Connection, found: mpsc::Sender<(Wire, Frame)>) {
    while let Ok((send_half, recv)) = conn.accept_bi().await {
        let found = found.clone();
        tokio::spawn(async move {
            let mut wire = peer::framed(send_half, recv);
            match next(&mut wire).await {
                Ok(first) if first.kind == Kind::Ping => {
                    drop(wire.send(Frame::empty(Kind::Pong)).await);
                }
                Ok(first) => drop(found.send((wire, first)).await),
                Err(_) => {}
            }
        });
    }
}

fn gone_of(spec: &ExecSpec, number: u32) -> Gone {
    let Attach { owner, id, follower, number, .. } = again(spec, number, 0);
    Gone { owner, id, follower, number }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_is_told_that_its_request_is_sent_and_which_executor_it_meets() -> Result<()> {
    let scene = Scene::new().await?;
    let mut target = Target::new(&scene).await?;
    let spec = followed(&["true"]);
    let mut socket = scene.web01.begin("friend", &spec).await?;
    let _wire = target.session().await?;
    let sent: Sent = next(&mut socket).await?.expect(Kind::Sent, "Sent")?;
    ensure!(sent.met.is_none(), "none was told: {sent:?}");
    target.conn.close(0u32.into(), b"");
    let executor = Some(Incarnation::from_bytes([7; 16]));
    let (mut target, theirs) = Target::that_says(&scene, &Hello { executor, ..hello(None) }).await?;
    let attach = again(&spec, 2, 17);
    let mut socket = scene.web01.attach("friend", &attach).await?;
    let (_wire, first) = target.session().await?;
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
    let mut target = Target::new(&scene).await?;
    let (heard, unheard) = (followed(&["true"]), followed(&["true"]));
    for (spec, ends) in [(&heard, true), (&unheard, false)] {
        let (socket, mut wire) = target.begun(&scene.web01, spec).await?;
        drop(socket);
        let end = got(&mut wire).await?;
        ensure!(matches!(end, Got::Reset(code) if code == u64::from(RESET_CALLER_GONE)), "{end:?}");
        if ends {
            peer::finish(&mut wire)?;
        }
        std::mem::forget(wire);
    }
    // It is not taken for told before the answer.
    let (wire, first) = target.told().await?;
    ensure!(first == gone_of(&unheard, 1), "{first:?}");
    drop(wire);
    let (mut wire, second) = target.told().await?;
    ensure!(second == first, "{second:?}");
    wire.send(Frame::empty(Kind::Pong)).await?;
    peer::finish(&mut wire)?;
    // Then it is: the next that is said is another.
    let last = followed(&["true"]);
    let (socket, wire) = target.begun(&scene.web01, &last).await?;
    std::mem::forget(wire);
    drop(socket);
    let (_wire, third) = target.told().await?;
    ensure!(third == gone_of(&last, 1), "{third:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_is_gone_while_its_target_is_away_is_told_of_over_the_next_connection() -> Result<()> {
    let scene = Scene::new().await?;
    let mut target = Target::new(&scene).await?;
    let spec = followed(&["true"]);
    let (mut socket, wire) = target.begun(&scene.web01, &spec).await?;
    target.conn.close(0u32.into(), b"");
    drop(wire);
    ensure!(next(&mut socket).await.is_err(), "the CLI is not told that its attachment is lost");
    // It comes back, and is gone before there is a connection.
    let socket = scene.web01.attach("friend", &again(&spec, 2, 0)).await?;
    drop(socket);
    let mut target = Target::new(&scene).await?;
    let (mut wire, gone) = target.told().await?;
    ensure!(gone == gone_of(&spec, 2), "{gone:?}");
    wire.send(Frame::empty(Kind::Pong)).await?;
    peer::finish(&mut wire)?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_says_goodbye_is_not_gone() -> Result<()> {
    let scene = Scene::new().await?;
    let mut target = Target::new(&scene).await?;
    let (mut socket, mut wire) = target.begun(&scene.web01, &followed(&["true"])).await?;
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
    let mut target = Target::new(&scene).await?;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(target.begun(&scene.web01, &followed(&["true"])).await?);
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
    let mut target = Target::new(&scene).await?;
    let (mut wire, _exec) = target.session().await?;
    for _ in 0..2 {
        let frame = next(&mut wire).await?;
        ensure!(frame.kind == Kind::Stdin && frame.payload == input, "{:?}", frame.kind);
    }
    ensure!(next(&mut wire).await?.kind == Kind::StdinEof);
    scene.web01.stop().await?;
    Ok(())
}
