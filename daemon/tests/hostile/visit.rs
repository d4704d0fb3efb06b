//! Machines at the sessions of another one: what each list lets them do, by hand and badly, and what the audit has of it.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_daemon::store::keys::MachineKey;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::SessionId;
use malai_protocol::peer::{DETACH, Gone, Open, RESET_CALLER_GONE, RESET_LOST};
use malai_protocol::session::{
    Attach, Attached, EndedBy, ExecSpec, ExitRecord, Output, Resend, Signal, Started, StopOutput, Superseded,
};
use malai_protocol::sessions::{Kill, List, Listed, Wait};
use serde::Serialize;

use crate::support::peer::{self, Got, Wire, attach, exec, got};
use crate::support::scene::Scene;
use crate::support::{again, follow, followed, next, until};

/// The config with these lines for `web01`.
fn allowing(scene: &Scene, lines: &str) -> String {
    scene.text().replace("allow_from", &format!("{lines}\nallow_from"))
}

const SESSIONS: &str = "allow_sessions = [\"guest\"]";
const CONTROL: &str = "allow_control = [\"guest\"]";

/// A scene in which `guest` has what these lines allow; with connections of `friend`, who owns sessions, and `guest`.
async fn scene(lines: &str) -> Result<(Scene, Connection, Connection)> {
    let scene = Scene::new().await?;
    scene.publish(&allowing(&scene, lines)).await?;
    let (friend, guest) = (scene.friend.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?);
    Ok((scene, friend, guest))
}

/// Starts a command of `friend` that nobody follows.
async fn launch(scene: &Scene, friend: &Connection, words: &[&str]) -> Result<SessionId> {
    let spec = ExecSpec { detach: true, stdin: false, needs: vec![DETACH.into()], ..followed(words) };
    let mut wire = exec(friend, scene.key.id(), &spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    wire.send(Frame::empty(Kind::Goodbye)).await?;
    peer::finish(&mut wire)?;
    Ok(spec.id)
}

/// A session of `friend` with input.
async fn begin(scene: &Scene, friend: &Connection, spec: &ExecSpec) -> Result<Wire> {
    let mut wire = exec(friend, scene.key.id(), spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    Ok(wire)
}

/// A new process that would attach to a session of `friend`.
fn theirs(scene: &Scene, id: SessionId) -> Attach {
    Attach { owner: Some(scene.friend.id), id, binding: false, ..again(&followed(&[]), 1, 0) }
}

async fn question<T: Serialize>(conn: &Connection, scene: &Scene, kind: Kind, what: &T) -> Result<Wire> {
    let mut wire = peer::open(conn).await?;
    peer::send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation: 0 }).await?;
    peer::send(&mut wire, kind, what).await?;
    Ok(wire)
}

async fn ask<T: Serialize>(conn: &Connection, scene: &Scene, kind: Kind, what: &T) -> Result<Frame> {
    next(&mut question(conn, scene, kind, what).await?).await
}

async fn kill(conn: &Connection, scene: &Scene, id: SessionId, signal: Option<u8>) -> Result<Frame> {
    ask(conn, scene, Kind::Kill, &Kill { owner: Some(scene.friend.id), id, signal }).await
}

/// Attaches, and says whether it only watches.
async fn attached(conn: &Connection, scene: &Scene, ask: &Attach) -> Result<(Wire, bool)> {
    let mut wire = attach(conn, scene.key.id(), ask).await?;
    let attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    Ok((wire, attached.watches))
}

