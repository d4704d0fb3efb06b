//! Every start line of the audit has its end line, and one only: whatever ends a session, its cluster, its executor, or
//! its daemon.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use futures_util::future::try_join_all;
use iroh::endpoint::Connection;
use malai_protocol::audit::{Entry, Event, KEPT};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::home::Home;
use malai_protocol::local::{Request, Response};
use malai_protocol::peer::{DETACH, Gone, Open};
use malai_protocol::session::{EndedBy, ExecSpec, ExitRecord, Resend, Started};
use malai_protocol::sessions::Kill as KillSession;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use crate::support::peer::{self, Wire, exec};
use crate::support::scene::Scene;
use crate::support::{self, Machine, follow, followed, next, spec, until};
use crate::{audited, cat, end_of, executor_of, failing, lives, program, scene};

/// How often each session of the audit, with all its parts, started and ended.
fn tally(home: &Home) -> Result<BTreeMap<String, (u32, u32)>> {
    let mut all = BTreeMap::new();
    for path in (1..=KEPT).rev().map(|part| home.audit_part(part)).chain([home.audit()]) {
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let entry: Entry = serde_json::from_str(line)?;
            // What was refused has neither.
            let (start, end) = (u32::from(entry.event == Event::Start), u32::from(entry.event == Event::End));
            if start + end > 0 {
                let (starts, ends) = all.entry(entry.session).or_default();
                (*starts, *ends) = (*starts + start, *ends + end);
            }
        }
    }
    Ok(all)
}

/// Checks that each session that started has one end, and returns how many there are.
fn each_has_one_end(home: &Home) -> Result<usize> {
    let all = tally(home)?;
    let wrong: Vec<_> = all.iter().filter(|(_, (starts, ends))| (*starts, *ends) != (1, 1)).collect();
    ensure!(wrong.is_empty(), "{} of {} have not one start and one end: {wrong:?}", wrong.len(), all.len());
    Ok(all.len())
}

fn detached(words: &[&str]) -> ExecSpec {
    ExecSpec { detach: true, stdin: false, needs: vec![DETACH.into()], ..followed(words) }
}

/// Begins a command; returns its stream, and its process.
async fn begin(scene: &Scene, conn: &Connection, spec: &ExecSpec) -> Result<(Wire, u32)> {
    let mut wire = exec(conn, scene.key.id(), spec).await?;
    let started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    Ok((wire, started.pid))
}

async fn begin_all(scene: &Scene, conn: &Connection, specs: &[ExecSpec]) -> Result<Vec<(Wire, u32)>> {
    try_join_all(specs.iter().map(|spec| begin(scene, conn, spec))).await
}

fn leave() -> Request {
    Request::MachineLeave { cluster: "c".into(), force: false }
}

async fn is_idle(scene: &Scene) -> Result<bool> {
    Ok(scene.web01.status().await?.daemon.sessions == 0)
}

fn is_of_leaving(end: &Entry) -> bool {
    end.code == Some(253) && end.outcome.as_deref() == Some("revoked: the target left the cluster")
}

pub(crate) async fn leaving_a_cluster_ends_its_sessions_first_and_each_end_is_in_the_audit() -> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let specs = [followed(&["sleep", "1000"]), detached(&["sleep", "1000"])];
    let sessions = begin_all(&scene, &conn, &specs).await?;
    let answer = scene.web01.ask(leave()).await?;
    ensure!(matches!(answer, Response::Done), "{answer:?}");
    for (spec, (_, pid)) in specs.iter().zip(&sessions) {
        let entries = audited(&scene.web01.home, spec)?;
        ensure!(entries.len() == 2, "the cluster is left, and its audit is not whole: {entries:?}");
        ensure!(entries[1].cluster == "c" && entries[1].who.as_deref() == Some("friend"), "{entries:?}");
        ensure!(is_of_leaving(&entries[1]) && !lives(*pid), "{entries:?}");
    }
    scene.web01.end().await
}

