//! Who may attend to a session of another machine.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use malai_daemon::admin::{join_begin, join_finish};
use malai_daemon::store::keys::ClusterKey;
use malai_daemon::store::lock::Changes;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::{ClusterId, MachineId, SessionId};
use malai_protocol::peer::{ALPN, Gone};
use malai_protocol::session::{Attach, Attached, ExitRecord, Superseded};

use crate::resume::{cat, echo};
use crate::support::peer::{self, attach};
use crate::support::scene::{Scene, invite};
use crate::support::{again, follow, followed, next, until};

/// The lines of an audit that speak of this session.
fn audited(scene: &Scene, id: SessionId) -> Result<Vec<String>> {
    let audit = std::fs::read_to_string(scene.web01.home.audit())?;
    Ok(audit.lines().filter(|line| line.contains(&id.to_string())).map(str::to_owned).collect())
}

/// What a machine is told that would attach to a session of another, or end it.
async fn attempts(conn: &Connection, scene: &Scene, id: SessionId, owner: MachineId) -> Result<Vec<Failure>> {
    let attach = Attach { id, owner: Some(owner), take_over: true, ..again(&followed(&[]), 2, 0) };
    let ran = follow(peer::attach(conn, scene.key.id(), &attach).await?).await?;
    ensure!(ran.stdout.is_empty() && ran.started.is_none(), "{ran:?}");
    let gone = Gone { owner: attach.owner, id, follower: attach.follower, number: 1 };
    let answer = peer::gone(conn, &gone).await?;
    Ok(vec![ran.end.expect_err("refused").context("a reason")?, answer.expect(Kind::Refused, "Refused")?])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_attach_learns_nothing_of_a_session_and_is_in_the_audit() -> Result<()> {
    let scene = Scene::new().await?;
    let owner = scene.friend.dial(&scene.web01).await?;
    let (spec, mut session) = cat(&scene, &owner).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    let theirs = attempts(&guest, &scene, spec.id, scene.friend.id).await?;
    let none = attempts(&guest, &scene, followed(&[]).id, scene.friend.id).await?;
    ensure!(theirs == none, "a session that there is is refused otherwise than one that there is not");
    ensure!(theirs.iter().all(|failure| failure.kind == FailureKind::Denied), "{theirs:?}");
    let lines = audited(&scene, spec.id)?;
    let refused: Vec<_> =
        lines.iter().filter(|line| line.contains("\"refused\"") && line.contains("\"guest\"")).collect();
    ensure!(refused.len() == 2, "{lines:?}");
    ensure!(refused.iter().all(|line| line.contains(&scene.friend.id.to_string())), "{lines:?}");
    // The session was not disturbed.
    peer::raw(&mut session, &Frame::empty(Kind::StdinEof).to_bytes()).await?;
    ensure!(follow(session).await?.end.is_ok());
    until("the end is in the audit", || async { Ok(audited(&scene, spec.id)?.len() == 4) }).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_allow_control_takes_over_another_machines_session_and_nobody_does_unasked() -> Result<()> {
    let scene = Scene::new().await?;
    scene.publish(&scene.text().replace("allow_from", "allow_control = [\"guest\"]\nallow_from")).await?;
    let (friend, guest) = (scene.friend.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?);
    let (spec, mut wire) = cat(&scene, &friend).await?;
    let mine = again(&followed(&[]), 1, 0);
    let theirs = Attach { owner: Some(scene.friend.id), id: spec.id, binding: false, ..mine };
    let ran = follow(attach(&guest, scene.key.id(), &theirs).await?).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Conflict, "{failure}");
    echo(&mut wire, "two\n").await?;
    let taking = Attach { take_over: true, ..theirs };
    let mut over = attach(&guest, scene.key.id(), &taking).await?;
    let _attached: Attached = next(&mut over).await?.expect(Kind::Attached, "Attached")?;
    let frame = loop {
        let frame = next(&mut wire).await?;
        if frame.kind != Kind::StdinAck {
            break frame;
        }
    };
    let superseded: Superseded = frame.expect(Kind::Superseded, "Superseded")?;
    ensure!(superseded.by == scene.guest.id, "{superseded:?}");
    over.send(Frame::empty(Kind::StdinEof)).await?;
    let record: ExitRecord = follow(over).await?.end.expect("a record");
    ensure!(record.stdout_bytes == 8, "{record:?}");
    scene.web01.stop().await?;
    Ok(())
}

/// Has the daemon join the cluster `d` too, whose config lets `guest` attend to all sessions; returns a connection of
/// `guest` to it there.
async fn other_cluster(mut scene: Scene) -> Result<(Scene, ClusterId, Connection)> {
    let (key, home) = (ClusterKey::generate()?, scene.web01.home.clone());
    let invite = invite(key.id(), "d");
    let me = join_begin(&Changes::begin(&home)?, &invite, None)?.machine_key.id();
    let text = format!(
        "[cluster]\nname = \"d\"\nid52 = \"{}\"\nmanager = \"guest\"\n[network]\nrelays = []\ndiscovery = []\n\
         [machine.guest]\nid52 = \"{}\"\n[machine.web01]\nid52 = \"{me}\"\nallow_sessions = [\"guest\"]\nallow_control = [\"guest\"]\n",
        key.id(),
        scene.guest.id
    );
    join_finish(&Changes::begin(&home)?, "d", &key.sign(1, 1, text)?)?;
    scene.web01 = scene.web01.restart().await?;
    let clusters = scene.web01.status().await?.clusters;
    let there = clusters.iter().find(|cluster| cluster.alias == "d").context("no cluster d")?;
    let address = peer::loopback(*me.as_bytes(), &there.addresses)?;
    let conn = scene.guest.endpoint.connect(address, ALPN).await?;
    Ok((scene, key.id(), conn))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_cluster_allows_with_sessions_is_of_no_use_in_another() -> Result<()> {
    let (scene, cluster, guest) = other_cluster(Scene::new().await?).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, mut wire) = cat(&scene, &conn).await?;
    let mine = again(&followed(&[]), 1, 0);
    let theirs = Attach { owner: Some(scene.friend.id), id: spec.id, take_over: true, ..mine };
    let ran = follow(attach(&guest, cluster, &theirs).await?).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Unknown && ran.stdout.is_empty(), "{failure}");
    let follower = spec.follower.context("a follower")?;
    let gone = Gone { owner: theirs.owner, id: spec.id, follower, number: 1 };
    ensure!(peer::gone(&guest, &gone).await?.kind == Kind::Pong);
    echo(&mut wire, "two\n").await?;
    scene.web01.stop().await?;
    Ok(())
}