/// Attaches to what was just begun, as soon as it is left by whom began it.
async fn watch(conn: &Connection, scene: &Scene, ask: &Attach) -> Result<Wire> {
    for number in ask.number.. {
        let mut wire = attach(conn, scene.key.id(), &Attach { number, ..*ask }).await?;
        let answer = next(&mut wire).await?;
        if answer.kind == Kind::Attached {
            let attached: Attached = answer.decode()?;
            ensure!(attached.watches, "it hears that it does more");
            return Ok(wire);
        }
        let failure: Failure = answer.expect(Kind::Refused, "Attached or Refused")?;
        ensure!(failure.kind == FailureKind::Conflict && number % 1000 != 0, "{failure}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    bail!("no numbers are left")
}

/// Why the attachment is ended; whatever was on its way before is passed over.
async fn refused(wire: &mut Wire) -> Result<Failure> {
    loop {
        let frame = next(wire).await?;
        match frame.kind {
            Kind::Stdout | Kind::Stderr | Kind::StdinAck | Kind::Attached => {}
            _ => {
                let failure: Failure = frame.expect(Kind::Refused, "Refused")?;
                ensure!(matches!(got(wire).await?, Got::End), "something follows");
                return Ok(failure);
            }
        }
    }
}

/// Reads standard output until it is all of this.
async fn reads(wire: &mut Wire, wanted: &str) -> Result<()> {
    let mut out = Vec::new();
    while out.len() < wanted.len() {
        let frame = next(wire).await?;
        match frame.kind {
            Kind::Stdout => out.extend_from_slice(&frame.payload),
            // A shell tells there by which signals its children ended.
            Kind::StdinAck | Kind::Stderr => {}
            other => bail!("{other:?} came, after {:?}", String::from_utf8_lossy(&out)),
        }
    }
    ensure!(out == wanted.as_bytes(), "{:?}", String::from_utf8_lossy(&out));
    Ok(())
}

async fn types(wire: &mut Wire, text: &str) -> Result<()> {
    Ok(wire.send(Frame::data(Kind::Stdin, Bytes::from(text.to_owned()))).await?)
}

/// Everything that is more than watching, as frames.
fn acts() -> Result<Vec<(&'static str, Frame)>> {
    let signal = |number| Frame::control(Kind::Signal, &Signal { number, order: 0 });
    Ok(vec![
        ("input", Frame::data(Kind::Stdin, Bytes::from_static(b"typed\n"))),
        ("empty input", Frame::data(Kind::Stdin, Bytes::new())),
        ("the end of input", Frame::empty(Kind::StdinEof)),
        ("HUP", signal(1)?),
        ("TERM", signal(15)?),
        ("the end of output", Frame::control(Kind::StopOutput, &StopOutput { stream: Output::Stdout })?),
    ])
}

/// What the audit has of `guest` and this session: each event, its signal, and the beginning of its outcome; but for what
/// came too early.
fn audited(scene: &Scene, id: SessionId) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(scene.web01.home.audit())?;
    let entries = text.lines().map(serde_json::from_str::<Entry>).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::new();
    for entry in entries.iter().filter(|e| e.session == id.to_string() && e.who.as_deref() == Some("guest")) {
        ensure!(entry.owner.as_ref() == Some(&scene.friend.id.to_string()), "{entry:?}");
        ensure!(entry.owner_name.as_deref() == Some("friend") && entry.id52 == scene.guest.id.to_string(), "{entry:?}");
        ensure!(entry.words.is_empty() && entry.user.is_none() && entry.count.is_none(), "{entry:?}");
        let event = serde_json::to_value(entry.event)?.as_str().context("a name")?.to_owned();
        ensure!((entry.event == Event::Refused) == entry.outcome.is_some(), "{entry:?}");
        let (kind, what) = entry.outcome.as_deref().and_then(|text| text.split_once(": ")).unzip();
        if kind == Some("conflict") {
            ensure!(all.pop().as_deref() == Some("attach"), "{entry:?}");
            continue;
        }
        let what = what.and_then(|what| what.split(" a session of").next());
        let signal = entry.signal.map(|number| number.to_string());
        all.push([Some(event.as_str()), signal.as_deref(), what].into_iter().flatten().collect::<Vec<_>>().join(" "));
    }
    Ok(all)
}

/// A command that tells of every signal, and ends when it is let go.
fn tells(scene: &Scene) -> String {
    let go = scene.web01.home.root().join("go");
    format!(
        "for s in HUP INT TERM USR1; do trap \"echo $s\" $s; done; echo ready; \
         until [ -e {} ]; do sleep 0.02; done; echo end",
        go.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_allow_sessions_lists_watches_waits_and_kills() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let (over, first, second) = (
        launch(&scene, &friend, &["echo", "hi"]).await?,
        launch(&scene, &friend, &["sleep", "1000"]).await?,
        launch(&scene, &friend, &["sleep", "1000"]).await?,
    );
    let owner = Some(scene.friend.id);
    let listed: Listed = ask(&guest, &scene, Kind::List, &List {}).await?.expect(Kind::Listed, "Listed")?;
    ensure!(listed.sessions.len() == 3, "{listed:?}");
    let wait = Wait { owner, id: over };
    let _record: ExitRecord = ask(&guest, &scene, Kind::Wait, &wait).await?.expect(Kind::Exit, "Exit")?;
    // What is over, and what runs.
    let ran = follow(attach(&guest, scene.key.id(), &theirs(&scene, over)).await?).await?;
    ensure!(ran.stdout == b"hi\n" && ran.end.is_ok(), "{ran:?}");
    let watching = watch(&guest, &scene, &theirs(&scene, first)).await?;
    let record: ExitRecord = kill(&guest, &scene, first, None).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Killed, "{record:?}");
    ensure!(follow(watching).await?.end.is_ok_and(|end| end == record));
    ensure!(kill(&guest, &scene, second, Some(15)).await?.kind == Kind::Killed);
    let wait = Wait { owner, id: second };
    let record: ExitRecord = ask(&guest, &scene, Kind::Wait, &wait).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.exit_code() == 143, "{record:?}");
    ensure!(audited(&scene, over)? == ["attach"], "{:?}", audited(&scene, over)?);
    ensure!(audited(&scene, first)? == ["attach", "kill"], "{:?}", audited(&scene, first)?);
    ensure!(audited(&scene, second)? == ["kill 15"], "{:?}", audited(&scene, second)?);
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_only_watches_is_refused_at_its_first_act_and_the_command_gets_nothing_of_it() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let id = launch(&scene, &friend, &["sh", "-c", &tells(&scene)]).await?;
    let mine = theirs(&scene, id);
    for (number, (what, frame)) in (1..).step_by(1000).zip(acts()?) {
        let mut wire = watch(&guest, &scene, &Attach { number, ..mine }).await?;
        wire.send(frame).await?;
        let failure = refused(&mut wire).await.context(what)?;
        let hint = failure.hint.clone().unwrap_or_default();
        ensure!(
            failure.kind == FailureKind::Denied && hint.contains("allow_control = [\"guest\"]"),
            "{what}: {failure:?}"
        );
    }
    // Taking over, at once with what would be typed, and every signal that does not end it.
    let mut wire = attach(&guest, scene.key.id(), &Attach { take_over: true, ..theirs(&scene, id) }).await?;
    types(&mut wire, "typed\n").await?;
    ensure!(refused(&mut wire).await?.kind == FailureKind::Denied);
    for signal in [1, 2, 3, 10, 18, 19] {
        let failure: Failure = kill(&guest, &scene, id, Some(signal)).await?.expect(Kind::Refused, "Refused")?;
        ensure!(failure.kind == FailureKind::Denied, "{signal}: {failure}");
    }
    std::fs::write(scene.web01.home.root().join("go"), "")?;
    let ran =
        follow(attach(&friend, scene.key.id(), &Attach { owner: None, take_over: true, ..theirs(&scene, id) }).await?)
            .await?;
    ensure!(ran.stdout == b"ready\nend\n", "{:?}", String::from_utf8_lossy(&ran.stdout));
    ensure!(ran.end.is_ok_and(|record| record.exit_code() == 0));
    let mut wanted = Vec::new();
    for doing in ["typing into", "typing into", "typing into", "signalling", "signalling", "typing into"] {
        wanted.extend(["attach".to_owned(), format!("refused {doing}")]);
    }
    wanted.push("refused taking over".to_owned());
    wanted.extend(std::iter::repeat_n("refused signalling".to_owned(), 6));
    ensure!(audited(&scene, id)? == wanted, "{:?}", audited(&scene, id)?);
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_followed_or_waits_for_its_caller_cannot_be_watched_and_goes_on_for_that_one() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let spec = followed(&["cat"]);
    let mut wire = begin(&scene, &friend, &spec).await?;
    let conflict = async |or_watch: bool| {
        let ask = Attach { take_over: or_watch, or_watch, ..theirs(&scene, spec.id) };
        let mut wire = attach(&guest, scene.key.id(), &ask).await?;
        types(&mut wire, "typed\n").await?;
        let failure = refused(&mut wire).await?;
        ensure!(failure.kind == FailureKind::Conflict, "{failure}");
        ensure!(failure.hint.is_some_and(|hint| hint.contains("allow_control")));
        anyhow::Ok(failure.message)
    };
    for or_watch in [false, true] {
        ensure!(conflict(or_watch).await?.contains("follows this session already"));
    }
    types(&mut wire, "one\n").await?;
    reads(&mut wire, "one\n").await?;
    // The connection of its caller is lost.
    peer::reset(&mut wire, RESET_LOST)?;
    let is_alone = || async { Ok(conflict(true).await?.contains("waits for its caller")) };
    until("the session waits for its caller", is_alone).await?;
    let mut wire = attach(&friend, scene.key.id(), &again(&spec, 2, 4)).await?;
    let back: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    ensure!((back.out_offset, back.stdin_offset, back.watches) == (4, 4, false), "{back:?}");
    types(&mut wire, "two\n").await?;
    reads(&mut wire, "two\n").await?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let record = follow(wire).await?.end.expect("a record");
    ensure!(record.stdout_bytes == 8 && record.exit_code() == 0, "{record:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_only_watches_leaves_its_place_to_whom_comes_to_do_more() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let id = launch(&scene, &friend, &["sh", "-c", &tells(&scene)]).await?;
    let mut watching = watch(&guest, &scene, &theirs(&scene, id)).await?;
    reads(&mut watching, "ready\n").await?;
    // The owner need not ask for the place.
    let own = Attach { owner: None, ..theirs(&scene, id) };
    let (mut following, watches) = attached(&friend, &scene, &own).await?;
    ensure!(!watches);
    reads(&mut following, "ready\n").await?;
    let by: Superseded = next(&mut watching).await?.expect(Kind::Superseded, "Superseded")?;
    ensure!(by.by == scene.friend.id && by.follower == own.follower, "{by:?}");
    // By the name of the process that follows now, one that watches gets no further.
    for (take_over, number) in [(false, 2), (false, u32::MAX), (true, u32::MAX)] {
        let ask = Attach { follower: own.follower, number, take_over, or_watch: take_over, ..theirs(&scene, id) };
        let mut wire = attach(&guest, scene.key.id(), &ask).await?;
        ensure!(refused(&mut wire).await?.kind == FailureKind::Conflict, "{take_over} {number}");
    }
    peer::send(&mut following, Kind::Signal, &Signal { number: 1, order: 0 }).await?;
    reads(&mut following, "HUP\n").await?;
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_again_after_another_took_its_session_over_is_not_told_that_it_did_not_run() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["cat"]);
    let _first = begin(&scene, &friend, &spec).await?;
    let (_theirs, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, spec.id) }).await?;
    let resend = Some(Resend { number: 2, met: None, since_ms: 0 });
    let mut again = exec(&friend, scene.key.id(), &ExecSpec { resend, ..spec.clone() }).await?;
    let failure = refused(&mut again).await?;
    ensure!(failure.kind == FailureKind::Unknown, "{failure:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_allow_control_takes_over_types_and_signals_and_each_is_in_the_audit() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["cat"]);
    let mut owner = begin(&scene, &friend, &spec).await?;
    let ask = Attach { take_over: true, or_watch: true, ..theirs(&scene, spec.id) };
    let (mut wire, watches) = attached(&guest, &scene, &ask).await?;
    ensure!(!watches);
    let by: Superseded = next(&mut owner).await?.expect(Kind::Superseded, "Superseded")?;
    ensure!(by.by == scene.guest.id, "{by:?}");
    types(&mut wire, "one\n").await?;
    reads(&mut wire, "one\n").await?;
    types(&mut wire, "two\n").await?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let ran = follow(wire).await?;
    ensure!(ran.stdout == b"two\n" && ran.end.is_ok(), "{ran:?}");
    ensure!(audited(&scene, spec.id)? == ["take-over", "control"], "{:?}", audited(&scene, spec.id)?);

    let id = launch(&scene, &friend, &["sh", "-c", &tells(&scene)]).await?;
    let (mut wire, _) = attached(&guest, &scene, &ask_for(&ask, id)).await?;
    reads(&mut wire, "ready\n").await?;
    for (number, name) in [(1, "HUP\n"), (15, "TERM\n")] {
        peer::send(&mut wire, Kind::Signal, &Signal { number, order: 0 }).await?;
        reads(&mut wire, name).await?;
    }
    ensure!(kill(&guest, &scene, id, Some(10)).await?.kind == Kind::Killed);
    reads(&mut wire, "USR1\n").await?;
    let _record: ExitRecord = kill(&guest, &scene, id, None).await?.expect(Kind::Exit, "Exit")?;
    let wanted = ["take-over", "signal 1", "signal 15", "signal 10", "kill"];
    ensure!(audited(&scene, id)? == wanted, "{:?}", audited(&scene, id)?);
    scene.web01.end().await
}