pub(crate) async fn a_cluster_that_is_left_without_a_daemon_leaves_no_session_and_no_start_without_its_end()
-> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let specs = [followed(&["sleep", "1000"]), detached(&["sleep", "1000"])];
    let sessions = begin_all(&scene, &conn, &specs).await?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    ensure!(sessions.iter().all(|(_, pid)| lives(*pid)));
    let answer = malai_daemon::offline(&home, leave()).await;
    ensure!(matches!(answer, Response::Done), "{answer:?}");
    for (spec, (_, pid)) in specs.iter().zip(&sessions) {
        let entries = audited(&home, spec)?;
        ensure!(entries.len() == 2 && is_of_leaving(&entries[1]) && !lives(*pid), "{entries:?}");
    }
    let web01 = Machine::start_with(dir, Some(program)).await?;
    ensure!(each_has_one_end(&home)? == 2);
    web01.end().await
}

/// What makes a cluster that was served broken, or wait for its config.
fn spoil(home: &Home, waits: bool) -> Result<()> {
    let snapshot = home.cluster("c").snapshot();
    if waits {
        return Ok(std::fs::remove_file(snapshot)?);
    }
    Ok(std::fs::write(snapshot, b"this is no snapshot")?)
}

pub(crate) async fn sessions_of_a_cluster_that_is_broken_or_waits_have_their_ends_in_the_audit() -> Result<()> {
    for waits in [false, true] {
        let scene = scene().await?;
        let conn = scene.friend.dial(&scene.web01).await?;
        let go = [0, 1].map(|number| scene.web01.home.root().join(format!("go{number}")));
        let specs = go
            .clone()
            .map(|go| followed(&["sh", "-c", &format!("until [ -e {} ]; do sleep 0.02; done; exit 3", go.display())]));
        let sessions = begin_all(&scene, &conn, &specs).await?;
        let dir = scene.web01.stop().await?;
        let home = support::home_in(&dir);
        // One ends while no daemon runs, and the other under one that does not serve its cluster.
        std::fs::write(&go[0], "")?;
        until("it ends by itself", || async { Ok(!lives(sessions[0].1)) }).await?;
        spoil(&home, waits)?;
        let web01 = Machine::start_with(dir, Some(program)).await?;
        let entries = audited(&home, &specs[0])?;
        ensure!(entries.len() == 2 && entries[1].code == Some(3), "waits: {waits}: {entries:?}");
        ensure!(entries[1].cluster == "c" && entries[1].who.as_deref() == Some("friend"), "{entries:?}");
        std::fs::write(&go[1], "")?;
        let end = end_of(&home, &specs[1]).await.with_context(|| format!("waits: {waits}"))?;
        // No config allows it where there will be none; a broken one may be mended.
        let expected = if waits { "revoked: the target left the cluster" } else { "self" };
        ensure!(end.outcome.as_deref() == Some(expected) && end.cluster == "c", "waits: {waits}: {end:?}");
        web01.end().await?;
    }
    Ok(())
}

pub(crate) async fn a_start_whose_session_nobody_has_gets_its_end_from_the_daemon_that_comes() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    ensure!(follow(exec(&conn, scene.key.id(), &spec(&["true"])).await?).await?.end.is_ok());
    let (live, _wire, pid) = cat(&scene, &conn).await?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    // As a daemon leaves it that is killed before it sent the plan.
    let start = audited(&home, &live)?.remove(0);
    let [old, new] = [spec(&[]), spec(&[])];
    for (path, spec) in [(home.audit_part(2), &old), (home.audit(), &new)] {
        let line = serde_json::to_string(&Entry { session: spec.id.to_string(), ..start.clone() })? + "\n";
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, before + &line)?;
    }
    scene.web01 = Machine::start_with(dir, Some(program)).await?;
    for (spec, lines) in [(&old, 1), (&new, 2)] {
        let end = audited(&home, spec)?.pop().context("a line")?;
        ensure!(audited(&home, spec)?.len() == lines && end.event == Event::End && end.code == Some(253), "{end:?}");
        ensure!(end.outcome.as_ref().is_some_and(|why| why.starts_with("unknown: ")), "{end:?}");
        ensure!((&end.words, &end.who, &end.cluster) == (&start.words, &start.who, &start.cluster), "{end:?}");
    }
    ensure!(lives(pid) && audited(&home, &live)?.len() == 1, "a session that lives was taken for lost");
    scene.web01 = scene.web01.restart().await?;
    ensure!(audited(&home, &new)?.len() == 2, "each daemon that starts writes it once more");
    scene.web01.end().await
}

