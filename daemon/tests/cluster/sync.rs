//! Config sync: what a snapshot changes, how it spreads, and what is not taken.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use malai_daemon::store;
use malai_daemon::store::keys::ClusterKey;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::local::{ClusterState, Request, Rescan, RescanOutcome, Response};
use malai_protocol::peer::Announce;
use malai_protocol::session::{EndedBy, Started};
use malai_protocol::snapshot::Snapshot;

use crate::support::peer::{self, Peer, send};
use crate::support::scene::{Scene, offer};
use crate::support::{Machine, follow, next, spec, until};

/// A cluster manager and these machines.
async fn cluster<const N: usize>(names: [&str; N]) -> Result<(Machine, [Machine; N])> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let mut machines = Vec::new();
    for name in names {
        let machine = Machine::start().await?;
        machine.join(laptop.invite(name).await?).await?;
        machines.push(machine);
    }
    Ok((laptop, machines.try_into().ok().context("as many as there are names")?))
}

/// Edits `cluster.toml` and rescans; returns the generation.
async fn edit(laptop: &Machine, change: impl FnOnce(String) -> String) -> Result<u64> {
    let text = change(std::fs::read_to_string(laptop.config())?);
    std::fs::write(laptop.config(), text)?;
    match rescan(laptop, None).await? {
        RescanOutcome::Published(publication) => Ok(publication.generation),
        other => anyhow::bail!("{other:?}"),
    }
}

fn ask(over: Option<u64>) -> Rescan {
    Rescan { cluster: Some("c".into()), check: false, yes: false, over }
}

async fn rescan(laptop: &Machine, over: Option<u64>) -> Result<RescanOutcome> {
    match laptop.ask(Request::Rescan(ask(over))).await? {
        Response::Rescanned(mut all) => Ok(all.pop().context("a cluster")?.outcome),
        other => anyhow::bail!("{other:?}"),
    }
}

