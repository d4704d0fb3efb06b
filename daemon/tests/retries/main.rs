//! Loops that try again: how often they do while nothing changes, and how much of it is in the log.
//!
//! A test counts what arrives in a span of time, and fails when that is too much: on a busy machine it is less.

#[path = "../support/logs.rs"]
mod logs;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::local::{Level, Request, Response, SessionTarget};
use malai_protocol::peer::Close;
use tokio::time::{Instant, timeout_at};

use support::peer::{Peer, closed};
use support::scene::{Scene, offer};
use support::{Machine, next, spec, until};

/// For this time connections are counted.
const WINDOW: Duration = Duration::from_secs(12);
/// Bounds the connections that a link makes in that time: one every two seconds.
const MAX_LINK_ATTEMPTS: usize = 6;
/// Bounds those of two commands: one a second.
const MAX_COMMAND_ATTEMPTS: usize = 12;

fn refuse(conn: &Connection) {
    conn.close((Close::NotAMember as u32).into(), b"not a member of the cluster");
}

/// Refuses everybody that comes to this peer within the span, as a machine does that has no such member. Returns how
/// many came.
async fn refusing(peer: &Peer, span: Duration) -> Result<usize> {
    let (until, mut came) = (Instant::now() + span, 0);
    while let Ok(incoming) = timeout_at(until, peer.endpoint.accept()).await {
        if let Ok(conn) = incoming.context("an endpoint")?.accept()?.await {
            came += 1;
            refuse(&conn);
        }
    }
    Ok(came)
}

/// A scene in which the daemon knows where its manager and its friend are.
async fn scene() -> Result<(Scene, String)> {
    logs::record();
    let scene = Scene::new().await?;
    let mut text = scene.text();
    for (name, peer) in [("laptop", &scene.laptop), ("friend", &scene.friend)] {
        let address = peer.endpoint.bound_sockets().first().context("a socket")?.to_string();
        let header = format!("[machine.{name}]\n");
        text = text.replace(&header, &format!("{header}addresses = [\"{address}\"]\n"));
    }
    scene.publish(&text).await?;
    Ok((scene, text))
}