fn ask_for(ask: &Attach, id: SessionId) -> Attach {
    Attach { id, ..*ask }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_grant_ends_the_attachment_it_was_for_and_nothing_typed_later_arrives() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["cat"]);
    let _owner = begin(&scene, &friend, &spec).await?;
    let (mut wire, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, spec.id) }).await?;
    types(&mut wire, "one\n").await?;
    reads(&mut wire, "one\n").await?;
    // What is left lets it watch, and no more.
    scene.publish(&allowing(&scene, SESSIONS)).await?;
    // The target holds it by now: whatever is typed from here on is typed too late, before the refusal is read and after.
    drop(types(&mut wire, "late\n").await);
    let failure = refused(&mut wire).await?;
    ensure!(failure.kind == FailureKind::Denied && failure.message.contains("allow_control"), "{failure}");
    drop(types(&mut wire, "later\n").await);
    let own = Attach { take_over: true, number: 2, ..again(&spec, 2, 0) };
    let (mut wire, _) = attached(&friend, &scene, &own).await?;
    types(&mut wire, "two\n").await?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let ran = follow(wire).await?;
    let out = String::from_utf8(ran.stdout)?;
    ensure!(out.ends_with("two\n") && !out.contains("late"), "{out:?}");
    ensure!(ran.end.is_ok_and(|record| record.stdout_bytes == 8 && record.ended_by == EndedBy::Itself));
    let wanted = ["take-over", "control", "refused following"];
    ensure!(audited(&scene, spec.id)? == wanted, "{:?}", audited(&scene, spec.id)?);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_grant_ends_watching_and_waiting_too() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let id = launch(&scene, &friend, &["sh", "-c", &tells(&scene)]).await?;
    let mut watching = watch(&guest, &scene, &theirs(&scene, id)).await?;
    reads(&mut watching, "ready\n").await?;
    let wait = Wait { owner: Some(scene.friend.id), id };
    let mut waiting = question(&guest, &scene, Kind::Wait, &wait).await?;
    let mut own = question(&friend, &scene, Kind::Wait, &Wait { owner: None, ..wait }).await?;
    // Another snapshot that leaves it the grant ends nothing: by another list, at that.
    scene.publish(&allowing(&scene, CONTROL)).await?;
    ensure!(kill(&guest, &scene, id, Some(1)).await?.kind == Kind::Killed);
    reads(&mut watching, "HUP\n").await?;
    scene.publish(&scene.text()).await?;
    for wire in [&mut watching, &mut waiting] {
        let failure = refused(wire).await?;
        ensure!(failure.kind == FailureKind::Denied && failure.message.contains("allow_sessions"), "{failure}");
    }
    // The session and its owner notice nothing of it.
    std::fs::write(scene.web01.home.root().join("go"), "")?;
    let record: ExitRecord = next(&mut own).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Itself, "{record:?}");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_left_the_config_is_at_no_session_any_more() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["cat"]);
    let _owner = begin(&scene, &friend, &spec).await?;
    let (mut wire, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, spec.id) }).await?;
    types(&mut wire, "one\n").await?;
    reads(&mut wire, "one\n").await?;
    let another = MachineKey::generate()?.id().to_string();
    scene.publish(&allowing(&scene, CONTROL).replace(&scene.guest.id.to_string(), &another)).await?;
    drop(types(&mut wire, "late\n").await);
    let failure = refused(&mut wire).await?;
    ensure!(failure.kind == FailureKind::NotAMember, "{failure}");
    let (mut wire, _) = attached_own(&scene, &friend, spec.id).await?;
    types(&mut wire, "two\n").await?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    let record = follow(wire).await?.end.expect("a record");
    ensure!(record.stdout_bytes == 8 && record.ended_by == EndedBy::Itself, "{record:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_nothing_any_more_cannot_keep_its_attachment_after_its_grant() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["yes"]);
    let _owner = begin(&scene, &friend, &spec).await?;
    let (mut wire, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, spec.id) }).await?;
    // It reads nothing, until the stream and all between hold no more: then the attachment stands still.
    let (owner, id) = (None, spec.id);
    scene.publish(&scene.text()).await?;
    let answer = loop {
        match got(&mut wire).await? {
            Got::Frame(frame) if frame.kind == Kind::Stdout => {}
            answer => break answer,
        }
    };
    match answer {
        Got::Frame(frame) => ensure!(frame.kind == Kind::Refused, "{frame:?}"),
        Got::Reset(code) => ensure!(code == u64::from(RESET_LOST), "{code}"),
        other => bail!("{other:?}"),
    }
    let mut own = question(&friend, &scene, Kind::Kill, &Kill { owner, id, signal: None }).await?;
    let record: ExitRecord = next(&mut own).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Killed, "{record:?}");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_going_of_another_machine_ends_nothing_however_it_goes() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    for kill_on_lost in [false, true] {
        let spec = ExecSpec { kill_on_lost, ..followed(&["cat"]) };
        let _owner = begin(&scene, &friend, &spec).await?;
        for (number, code) in [(2, RESET_CALLER_GONE), (3, RESET_LOST)] {
            // As if it were the owner's own process, and its going the end.
            let follower = spec.follower.context("a follower")?;
            let ask = Attach { binding: true, take_over: true, follower, number, ..theirs(&scene, spec.id) };
            let (mut wire, _) = attached(&guest, &scene, &ask).await?;
            types(&mut wire, "x\n").await?;
            reads(&mut wire, "x\n").await?;
            for number in [1, number, number + 1] {
                let gone = Gone { owner: ask.owner, id: spec.id, follower, number };
                ensure!(peer::gone(&guest, &gone).await?.kind == Kind::Pong);
            }
            peer::reset(&mut wire, code)?;
            while let Got::Frame(_) = got(&mut wire).await? {}
        }
        let own = Attach { take_over: true, ..again(&followed(&[]), 1, 0) };
        let (mut wire, _) = attached(&friend, &scene, &Attach { id: spec.id, ..own }).await?;
        types(&mut wire, "mine\n").await?;
        wire.send(Frame::empty(Kind::StdinEof)).await?;
        let record = follow(wire).await?.end.expect("a record");
        ensure!(record.ended_by == EndedBy::Itself && record.stdout_bytes == 9, "{kill_on_lost}: {record:?}");
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_allow_sessions_cannot_end_a_session_by_saying_that_its_caller_is_gone() -> Result<()> {
    let (scene, friend, guest) = scene(SESSIONS).await?;
    let spec = followed(&["cat"]);
    let mut wire = begin(&scene, &friend, &spec).await?;
    let follower = spec.follower.context("a follower")?;
    for number in [0, 1, 2, u32::MAX] {
        let gone = Gone { owner: Some(scene.friend.id), id: spec.id, follower, number };
        ensure!(peer::gone(&guest, &gone).await?.kind == Kind::Pong);
    }
    types(&mut wire, "one\n").await?;
    reads(&mut wire, "one\n").await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_into_the_audit_is_not_done() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let spec = followed(&["cat"]);
    let mut owner = begin(&scene, &friend, &spec).await?;
    let id = launch(&scene, &friend, &["sh", "-c", &tells(&scene)]).await?;
    let (mut controls, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, id) }).await?;
    reads(&mut controls, "ready\n").await?;
    let audit = scene.web01.home.audit();
    std::fs::rename(&audit, audit.with_extension("full"))?;
    std::os::unix::fs::symlink("/dev/full", &audit)?;
    peer::send(&mut controls, Kind::Signal, &Signal { number: 1, order: 0 }).await?;
    let mut refusals = vec![refused(&mut controls).await?];
    let take_over = Attach { take_over: true, ..theirs(&scene, spec.id) };
    refusals.push(refused(&mut attach(&guest, scene.key.id(), &take_over).await?).await?);
    for signal in [None, Some(1)] {
        refusals.push(kill(&guest, &scene, id, signal).await?.expect(Kind::Refused, "Refused")?);
    }
    for failure in refusals {
        ensure!(
            failure.kind == FailureKind::Internal && failure.message.contains("audit cannot be written"),
            "{failure}"
        );
    }
    std::fs::remove_file(&audit)?;
    types(&mut owner, "one\n").await?;
    reads(&mut owner, "one\n").await?;
    std::fs::write(scene.web01.home.root().join("go"), "")?;
    let own = Attach { owner: None, take_over: true, ..theirs(&scene, id) };
    let ran = follow(attach(&friend, scene.key.id(), &own).await?).await?;
    ensure!(ran.stdout == b"ready\nend\n", "{:?}", String::from_utf8_lossy(&ran.stdout));
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_signals_without_end_fills_no_audit_and_is_turned_away() -> Result<()> {
    let (scene, friend, guest) = scene(CONTROL).await?;
    let id = launch(&scene, &friend, &["sh", "-c", "trap '' HUP; echo ready; exec sleep 1000"]).await?;
    let (mut wire, _) = attached(&guest, &scene, &Attach { take_over: true, ..theirs(&scene, id) }).await?;
    reads(&mut wire, "ready\n").await?;
    let signal = Frame::control(Kind::Signal, &Signal { number: 1, order: 0 })?.to_bytes();
    // It may be closed before all of them are out.
    drop(peer::raw(&mut wire, &signal.repeat(5000)).await);
    let failure = refused(&mut wire).await?;
    ensure!(failure.kind == FailureKind::Busy, "{failure}");
    // Those at the pace of ten a second, beside the first hundred.
    ensure!(audited(&scene, id)?.len() < 1000, "{}", audited(&scene, id)?.len());
    let (mut wire, _) = attached_own(&scene, &friend, id).await?;
    reads(&mut wire, "ready\n").await?;
    scene.web01.end().await
}

async fn attached_own(scene: &Scene, friend: &Connection, id: SessionId) -> Result<(Wire, bool)> {
    attached(friend, scene, &Attach { owner: None, take_over: true, ..theirs(scene, id) }).await
}