async fn holds(machine: &Machine, generation: u64) -> Result<()> {
    until("the machine holds the snapshot", || async { Ok(machine.cluster().await?.generation == Some(generation)) })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_access_ends_the_running_session_and_says_why() -> Result<()> {
    let (laptop, [web01]) = cluster(["web01"]).await?;
    let mut session = laptop.begin("web01", &spec(&["sleep", "600"])).await?;
    let started: Started = next(&mut session).await?.expect(Kind::Started, "Started")?;
    edit(&laptop, |text| text.replace("[machine.web01]", "[machine.web01]\nallow_from = []")).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.ended_by == EndedBy::Revoked, "{record:?}");
    let reason = record.reason.context("a reason")?;
    ensure!(reason.contains("`laptop`") && reason.contains("allow_from"), "{reason}");
    let pid = nix::unistd::Pid::from_raw(started.pid.try_into()?);
    until("the command is gone", || async { Ok(nix::sys::signal::kill(pid, None).is_err()) }).await?;
    let refused = laptop.run("web01", &["true"]).await?.end.expect_err("refused").context("a reason")?;
    ensure!(refused.kind == FailureKind::Denied, "{refused}");
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_spreads_by_a_member_while_the_manager_is_away() -> Result<()> {
    let (laptop, [web01, db01]) = cluster(["web01", "db01"]).await?;
    // db01 has to know where web01 is, and has nobody to ask.
    let address = web01.cluster().await?.addresses.first().cloned().context("an address")?;
    edit(&laptop, |text| text.replace("[machine.web01]", &format!("[machine.web01]\naddresses = [\"{address}\"]")))
        .await?;
    let away = web01.stop().await?;
    let text = std::fs::read_to_string(laptop.config())?;
    std::fs::write(laptop.config(), text.replace("[machine.web01]", "[machine.web01]\nallow_from = [\"db01\"]"))?;
    let before = db01.cluster().await?.generation;
    // The answer would wait for web01.
    let mut socket = laptop.connect().await?;
    socket.send(Frame::control(Kind::Request, &Request::Rescan(ask(None)))?).await?;
    until("db01 holds the snapshot", || async { Ok(db01.cluster().await?.generation > before) }).await?;
    let generation = db01.cluster().await?.generation.context("a generation")?;
    drop(socket);
    laptop.stop().await?;
    // What it held when it stopped does not allow db01: it learns from db01 itself that it may.
    let web01 = Machine::start_in(away).await?;
    ensure!(web01.cluster().await?.generation != Some(generation));
    let ran = db01.run("web01", &["echo", "hello"]).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    holds(&web01, generation).await?;
    db01.stop().await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_is_not_taken_and_another_of_the_same_generation_is_an_alarm() -> Result<()> {
    let scene = Scene::new().await?;
    let held = scene.publish(&(scene.text() + "# held\n")).await?;
    let generation = held.header().generation;
    let conn = scene.guest.dial(&scene.web01).await?;
    let (mut control, _) = peer::greet(&conn, None).await?;
    let announce = |snapshot: &Snapshot| Announce::of(snapshot.signed_header().clone());
    send(&mut control, Kind::Announce, &announce(&scene.sign_as(generation - 1, &scene.text())?)).await?;
    send(&mut control, Kind::Announce, &announce(&scene.sign_as(generation, &scene.text())?)).await?;
    until("the alarm", || async { Ok(scene.web01.cluster().await?.alarm.is_some()) }).await?;
    conn.close(0u32.into(), b"");
    let alarm = scene.web01.cluster().await?.alarm.context("an alarm")?;
    // By the number of the fork: the older one was nothing special.
    ensure!(alarm.contains(&generation.to_string()) && alarm.contains("malai rescan"), "{alarm}");
    let path = scene.web01.home.cluster("c").snapshot();
    until("it is stored", || async { Ok(store::snapshot::load(&path, &scene.key.id())?.as_ref() == Some(&held)) })
        .await?;
    ensure!(scene.held().await? == generation);
    // A new generation replaces both, and the alarm is over.
    scene.publish(&scene.text()).await?;
    ensure!(scene.web01.cluster().await?.alarm.is_none());
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_shown_a_foreign_snapshot_publishes_nothing_until_it_is_told_over_what() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let (peer, snapshot) = Peer::join(&laptop, "web01", &[]).await?;
    let key = ClusterKey::load(&laptop.home.cluster("c").cluster_key())?.context("a key")?;
    let foreign = key.sign(snapshot.header().generation + 1000, 1, format!("{}# elsewhere\n", snapshot.text()))?;
    let conn = peer.dial(&laptop).await?;
    let _control = offer(&conn, &foreign).await?;
    let generation = foreign.header().generation;
    until("the alarm", || async { Ok(laptop.cluster().await?.alarm.is_some()) }).await?;
    conn.close(0u32.into(), b"");
    let over = format!("--over {generation}");
    ensure!(laptop.cluster().await?.alarm.is_some_and(|alarm| alarm.contains(&over)));
    ensure!(laptop.cluster().await?.generation == Some(snapshot.header().generation), "it took what it did not make");
    let RescanOutcome::Failed(refused) = rescan(&laptop, None).await? else { anyhow::bail!("it published") };
    ensure!(refused.kind == FailureKind::Conflict && refused.message.contains("# elsewhere"), "{refused}");
    ensure!(refused.hint.is_some_and(|hint| hint.contains(&over)));
    ensure!(laptop.invite("db01").await.is_err(), "it goes on enrolling");
    // It is remembered over a restart, and settled by name.
    let laptop = laptop.restart().await?;
    ensure!(laptop.cluster().await?.alarm.is_some(), "forgotten");
    let RescanOutcome::Published(done) = rescan(&laptop, Some(generation)).await? else {
        anyhow::bail!("not published")
    };
    ensure!(done.generation > generation && laptop.cluster().await?.alarm.is_none(), "{done:?}");
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_restarts_works_from_its_stored_snapshot_alone() -> Result<()> {
    let Scene { web01, friend, key, .. } = Scene::new().await?;
    let web01 = web01.restart().await?;
    let conn = friend.dial(&web01).await?;
    let ran = peer::run(&conn, key.id(), &["echo", "hello"]).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_snapshot_breaks_its_own_cluster_and_no_other() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    laptop.init_as("other", "laptop").await?;
    let dir = laptop.stop().await?;
    let path = crate::support::home_in(&dir).cluster("other").snapshot();
    let stored = std::fs::read(&path)?;
    let at = stored.windows(10).position(|bytes| bytes == b"allow_from").context("allow_from")?;
    let mut tampered = stored.clone();
    tampered[at] = b'A';
    std::fs::write(&path, &tampered)?;
    let laptop = Machine::start_in(dir).await?;
    let status = laptop.status().await?;
    let broken = status.clusters.iter().find(|cluster| cluster.alias == "other").context("not listed")?;
    let ClusterState::Broken(failure) = &broken.state else { anyhow::bail!("{:?}", broken.state) };
    ensure!(failure.kind == FailureKind::BadConfig && failure.hint.is_some(), "{failure}");
    ensure!(std::fs::read(&path)? == tampered, "the trace of what happened is gone");
    let ran = laptop.run("laptop", &["echo", "hello"]).await?;
    ensure!(ran.stdout == b"hello\n", "{ran:?}");
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescan_is_held_by_all_machines() -> Result<()> {
    let names = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"];
    let (laptop, machines) = cluster(names).await?;
    let generation = edit(&laptop, |text| text + "# changed\n").await?;
    for machine in &machines {
        holds(machine, generation).await?;
    }
    // The manager knows it too.
    let RescanOutcome::Unchanged(known) = rescan(&laptop, None).await? else { anyhow::bail!("changed again") };
    ensure!(known.missing.is_empty() && known.holding.len() == names.len() + 1, "{known:?}");
    for machine in machines {
        machine.stop().await?;
    }
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_configs_published_at_once_the_newer_one_is_held_however_long_the_older_one_takes() -> Result<()> {
    let (laptop, []) = cluster([]).await?;
    let text = std::fs::read_to_string(laptop.config())?;
    // Its text is so large that it is stored long before it is read.
    let groups: String = (0..80_000).map(|number| format!("[group.filler{number}]\nmembers = []\n")).collect();
    std::fs::write(laptop.config(), format!("{text}{groups}"))?;
    let (path, key) = (laptop.home.cluster("c").snapshot(), laptop.cluster().await?.cluster.context("a cluster")?);
    let mut large = laptop.connect().await?;
    large.send(Frame::control(Kind::Request, &Request::Rescan(ask(None)))?).await?;
    let is_stored = || async { Ok(std::fs::metadata(&path)?.len() > 2_000_000) };
    until("the large config is stored", is_stored).await?;
    std::fs::write(laptop.config(), format!("{text}# small\n"))?;
    let yes = Request::Rescan(Rescan { yes: true, ..ask(None) });
    let Response::Rescanned(small) = laptop.ask(yes).await? else { anyhow::bail!("no answer") };
    let RescanOutcome::Published(small) = &small[0].outcome else { anyhow::bail!("{small:?}") };
    let answered: Response = next(&mut large).await?.expect(Kind::Response, "Response")?;
    let Response::Rescanned(_) = answered else { anyhow::bail!("{answered:?}") };
    let stored = store::snapshot::load(&path, &key)?.context("a config")?;
    ensure!(stored.header().generation == small.generation, "another one is stored");
    ensure!(laptop.cluster().await?.generation == Some(small.generation), "the older config is held");
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_removed_learns_it_from_the_manager_and_gets_no_later_config() -> Result<()> {
    let (laptop, [web01]) = cluster(["web01"]).await?;
    let before = web01.cluster().await?.generation;
    let remove = Request::ClusterRemove { cluster: "c".into(), machine: "web01".into(), revoke_invite: false };
    let Response::Changed(_) = laptop.ask(remove).await? else { anyhow::bail!("not removed") };
    until("the alarm", || async { Ok(web01.cluster().await?.alarm.is_some()) }).await?;
    let cluster = web01.cluster().await?;
    let alarm = cluster.alarm.context("an alarm")?;
    ensure!(alarm.contains("laptop") && alarm.contains("malai machine leave c"), "{alarm}");
    ensure!(cluster.generation == before, "it was given a config that it is not in");
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}
