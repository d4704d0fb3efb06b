//! A disk that does not take what has to be stored: what a snapshot withdraws is withdrawn all the same.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use malai_daemon::store;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::session::{EndedBy, ExecSpec, Started};
use malai_protocol::snapshot::Snapshot;

use crate::support::peer::{self, exec};
use crate::support::scene::Scene;
use crate::support::{Machine, follow, home_in, next, spec, until};

/// A file that cannot be replaced for as long as this is there: a directory has its name.
struct Blocked {
    path: PathBuf,
    aside: PathBuf,
}

impl Blocked {
    fn new(path: PathBuf) -> Result<Self> {
        let mut aside = path.clone().into_os_string();
        aside.push(".aside");
        let aside = PathBuf::from(aside);
        std::fs::rename(&path, &aside)?;
        std::fs::create_dir(&path)?;
        Ok(Self { path, aside })
    }

    /// There is room again, and the old content is still there.
    fn free(self) -> Result<()> {
        std::fs::remove_dir(&self.path)?;
        std::fs::rename(&self.aside, &self.path)?;
        Ok(())
    }
}

fn withdrawn(scene: &Scene) -> String {
    scene.text().replace("[\"friend\"]", "[]")
}

/// An audit on a disk that is full.
struct FullAudit {
    path: PathBuf,
    aside: PathBuf,
}

impl FullAudit {
    fn new(machine: &Machine) -> Result<Self> {
        let path = machine.home.audit();
        let aside = path.with_extension("aside");
        std::fs::rename(&path, &aside)?;
        std::os::unix::fs::symlink("/dev/full", &path)?;
        Ok(Self { path, aside })
    }

    fn free(self) -> Result<()> {
        std::fs::remove_file(&self.path)?;
        std::fs::rename(&self.aside, &self.path)?;
        Ok(())
    }
}

async fn alarm(machine: &Machine) -> Result<String> {
    Ok(machine.cluster().await?.alarm.unwrap_or_default())
}

async fn alarmed(machine: &Machine) -> Result<String> {
    until("the alarm", || async { Ok(!alarm(machine).await?.is_empty()) }).await?;
    alarm(machine).await
}

async fn refused(scene: &Scene) -> Result<()> {
    let refused = scene.run(&["true"]).await?.end.expect_err("it ran").context("a reason")?;
    ensure!(refused.kind == FailureKind::Denied, "{refused}");
    Ok(())
}

/// Waits until this is stored where it belongs, the reserve is empty, and nobody is alarmed.
async fn stored(scene: &Scene, machine: &Machine, snapshot: &Snapshot) -> Result<()> {
    let (path, id) = (machine.home.cluster("c").snapshot(), scene.key.id());
    until("it is stored", || async {
        Ok(store::snapshot::load(&path, &id).is_ok_and(|found| found.as_ref() == Some(snapshot)))
    })
    .await?;
    until("the alarm is over", || async { Ok(alarm(machine).await?.is_empty()) }).await?;
    let reserve = machine.home.cluster("c").snapshot_reserve();
    until("the reserve is empty", || async { Ok(store::reserve::load(&reserve, &id).is_none()) }).await
}

/// Waits until the daemon has its reserve.
async fn reserve(machine: &Machine) -> Result<PathBuf> {
    let path = machine.home.cluster("c").snapshot_reserve();
    until("the reserve is there", || async { Ok(std::fs::metadata(&path).is_ok_and(|meta| meta.len() > 0)) }).await?;
    Ok(path)
}

fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_that_cannot_be_stored_ends_the_session_and_is_stored_when_it_can() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut session = exec(&conn, scene.key.id(), &spec(&["sleep", "600"])).await?;
    let _started: Started = next(&mut session).await?.expect(Kind::Started, "Started")?;
    reserve(&scene.web01).await?;
    let full = Blocked::new(scene.web01.home.cluster("c").snapshot())?;

    let snapshot = scene.publish(&withdrawn(&scene)).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.ended_by == EndedBy::Revoked, "{record:?}");
    refused(&scene).await?;
    let told = alarmed(&scene.web01).await?;
    let generation = format!("generation {} is in force but cannot be stored: ", snapshot.header().generation);
    has(
        &told,
        &[&generation, "clusters/c/snapshot", "snapshot.reserve", "so it stays in force after a restart", "`df -h "],
    )?;

    full.free()?;
    stored(&scene, &scene.web01, &snapshot).await?;
    refused(&scene).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_reserve_holds_after_a_restart_and_is_stored_then() -> Result<()> {
    let mut scene = Scene::new().await?;
    reserve(&scene.web01).await?;
    let full = Blocked::new(scene.web01.home.cluster("c").snapshot())?;
    // The later of two is what counts.
    scene.publish(&scene.text()).await?;
    let snapshot = scene.publish(&withdrawn(&scene)).await?;
    let number = snapshot.header().generation.to_string();
    until("the alarm is about it", || async { Ok(alarm(&scene.web01).await?.contains(&number)) }).await?;

    let dir = scene.web01.stop().await?;
    full.free()?;
    // Nobody tells it anything, and it holds what it held.
    scene.web01 = Machine::start_in(dir).await?;
    ensure!(scene.held().await? == snapshot.header().generation);
    refused(&scene).await?;
    stored(&scene, &scene.web01, &snapshot).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reserve_the_alarm_says_what_a_restart_would_bring() -> Result<()> {
    let scene = Scene::new().await?;
    let path = reserve(&scene.web01).await?;
    let reserve = Blocked::new(path)?;
    let full = Blocked::new(scene.web01.home.cluster("c").snapshot())?;
    let snapshot = scene.publish(&withdrawn(&scene)).await?;
    refused(&scene).await?;
    let told = alarmed(&scene.web01).await?;
    has(
        &told,
        &[", and not in the reserve either: ", "After a restart generation 1 would be in force again", "`df -h "],
    )?;

    full.free()?;
    let path = scene.web01.home.cluster("c").snapshot();
    until("it is stored", || async {
        let found = store::snapshot::load(&path, &scene.key.id());
        Ok(found.is_ok_and(|found| found.as_ref() == Some(&snapshot)))
    })
    .await?;
    // That there is no reserve is an alarm of its own.
    until("the other alarm", || async { Ok(alarm(&scene.web01).await?.starts_with("there is no reserve")) }).await?;
    reserve.free()?;
    stored(&scene, &scene.web01, &snapshot).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stopped_at_once_has_stored_what_it_held() -> Result<()> {
    let mut scene = Scene::new().await?;
    let snapshot = scene.publish(&withdrawn(&scene)).await?;
    let dir = scene.web01.stop().await?;
    let path: &Path = &home_in(&dir).cluster("c").snapshot();
    ensure!(store::snapshot::load(path, &scene.key.id())? == Some(snapshot));
    scene.web01 = Machine::start_in(dir).await?;
    refused(&scene).await?;
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_followed_by_the_newer_one_in_the_reserve_and_is_kept_as_a_trace() -> Result<()> {
    let mut scene = Scene::new().await?;
    reserve(&scene.web01).await?;
    let full = Blocked::new(scene.web01.home.cluster("c").snapshot())?;
    let snapshot = scene.publish(&withdrawn(&scene)).await?;
    alarmed(&scene.web01).await?;
    let dir = scene.web01.stop().await?;
    full.free()?;
    let path = home_in(&dir).cluster("c").snapshot();
    let mut damaged = std::fs::read(&path)?;
    let last = damaged.last_mut().context("bytes")?;
    *last = !*last;
    std::fs::write(&path, &damaged)?;

    scene.web01 = Machine::start_in(dir).await?;
    refused(&scene).await?;
    stored(&scene, &scene.web01, &snapshot).await?;
    ensure!(std::fs::read(path.with_extension("broken"))? == damaged, "the trace of what happened is gone");
    scene.web01.stop().await?;
    Ok(())
}

/// Every line of the audit.
fn lines(machine: &Machine) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(machine.home.audit())?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// How many lines of this kind are in the audit.
fn count(machine: &Machine, event: Event) -> Result<usize> {
    Ok(lines(machine)?.iter().filter(|line| line.event == event).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_for_which_the_audit_had_no_room_are_written_once_when_there_is() -> Result<()> {
    let scene = Scene::new().await?;
    let full = FullAudit::new(&scene.web01)?;
    let guest = scene.guest.dial(&scene.web01).await?;
    let refused = peer::run(&guest, scene.key.id(), &["true"]).await?.end.expect_err("a guest").context("a reason")?;
    ensure!(refused.kind == FailureKind::Denied, "{refused}");
    let unwritten = scene.run(&["true"]).await?.end.expect_err("it ran, and nobody knows").context("a reason")?;
    ensure!(unwritten.kind == FailureKind::Internal, "{unwritten}");
    full.free()?;
    until("the refusals are written", || async { Ok(count(&scene.web01, Event::Refused)? == 2) }).await?;
    scene.serves().await?;
    until("the next end is written", || async { Ok(count(&scene.web01, Event::End)? == 1) }).await?;
    ensure!(count(&scene.web01, Event::Refused)? == 2, "{:?}", lines(&scene.web01)?);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_for_which_the_audit_had_no_room_is_written_once_when_there_is() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = ExecSpec { stdin: true, ..spec(&["cat"]) };
    let mut session = exec(&conn, scene.key.id(), &spec).await?;
    let _started: Started = next(&mut session).await?.expect(Kind::Started, "Started")?;
    let full = FullAudit::new(&scene.web01)?;
    session.send(Frame::empty(Kind::StdinEof)).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.ended_by == EndedBy::Itself, "{record:?}");
    // Its end has been refused when one that came after it is.
    let unwritten = scene.run(&["true"]).await?.end.expect_err("it ran, and nobody knows").context("a reason")?;
    ensure!(unwritten.kind == FailureKind::Internal, "{unwritten}");
    full.free()?;
    until("the end is written", || async { Ok(count(&scene.web01, Event::End)? == 1) }).await?;
    scene.serves().await?;
    until("the next end is written", || async { Ok(count(&scene.web01, Event::End)? == 2) }).await?;
    let ended: Vec<_> = lines(&scene.web01)?.into_iter().filter(|line| line.event == Event::End).collect();
    ensure!(ended.iter().filter(|line| line.session == spec.id.to_string()).count() == 1, "{ended:?}");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_what_is_not_stored_and_what_mends_it() -> Result<()> {
    use malai_protocol::local::{Level, Request, Response};
    let scene = Scene::new().await?;
    reserve(&scene.web01).await?;
    let full = Blocked::new(scene.web01.home.cluster("c").snapshot())?;
    scene.publish(&withdrawn(&scene)).await?;
    alarmed(&scene.web01).await?;
    let Response::Doctor(checkup) = scene.web01.ask(Request::Doctor).await? else { anyhow::bail!("no checkup") };
    let found = checkup.findings.iter().find(|found| found.what.contains("cannot be stored")).context("not told")?;
    ensure!(found.level == Level::Broken, "{found:?}");
    ensure!(found.mend.as_ref().is_some_and(|mend| mend.starts_with("df -h ")), "{found:?}");
    full.free()?;
    peer::ping(&scene.friend.dial(&scene.web01).await?).await?;
    scene.web01.stop().await?;
    Ok(())
}
