//! Who may list, wait for, signal and end sessions, and what that does.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::{MachineId, SessionId};
use malai_protocol::peer::{DETACH, Open};
use malai_protocol::session::{Attach, EndedBy, ExecSpec, ExitRecord, Started};
use malai_protocol::sessions::{Kill, List, Listed, State, Summary, Wait};
use serde::Serialize;

use crate::support::peer::{self, Wire, exec};
use crate::support::scene::Scene;
use crate::support::{again, follow, followed, next, until};

/// A command that nobody follows.
fn detached(words: &[&str]) -> ExecSpec {
    ExecSpec { detach: true, stdin: false, needs: vec![DETACH.into()], ..followed(words) }
}

/// Starts it, and leaves.
async fn launch(conn: &Connection, scene: &Scene, spec: &ExecSpec) -> Result<()> {
    let mut wire = exec(conn, scene.key.id(), spec).await?;
    let _started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    wire.send(Frame::empty(Kind::Goodbye)).await?;
    peer::finish(&mut wire)
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

async fn list(conn: &Connection, scene: &Scene) -> Result<Vec<Summary>> {
    let mut wire = question(conn, scene, Kind::List, &List {}).await?;
    let mut all = Vec::new();
    loop {
        let Listed { sessions, more } = next(&mut wire).await?.expect(Kind::Listed, "Listed")?;
        all.extend(sessions);
        if !more {
            return Ok(all);
        }
    }
}

/// All that can be asked about one session.
async fn attempts(conn: &Connection, scene: &Scene, owner: MachineId, id: SessionId) -> Result<Vec<Failure>> {
    let owner = Some(owner);
    let attach = Attach { owner, id, binding: false, take_over: true, ..again(&followed(&[]), 1, 0) };
    let ran = follow(peer::attach(conn, scene.key.id(), &attach).await?).await?;
    let mut refusals = vec![ran.end.expect_err("refused").context("a reason")?];
    for answer in [
        ask(conn, scene, Kind::Wait, &Wait { owner, id }).await?,
        ask(conn, scene, Kind::Kill, &Kill { owner, id, signal: None }).await?,
        ask(conn, scene, Kind::Kill, &Kill { owner, id, signal: Some(15) }).await?,
    ] {
        refusals.push(answer.expect(Kind::Refused, "Refused")?);
    }
    Ok(refusals)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_allow_sessions_sees_and_ends_nothing_of_others() -> Result<()> {
    let scene = Scene::new().await?;
    let (friend, guest) = (scene.friend.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?);
    let spec = detached(&["sleep", "1000"]);
    launch(&friend, &scene, &spec).await?;
    ensure!(list(&guest, &scene).await?.is_empty());
    let theirs = attempts(&guest, &scene, scene.friend.id, spec.id).await?;
    let none = attempts(&guest, &scene, scene.friend.id, followed(&[]).id).await?;
    ensure!(theirs == none, "a session that there is is refused otherwise than one that there is not");
    ensure!(theirs.iter().all(|failure| failure.kind == FailureKind::Denied), "{theirs:?}");

    let sessions = list(&friend, &scene).await?;
    ensure!(sessions.len() == 1, "{sessions:?}");
    let Summary { owner, id, command, detached, state, .. } = &sessions[0];
    ensure!(
        (*owner, *id, command.as_str(), *detached) == (scene.friend.id, spec.id, "sleep 1000", true),
        "{sessions:?}"
    );
    ensure!(*state == State::Running, "it was not disturbed");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_waits_for_its_session_and_ends_it_and_the_audit_says_who_did() -> Result<()> {
    let scene = Scene::new().await?;
    let friend = scene.friend.dial(&scene.web01).await?;
    let spec = detached(&["sleep", "1000"]);
    launch(&friend, &scene, &spec).await?;
    let mut waiting = question(&friend, &scene, Kind::Wait, &Wait { owner: None, id: spec.id }).await?;
    let kill = Kill { owner: None, id: spec.id, signal: None };
    let record: ExitRecord = ask(&friend, &scene, Kind::Kill, &kill).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Killed, "{record:?}");
    let heard: ExitRecord = next(&mut waiting).await?.expect(Kind::Exit, "Exit")?;
    ensure!(heard == record, "{heard:?}");
    // Once more changes nothing.
    let again: ExitRecord = ask(&friend, &scene, Kind::Kill, &kill).await?.expect(Kind::Exit, "Exit")?;
    ensure!(again == record, "{again:?}");
    let words = "`malai kill` from friend";
    let is_audited = || async { Ok(std::fs::read_to_string(scene.web01.home.audit())?.contains(words)) };
    until("the end is in the audit with its cause", is_audited).await?;
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_allow_sessions_reads_and_ends_what_another_machine_detached() -> Result<()> {
    let scene = Scene::new().await?;
    scene.publish(&scene.text().replace("allow_from", "allow_sessions = [\"guest\"]\nallow_from")).await?;
    let (friend, guest) = (scene.friend.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?);
    let (over, runs) = (detached(&["echo", "hi"]), detached(&["sleep", "1000"]));
    launch(&friend, &scene, &over).await?;
    launch(&friend, &scene, &runs).await?;
    let owner = Some(scene.friend.id);
    let record: ExitRecord =
        ask(&guest, &scene, Kind::Wait, &Wait { owner, id: over.id }).await?.expect(Kind::Exit, "Exit")?;
    ensure!(list(&guest, &scene).await?.len() == 2);
    // It is over: what is kept of it is still theirs, and of this cluster.
    let attach = Attach { owner, id: over.id, binding: false, ..again(&followed(&[]), 1, 0) };
    let ran = follow(peer::attach(&guest, scene.key.id(), &attach).await?).await?;
    ensure!(ran.stdout == b"hi\n", "{ran:?}");
    ensure!(ran.end.is_ok_and(|end| end == record));
    let kill = Kill { owner, id: runs.id, signal: Some(9) };
    ensure!(ask(&guest, &scene, Kind::Kill, &kill).await?.kind == Kind::Killed);
    let record: ExitRecord =
        ask(&guest, &scene, Kind::Wait, &Wait { owner, id: runs.id }).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.exit_code() == 137, "{record:?}");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_access_ends_a_detached_session() -> Result<()> {
    let scene = Scene::new().await?;
    let friend = scene.friend.dial(&scene.web01).await?;
    let spec = detached(&["sleep", "1000"]);
    launch(&friend, &scene, &spec).await?;
    let mut waiting = question(&friend, &scene, Kind::Wait, &Wait { owner: None, id: spec.id }).await?;
    scene.publish(&scene.text().replace("\"friend\"", "\"laptop\"")).await?;
    let record: ExitRecord = next(&mut waiting).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Revoked, "{record:?}");
    scene.web01.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_command_takes_no_input_and_a_question_nothing_more() -> Result<()> {
    let scene = Scene::new().await?;
    let friend = scene.friend.dial(&scene.web01).await?;
    for spec in [ExecSpec { stdin: true, ..detached(&["cat"]) }, ExecSpec { kill_on_lost: true, ..detached(&["cat"]) }]
    {
        let ran = follow(exec(&friend, scene.key.id(), &spec).await?).await?;
        ensure!(ran.end.expect_err("refused").context("a reason")?.kind == FailureKind::Usage);
    }
    // Whoever goes on talking is not answered.
    let spec = detached(&["sleep", "1000"]);
    launch(&friend, &scene, &spec).await?;
    let mut wire = question(&friend, &scene, Kind::Wait, &Wait { owner: None, id: spec.id }).await?;
    peer::send(&mut wire, Kind::Kill, &Kill { owner: None, id: spec.id, signal: None }).await?;
    ensure!(!matches!(peer::got(&mut wire).await?, peer::Got::Frame(_)));
    ensure!(list(&friend, &scene).await?[0].state == State::Running);
    scene.web01.end().await
}
