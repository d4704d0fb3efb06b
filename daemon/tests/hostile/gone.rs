//! Callers that are gone before their request was decided, or came at all.

use anyhow::{Result, ensure};
use malai_protocol::codec::Kind;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::local::{Request, Response};
use malai_protocol::peer::{Gone, Open};
use malai_protocol::session::ExecSpec;

use crate::support::peer::{self, exec};
use crate::support::scene::Scene;
use crate::support::{again, followed, next, until};

fn gone_of(spec: &ExecSpec) -> Gone {
    let attach = again(spec, 1, 0);
    Gone { owner: None, id: spec.id, follower: attach.follower, number: 1 }
}

/// Whether so many sessions run, or are being decided.
async fn sessions(scene: &Scene, count: u32) -> Result<bool> {
    let answer = scene.web01.ask(Request::DaemonStatus).await?;
    Ok(matches!(answer, Response::Daemon(status) if status.sessions == count))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_while_its_request_is_decided_leaves_nothing_running() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.guest.dial(&scene.web01).await?;
    let spec = followed(&["sleep", "600"]);
    // It is not allowed yet, and so waits for the snapshot that its caller holds.
    let mut wire = peer::open(&conn).await?;
    let generation = scene.held().await? + 1;
    peer::send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation }).await?;
    peer::send(&mut wire, Kind::Exec, &spec).await?;
    until("it is being decided", || sessions(&scene, 1)).await?;
    let told = tokio::spawn({
        let conn = conn.clone();
        async move { peer::gone(&conn, &gone_of(&spec)).await }
    });
    peer::ping(&conn).await?;
    let allowed = scene.text().replace("allow_from = [\"friend\"", "allow_from = [\"guest\", \"friend\"");
    ensure!(allowed != scene.text(), "{allowed}");
    scene.publish(&allowed).await?;
    ensure!(told.await??.kind == Kind::Pong);
    until("nothing runs", || sessions(&scene, 0)).await?;
    let audit = std::fs::read_to_string(scene.web01.home.audit())?;
    ensure!(audit.lines().last().is_some_and(|line| line.contains("caller-gone")), "{audit}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_after_its_caller_went_is_not_run() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = followed(&["sleep", "600"]);
    ensure!(peer::gone(&conn, &gone_of(&spec)).await?.kind == Kind::Pong);
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    let failure: Failure = next(&mut wire).await?.expect(Kind::Refused, "Refused")?;
    ensure!(failure.kind == FailureKind::Conflict, "{failure}");
    scene.serves().await?;
    scene.web01.stop().await?;
    Ok(())
}