pub(crate) async fn an_end_that_was_written_and_not_confirmed_is_not_written_twice() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let go = scene.web01.home.root().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let spec = followed(&["sh", "-c", &script]);
    let (_wire, pid) = begin(&scene, &conn, &spec).await?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    std::fs::write(&go, "")?;
    until("it ends by itself", || async { Ok(!lives(pid)) }).await?;
    // As a daemon leaves it that is killed after it wrote the end, and before the executor heard of that.
    let end = Entry { event: Event::End, code: Some(0), ..audited(&home, &spec)?.remove(0) };
    std::fs::write(home.audit(), std::fs::read_to_string(home.audit())? + &serde_json::to_string(&end)? + "\n")?;
    scene.web01 = Machine::start_with(dir, Some(program)).await?;
    ensure!(each_has_one_end(&home)? == 1);
    scene.web01 = scene.web01.restart().await?;
    ensure!(each_has_one_end(&home)? == 1);
    scene.web01.end().await
}

pub(crate) async fn an_end_that_finds_the_disk_full_is_written_when_there_is_room_and_is_an_alarm_until_then()
-> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, mut wire, _pid) = cat(&scene, &conn).await?;
    let home = &scene.web01.home;
    let aside = home.root().join("aside");
    std::fs::rename(home.audit(), &aside)?;
    symlink("/dev/full", home.audit())?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    ensure!(follow(wire).await?.end.is_ok(), "its caller has the record all the same");
    until("the alarm", || async {
        let alarm = scene.web01.cluster().await?.alarm;
        Ok(alarm.is_some_and(|text| text.contains("1 end")))
    })
    .await?;
    ensure!(scene.run(&["true"]).await?.end.is_err(), "what cannot be audited is refused");
    std::fs::remove_file(home.audit())?;
    std::fs::rename(&aside, home.audit())?;
    ensure!(end_of(home, &spec).await?.code == Some(0));
    until("the alarm is over", || async { Ok(scene.web01.cluster().await?.alarm.is_none()) }).await?;
    scene.serves().await?;
    let home = home.clone();
    drop(scene.web01.ask(Request::Stop).await);
    let _dir = scene.web01.stop().await?;
    ensure!(each_has_one_end(&home)? == 2);
    Ok(())
}

pub(crate) async fn a_plan_that_was_lost_with_its_executor_is_over_and_not_run_and_has_its_end() -> Result<()> {
    let scene = Scene::with(Some(failing::dies)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (_control, hello) = peer::greet(&conn, None).await?;
    let first = executor_of(&scene).await?;
    let trace = scene.web01.home.root().join("trace");
    let spec = followed(&["touch", &trace.display().to_string()]);
    // It may be told so, or find its stream closed.
    match follow(exec(&conn, scene.key.id(), &spec).await?).await?.end {
        Ok(record) => bail!("it ran: {record:?}"),
        Err(told) => ensure!(told.is_none_or(|failure| failure.kind == FailureKind::Unknown)),
    }
    until("nothing runs any more", || is_idle(&scene)).await?;
    let end = end_of(&scene.web01.home, &spec).await?;
    ensure!(end.code == Some(253) && end.outcome.is_some_and(|why| why.starts_with("unknown: ")));
    until("another executor", || async { Ok(executor_of(&scene).await.is_ok_and(|pid| pid != first)) }).await?;
    let resend = Some(Resend { number: 2, met: hello.executor, since_ms: 5 });
    let again = ExecSpec { resend, ..spec.clone() };
    let ran = follow(exec(&conn, scene.key.id(), &again).await?).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Unknown && !trace.exists(), "{failure}");
    scene.serves().await?;
    let home = scene.web01.home.clone();
    drop(scene.web01.ask(Request::Stop).await);
    let _dir = scene.web01.stop().await?;
    ensure!(each_has_one_end(&home)? == 2);
    Ok(())
}