async fn alarm(machine: &Machine) -> Result<String> {
    Ok(machine.cluster().await?.alarm.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_machine_asks_its_manager_ever_more_rarely_says_so_once_and_learns_when_it_is_added_again()
-> Result<()> {
    let (scene, text) = scene().await?;
    let manager = scene.laptop.id.short();
    // It dials when it has noted the end of every link that the manager made itself.
    refuse(&scene.laptop.dialled().await?);
    let before = logs::lines(&[&manager, "link"]).len();
    let came = refusing(&scene.laptop, WINDOW).await?;
    // It used to be twice a second. Two or three are usual; on a busy machine a refusal that comes after a second is taken
    // for silence, and the manager is dialled once more.
    ensure!((1..=MAX_LINK_ATTEMPTS).contains(&came), "{came} in {WINDOW:?}");
    let told = alarm(&scene.web01).await?;
    for words in [
        "the config of the cluster manager laptop does not have it",
        "`malai machine leave c`",
        "`malai cluster invite c`",
    ] {
        ensure!(told.contains(words), "{told}");
    }
    // The alarm says it all, and its text is logged when it is new.
    let said = logs::lines(&[&manager, "link"]);
    ensure!(said.len() == before, "{:?}", &said[before..]);
    // Another machine announces a newer config that lists it: the manager is asked at once, and greeted.
    let conn = scene.friend.dial(&scene.web01).await?;
    let _control = offer(&conn, &scene.sign(&format!("{text}\n"))?).await?;
    until("the alarm is over", || async { Ok(alarm(&scene.web01).await?.is_empty()) }).await?;
    scene.laptop.dialled().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_a_machine_that_its_target_refuses_is_refused_at_once_even_where_it_would_wait() -> Result<()> {
    let (scene, _) = scene().await?;
    let counted = async { refusing(&scene.friend, WINDOW).await };
    let asked = async {
        let mut told = Vec::new();
        for wait in [false, true] {
            let mut socket = scene.web01.connect().await?;
            let target = SessionTarget { wait, ..SessionTarget::new("friend", Some("c"), 600_000) };
            socket.feed(Frame::control(Kind::Request, &Request::Session(target))?).await?;
            socket.send(Frame::control(Kind::Exec, &spec(&["true"]))?).await?;
            let refused: Failure = next(&mut socket).await?.expect(Kind::Refused, "Refused")?;
            ensure!(refused.kind == FailureKind::NotAMember && refused.hint.is_some(), "wait {wait}: {refused:?}");
            told.push(refused);
        }
        anyhow::Ok(told)
    };
    let (came, told) = tokio::try_join!(counted, asked)?;
    // A command that waited used to dial it without a pause. Two are usual; on a busy machine a refusal that comes after a
    // second is taken for silence, and the target is dialled once more.
    ensure!((2..=MAX_COMMAND_ATTEMPTS).contains(&came), "{came} in {WINDOW:?}: {told:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_errors_of_a_removed_machine_and_its_doctor_say_that_it_was_removed_and_what_to_type() -> Result<()> {
    let (scene, _) = scene().await?;
    let removed = async {
        until("it hears that it was removed", || async { Ok(!alarm(&scene.web01).await?.is_empty()) }).await?;
        for (machine, kind) in [("friend", FailureKind::NotAMember), ("guest", FailureKind::Unreachable)] {
            let mut socket = scene.web01.connect().await?;
            let target = SessionTarget::new(machine, Some("c"), 1_000);
            socket.feed(Frame::control(Kind::Request, &Request::Session(target))?).await?;
            socket.send(Frame::control(Kind::Exec, &spec(&["true"]))?).await?;
            let refused: Failure = next(&mut socket).await?.expect(Kind::Refused, "Refused")?;
            ensure!(
                refused.kind == kind && refused.message.contains("this machine was removed from c"),
                "{machine}: {refused:?}"
            );
            let hint = refused.hint.context("a hint")?;
            ensure!(
                hint.contains("`malai machine leave c`") && hint.contains("on laptop: `malai cluster invite c`"),
                "{hint}"
            );
        }
        let Response::Doctor(checkup) = scene.web01.ask(Request::Doctor).await? else { anyhow::bail!("no checkup") };
        let told = checkup.findings.iter().find(|finding| finding.what.contains("this machine was removed from c"));
        let told = told.with_context(|| format!("{checkup:#?}"))?;
        ensure!(
            told.level == Level::Broken
                && told.mend.as_ref().is_some_and(|mend| mend.contains("malai machine leave c"))
        );
        let misleading = checkup.findings.iter().find(|finding| finding.what.contains("does not answer, "));
        ensure!(misleading.is_none(), "{misleading:?}");
        anyhow::Ok(())
    };
    tokio::select! {
        done = removed => done?,
        refused = refusing(&scene.laptop, Duration::from_secs(600)) => anyhow::bail!("{refused:?}"),
        refused = refusing(&scene.friend, Duration::from_secs(600)) => anyhow::bail!("{refused:?}"),
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_is_refused_again_and_again_has_one_line_in_the_log() -> Result<()> {
    logs::record();
    let scene = Scene::new().await?;
    let stranger = Peer::new().await?;
    for _ in 0..10 {
        let conn = stranger.dial(&scene.web01).await?;
        ensure!(closed(&conn).await?.0 == Some(Close::NotAMember));
    }
    let said = logs::lines(&[&stranger.id.short()]);
    ensure!(said.len() == 1 && said[0].contains("connection refused"), "{said:?}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_a_removed_machine_which_has_no_link_says_so_too() -> Result<()> {
    let (scene, _) = scene().await?;
    let Scene { web01, laptop, friend, .. } = scene;
    let agent = Machine::start_agent_in(web01.stop().await?).await?;
    let asked = async {
        let ran = agent.run("friend", &["true"]).await?;
        let refused = ran.end.expect_err("it ran").context("no reason")?;
        ensure!(refused.kind == FailureKind::NotAMember, "{refused:?}");
        ensure!(refused.message.contains("this machine was removed from c") && refused.hint.is_some(), "{refused:?}");
        let told = alarm(&agent).await?;
        ensure!(told.contains("this machine was removed from c"), "{told}");
        anyhow::Ok(())
    };
    tokio::select! {
        done = asked => done?,
        refused = refusing(&laptop, Duration::from_secs(600)) => anyhow::bail!("{refused:?}"),
        refused = refusing(&friend, Duration::from_secs(600)) => anyhow::bail!("{refused:?}"),
    }
    agent.stop().await?;
    Ok(())
}