pub(crate) async fn an_outdated_executor_that_lost_a_plan_is_replaced() -> Result<()> {
    let scene = Scene::with(Some(failing::drops)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let outdated = executor_of(&scene).await?;
    let spec = followed(&["true"]);
    let _wire = exec(&conn, scene.key.id(), &spec).await?;
    until("it is replaced", || async { Ok(executor_of(&scene).await.is_ok_and(|pid| pid != outdated)) }).await?;
    ensure!(!lives(outdated));
    ensure!(end_of(&scene.web01.home, &spec).await?.code == Some(253));
    scene.serves().await?;
    scene.web01.end().await
}

pub(crate) async fn an_agent_whose_executor_lost_a_plan_leaves_when_it_is_idle() -> Result<()> {
    let scene = scene().await?;
    scene.publish(&scene.text().replace("[\"friend\"]", "[\"web01\"]")).await?;
    drop(scene.web01.ask(Request::Stop).await);
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    std::fs::write(home.settings(), "agent_idle = 1\n")?;
    let agent = Machine::start_agent_with(dir, Some(failing::dies)).await?;
    let spec = followed(&["true"]);
    let socket = agent.begin("web01", &spec).await?;
    let ran = follow(socket).await?;
    ensure!(ran.end.is_err(), "{ran:?}");
    agent.left().await?;
    ensure!(end_of(&home, &spec).await?.code == Some(253));
    Ok(())
}

async fn killed(scene: &Scene, conn: &Connection, spec: &ExecSpec) -> Result<()> {
    let mut wire = peer::open(conn).await?;
    peer::send(&mut wire, Kind::Open, &Open { cluster: scene.key.id(), generation: 0 }).await?;
    peer::send(&mut wire, Kind::Kill, &KillSession { owner: None, id: spec.id, signal: None }).await?;
    let record: ExitRecord = next(&mut wire).await?.expect(Kind::Exit, "Exit")?;
    ensure!(record.ended_by == EndedBy::Killed, "{record:?}");
    Ok(())
}

async fn gone(conn: &Connection, spec: &ExecSpec) -> Result<()> {
    let follower = spec.follower.context("a follower")?;
    peer::gone(conn, &Gone { owner: None, id: spec.id, follower, number: 1 }).await?;
    Ok(())
}

fn many(number: usize, words: &[&str]) -> Vec<ExecSpec> {
    (0..number).map(|_| followed(words)).collect()
}

/// Sessions that end in every way that leaves their cluster and executor, all at once.
async fn end_in_every_way(scene: &Scene, each: usize) -> Result<()> {
    let both = scene.text().replace("[\"friend\"]", "[\"friend\", \"guest\"]");
    scene.publish(&both).await?;
    let (friend, guest) = (scene.friend.dial(&scene.web01).await?, scene.guest.dial(&scene.web01).await?);
    let sleeps = ["sleep", "1000"];
    let timed =
        many(each, &sleeps).into_iter().map(|spec| ExecSpec { timeout_ms: Some(300), ..spec }).collect::<Vec<_>>();
    let (kills, gones, withdrawn) = (many(each, &sleeps), many(each, &sleeps), many(each, &sleeps));
    let _timed = begin_all(scene, &friend, &timed).await?;
    let _kills = begin_all(scene, &friend, &kills).await?;
    let _gones = begin_all(scene, &friend, &gones).await?;
    let _withdrawn = begin_all(scene, &guest, &withdrawn).await?;
    let by_itself = async {
        for words in [&["true"][..], &["/no/such/program"][..]] {
            for spec in many(each, words) {
                follow(exec(&friend, scene.key.id(), &spec).await?).await?;
            }
        }
        Ok(())
    };
    let text = scene.text();
    let publish = async { scene.publish(&text).await.map(drop) };
    let killing = async { try_join_all(kills.iter().map(|spec| killed(scene, &friend, spec))).await.map(drop) };
    let going = async { try_join_all(gones.iter().map(|spec| gone(&friend, spec))).await.map(drop) };
    futures_util::try_join!(by_itself, publish, killing, going)?;
    Ok(())
}

/// A command that runs until it is ended, and whose second word no other command on this host has.
fn endless() -> [String; 2] {
    ["sleep".to_owned(), format!("1000.{}", u64::from_le_bytes(support::random()[..8].try_into().expect("8 bytes")))]
}

/// How many processes have this word.
fn running(word: &str) -> Result<usize> {
    let mut number = 0;
    for process in std::fs::read_dir("/proc")? {
        let words = std::fs::read(process?.path().join("cmdline")).unwrap_or_default();
        number += usize::from(words.split(|byte| *byte == 0).any(|there| there == word.as_bytes()));
    }
    Ok(number)
}

/// Begins commands, whatever comes of that, and keeps their streams.
fn begin_anyhow(scene: &Scene, conn: &Connection, number: usize, words: &[String]) -> Vec<JoinHandle<Option<Wire>>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let one = |spec: ExecSpec| {
        let (conn, cluster) = (conn.clone(), scene.key.id());
        tokio::spawn(async move {
            let mut wire = exec(&conn, cluster, &spec).await.ok()?;
            next(&mut wire).await.is_ok().then_some(wire)
        })
    };
    many(number, &words).into_iter().map(one).collect()
}

/// Stops the daemon, after which nothing of its sessions is left, and each has its end.
async fn stop_and_check(scene: Scene, word: &str) -> Result<()> {
    let home = scene.web01.home.clone();
    drop(scene.web01.ask(Request::Stop).await);
    let dir = scene.web01.stop().await?;
    ensure!(running(word)? == 0, "a command runs on");
    // Nor does a later daemon find anything amiss.
    let started = each_has_one_end(&home)?;
    let _dir = Machine::start_with(dir, Some(program)).await?.stop().await?;
    ensure!(each_has_one_end(&home)? == started);
    Ok(())
}

pub(crate) async fn requests_that_come_while_the_cluster_is_left_leave_no_command_and_no_start_without_its_end()
-> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let words = endless();
    let begun = begin_anyhow(&scene, &conn, 40, &words);
    until("one runs", || async { Ok(running(&words[1])? > 0) }).await?;
    let answer = scene.web01.ask(leave()).await?;
    ensure!(matches!(answer, Response::Done), "{answer:?}");
    ensure!(running(&words[1])? == 0, "a command of a cluster that was left runs on");
    let _begun = try_join_all(begun).await?;
    stop_and_check(scene, &words[1]).await
}

pub(crate) async fn requests_that_come_while_the_executor_is_killed_have_one_end_each() -> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let words = endless();
    for _ in 0..4 {
        let executor = executor_of(&scene).await?;
        let begun = begin_anyhow(&scene, &conn, 12, &words);
        until("one runs", || async { Ok(running(&words[1])? > 0) }).await?;
        kill(Pid::from_raw(i32::try_from(executor)?), Signal::SIGKILL)?;
        until("another executor", || async { Ok(executor_of(&scene).await.is_ok_and(|pid| pid != executor)) }).await?;
        let _begun = try_join_all(begun).await?;
    }
    stop_and_check(scene, &words[1]).await
}

pub(crate) async fn requests_that_come_while_the_daemon_is_replaced_have_one_end_each() -> Result<()> {
    let mut scene = scene().await?;
    let words = endless();
    for _ in 0..4 {
        let conn = scene.friend.dial(&scene.web01).await?;
        let before = running(&words[1])?;
        let begun = begin_anyhow(&scene, &conn, 12, &words);
        until("one more runs", || async { Ok(running(&words[1])? > before) }).await?;
        scene.web01 = scene.web01.restart().await?;
        let _begun = try_join_all(begun).await?;
    }
    stop_and_check(scene, &words[1]).await
}

pub(crate) async fn of_two_who_leave_a_cluster_at_once_one_is_told_that_there_is_none_and_none_is_there() -> Result<()>
{
    let scene = scene().await?;
    let (one, other) = futures_util::try_join!(scene.web01.ask(leave()), scene.web01.ask(leave()))?;
    let has_left = |answer: &Response| matches!(answer, Response::Done);
    ensure!(has_left(&one) != has_left(&other), "{one:?}, {other:?}");
    let refused = if has_left(&one) { other } else { one };
    let Response::Failed(failure) = refused else { bail!("{refused:?}") };
    ensure!(failure.kind == FailureKind::NotConfigured, "{failure}");
    ensure!(scene.web01.status().await?.clusters.is_empty(), "a cluster that was left is shown");
    scene.web01.end().await
}

pub(crate) async fn a_broken_cluster_that_is_left_leaves_no_session() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = followed(&["sleep", "1000"]);
    let (_wire, pid) = begin(&scene, &conn, &spec).await?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    spoil(&home, false)?;
    scene.web01 = Machine::start_with(dir, Some(program)).await?;
    ensure!(lives(pid), "the config may still be mended");
    ensure!(matches!(scene.web01.ask(leave()).await?, Response::Done));
    let entries = audited(&home, &spec)?;
    ensure!(entries.len() == 2 && is_of_leaving(&entries[1]) && !lives(pid), "{entries:?}");
    scene.web01.end().await
}

pub(crate) async fn a_cluster_that_is_left_beside_an_agent_leaves_no_session_there() -> Result<()> {
    let scene = scene().await?;
    scene.publish(&scene.text().replace("[\"friend\"]", "[\"web01\"]")).await?;
    drop(scene.web01.ask(Request::Stop).await);
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    let agent = Machine::start_agent_with(dir, Some(program)).await?;
    let spec = followed(&["sleep", "1000"]);
    let mut socket = agent.begin("web01", &spec).await?;
    while next(&mut socket).await?.kind != Kind::Started {}
    let answer = malai_daemon::offline(&home, leave()).await;
    ensure!(matches!(answer, Response::Done), "{answer:?}");
    let entries = audited(&home, &spec)?;
    ensure!(entries.len() == 2 && is_of_leaving(&entries[1]), "{entries:?}");
    agent.end().await
}

pub(crate) async fn an_executor_that_is_killed_while_the_daemon_stops_leaves_no_start_without_its_end() -> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let executor = executor_of(&scene).await?;
    // It takes its time to end.
    let _begun = begin_all(&scene, &conn, &many(5, &["sh", "-c", "trap '' TERM; sleep 1000 & wait; wait"])).await?;
    let home = scene.web01.home.clone();
    let mut socket = scene.web01.connect().await?;
    socket.send(Frame::control(Kind::Request, &Request::Stop)?).await?;
    kill(Pid::from_raw(i32::try_from(executor)?), Signal::SIGKILL)?;
    scene.web01.left().await?;
    let dir = scene.web01.stop().await?;
    ensure!(each_has_one_end(&home)? == 5);
    let _dir = Machine::start_with(dir, Some(program)).await?.stop().await?;
    ensure!(each_has_one_end(&home)? == 5, "the next executor's word was taken for news");
    Ok(())
}

async fn all_endings(leaves: bool) -> Result<()> {
    let scene = scene().await?;
    end_in_every_way(&scene, 10).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let executor = executor_of(&scene).await?;
    let _lost = begin_all(&scene, &conn, &many(16, &["sleep", "1000"])).await?;
    kill(Pid::from_raw(i32::try_from(executor)?), Signal::SIGKILL)?;
    until("another executor", || async { Ok(executor_of(&scene).await.is_ok_and(|pid| pid != executor)) }).await?;
    let mut last = many(20, &["sleep", "1000"]);
    last.extend((0..20).map(|_| detached(&["sleep", "1000"])));
    let _last = begin_all(&scene, &conn, &last).await?;
    let home = scene.web01.home.clone();
    if leaves {
        let answer = scene.web01.ask(leave()).await?;
        ensure!(matches!(answer, Response::Done), "{answer:?}");
        ensure!(each_has_one_end(&home)? == 60 + 16 + 40);
    }
    drop(scene.web01.ask(Request::Stop).await);
    let _dir = scene.web01.stop().await?;
    ensure!(each_has_one_end(&home)? == 60 + 16 + 40);
    Ok(())
}

pub(crate) async fn whatever_ends_it_every_start_has_one_end_when_the_daemon_was_stopped() -> Result<()> {
    all_endings(false).await
}

pub(crate) async fn whatever_ends_it_every_start_has_one_end_when_the_cluster_was_left() -> Result<()> {
    all_endings(true).await
}
