//! Daemons that are replaced under their sessions. With `executor` and a home this program is an executor, else the
//! tests: an executor that outlives its daemon is a process of its own.

#[path = "../support/mod.rs"]
mod support;

mod ends;
mod failing;
mod starting;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use iroh::endpoint::Connection;
use libtest_mimic::{Arguments, Failed, Trial};
use malai_daemon::store::snapshot;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::home::Home;
use malai_protocol::local::Request;
use malai_protocol::session::{Attached, EndedBy, ExecSpec, Resend, Started};

use support::peer::{self, Wire, attach, exec};
use support::scene::Scene;
use support::{again, follow, followed, next, until};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, executor, home] = &args[..]
        && executor == "executor"
    {
        let ended = malai_daemon::executor::main(Home::new(PathBuf::from(home)), None);
        return if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let [_, word, home] = &args[..]
        && let Some(word) = word.to_str().filter(|word| [failing::DIES, failing::DROPS].contains(word))
    {
        let ended = failing::main(word, Path::new(home));
        return if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let [_, word, home] = &args[..]
        && word == starting::WAITS
    {
        return if starting::main(Path::new(home)).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    macro_rules! trials {
        ($($name:ident)*) => { vec![$(Trial::test(stringify!($name), || block_on($name()))),*] };
    }
    let mut trials = trials! {
        a_command_goes_on_under_a_daemon_that_is_replaced
        a_command_of_this_machine_goes_on_under_its_daemon_too
        a_session_that_is_not_allowed_any_more_is_ended_by_the_daemon_that_comes
        a_named_command_with_other_words_is_ended_by_the_daemon_that_comes
        a_session_of_a_cluster_that_is_gone_is_ended_by_the_daemon_that_comes
        what_ended_while_no_daemon_ran_is_told_and_in_the_audit
        a_request_that_was_sent_to_the_daemon_before_is_not_run_again
        a_daemon_that_is_stopped_ends_its_sessions_and_its_executor
        a_changed_network_ends_no_session
        an_executor_of_another_program_is_replaced_when_its_last_command_has_ended
    };
    use ends::*;
    use starting::*;
    trials.extend(trials! {
        clis_are_served_and_a_daemon_stops_while_its_executor_does_not_come
        the_next_executor_is_met_when_it_comes_late
        a_stop_is_answered_when_the_executor_takes_no_orders_any_more
        leaving_a_cluster_ends_its_sessions_first_and_each_end_is_in_the_audit
        a_cluster_that_is_left_without_a_daemon_leaves_no_session_and_no_start_without_its_end
        sessions_of_a_cluster_that_is_broken_or_waits_have_their_ends_in_the_audit
        a_start_whose_session_nobody_has_gets_its_end_from_the_daemon_that_comes
        an_end_that_was_written_and_not_confirmed_is_not_written_twice
        an_end_that_finds_the_disk_full_is_written_when_there_is_room_and_is_an_alarm_until_then
        a_plan_that_was_lost_with_its_executor_is_over_and_not_run_and_has_its_end
        an_outdated_executor_that_lost_a_plan_is_replaced
        an_agent_whose_executor_lost_a_plan_leaves_when_it_is_idle
        requests_that_come_while_the_cluster_is_left_leave_no_command_and_no_start_without_its_end
        requests_that_come_while_the_executor_is_killed_have_one_end_each
        requests_that_come_while_the_daemon_is_replaced_have_one_end_each
        of_two_who_leave_a_cluster_at_once_one_is_told_that_there_is_none_and_none_is_there
        a_broken_cluster_that_is_left_leaves_no_session
        a_cluster_that_is_left_beside_an_agent_leaves_no_session_there
        an_executor_that_is_killed_while_the_daemon_stops_leaves_no_start_without_its_end
        whatever_ends_it_every_start_has_one_end_when_the_daemon_was_stopped
        whatever_ends_it_every_start_has_one_end_when_the_cluster_was_left
    });
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test).map_err(|error| format!("{error:?}").into())
}

/// This program as the executor.
fn program(home: &Home) -> (PathBuf, Vec<OsString>) {
    let program = std::env::current_exe().expect("this program");
    (program, vec!["executor".into(), home.root().as_os_str().to_owned()])
}

/// Another program, as an upgrade leaves one.
fn upgraded(home: &Home) -> (PathBuf, Vec<OsString>) {
    let (program, args) = program(home);
    let upgraded = home.root().join("upgraded");
    if !upgraded.exists() {
        std::fs::copy(program, &upgraded).expect("copied");
    }
    (upgraded, args)
}

async fn scene() -> Result<Scene> {
    Scene::with(Some(program)).await
}

/// A session of `cat` that has echoed four bytes, and its process.
async fn cat(scene: &Scene, conn: &Connection) -> Result<(ExecSpec, Wire, u32)> {
    let spec = followed(&["cat"]);
    let mut wire = exec(conn, scene.key.id(), &spec).await?;
    let started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    wire.send(Frame::data(Kind::Stdin, Bytes::from_static(b"one\n"))).await?;
    while next(&mut wire).await?.kind != Kind::Stdout {}
    Ok((spec, wire, started.pid))
}

fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What the audit says of a session.
fn audited(home: &Home, spec: &ExecSpec) -> Result<Vec<Entry>> {
    let audit = std::fs::read_to_string(home.audit())?;
    let entries: Vec<Entry> = audit.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(entries.into_iter().filter(|entry| entry.session == spec.id.to_string()).collect())
}

/// Waits for the end of a session in the audit, which has to have one beginning and one end of it.
async fn end_of(home: &Home, spec: &ExecSpec) -> Result<Entry> {
    until("the end is in the audit", || async { Ok(audited(home, spec)?.len() >= 2) }).await?;
    let entries = audited(home, spec)?;
    ensure!(entries.iter().map(|entry| entry.event).eq([Event::Start, Event::End]), "{entries:?}");
    entries.into_iter().next_back().context("an end")
}

async fn a_command_goes_on_under_a_daemon_that_is_replaced() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, pid) = cat(&scene, &conn).await?;
    for number in 2..4 {
        scene.web01 = scene.web01.restart().await?;
        ensure!(lives(pid), "it ended with its daemon");
        ensure!(scene.web01.status().await?.daemon.sessions == 1, "the new daemon does not count it");
        let conn = scene.friend.dial(&scene.web01).await?;
        let mut wire = attach(&conn, scene.key.id(), &again(&spec, number, 4)).await?;
        let attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
        ensure!(attached.started.as_ref().is_some_and(|started| started.pid == pid), "{attached:?}");
        if number == 3 {
            wire.send(Frame::data(Kind::Stdin, Bytes::from_static(b"two\n"))).await?;
            wire.send(Frame::empty(Kind::StdinEof)).await?;
            let ran = follow(wire).await?;
            ensure!(ran.stdout == b"two\n" && ran.end.is_ok_and(|record| record.stdout_bytes == 8));
        }
    }
    ensure!(end_of(&scene.web01.home, &spec).await?.code == Some(0));
    until("it is counted no more", || async { Ok(scene.web01.status().await?.daemon.sessions == 0) }).await?;
    scene.web01.end().await
}

async fn a_command_of_this_machine_goes_on_under_its_daemon_too() -> Result<()> {
    let mut scene = scene().await?;
    scene.publish(&scene.text().replace("[\"friend\"]", "[\"web01\"]")).await?;
    let spec = followed(&["cat"]);
    let mut socket = scene.web01.begin("web01", &spec).await?;
    while next(&mut socket).await?.kind != Kind::Started {}
    scene.web01 = scene.web01.restart().await?;
    ensure!(next(&mut socket).await.is_err(), "the CLI is not told that its attachment is lost");
    let mut socket = scene.web01.attach("web01", &again(&spec, 2, 0)).await?;
    socket.send(Frame::empty(Kind::StdinEof)).await?;
    let ran = follow(socket).await?;
    ensure!(ran.end.is_ok_and(|record| record.ended_by == EndedBy::Itself));
    scene.web01.end().await
}

async fn a_session_that_is_not_allowed_any_more_is_ended_by_the_daemon_that_comes() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, pid) = cat(&scene, &conn).await?;
    let text = scene.text().replace("allow_from", "allow_sessions = [\"guest\"]\nallow_from");
    let withdrawn = scene.sign(&text.replace("[\"friend\"]", "[]"))?;
    let dir = scene.web01.stop().await?;
    ensure!(lives(pid));
    let home = support::home_in(&dir);
    snapshot::save(&home.cluster("c").snapshot(), &withdrawn)?;
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    let end = end_of(&home, &spec).await?;
    ensure!(end.outcome.as_ref().is_some_and(|by| by.starts_with("revoked: ")), "{end:?}");
    ensure!(!lives(pid));
    // The caller, who comes back, is told why.
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = follow(attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?).await?;
    let record = ran.end.expect("a record");
    ensure!(record.ended_by == EndedBy::Revoked && record.reason.is_some(), "{record:?}");
    scene.web01.end().await
}

async fn a_named_command_with_other_words_is_ended_by_the_daemon_that_comes() -> Result<()> {
    let mut scene = scene().await?;
    let named = |words: &str| scene.text() + &format!("[machine.web01.command.rest]\ncommand = {words}\n");
    scene.publish(&named("[\"sleep\", \"1000\"]")).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let spec = ExecSpec { literal: false, ..followed(&["rest"]) };
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    let started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    // The same words: it goes on under the next daemon.
    let same = scene.sign(&named("['sleep', '1000']"))?;
    let other = scene.sign(&named("[\"sleep\", \"1001\"]"))?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    snapshot::save(&home.cluster("c").snapshot(), &same)?;
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut wire = attach(&conn, scene.key.id(), &again(&spec, 2, 0)).await?;
    let _attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    ensure!(lives(started.pid));
    let dir = scene.web01.stop().await?;
    snapshot::save(&home.cluster("c").snapshot(), &other)?;
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    let end = end_of(&home, &spec).await?;
    ensure!(
        end.outcome.as_deref() == Some("revoked: the config changed: the named command `rest` now has other words"),
        "{end:?}"
    );
    ensure!(!lives(started.pid));
    scene.web01.end().await
}

async fn a_session_of_a_cluster_that_is_gone_is_ended_by_the_daemon_that_comes() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (_spec, _wire, pid) = cat(&scene, &conn).await?;
    let dir = scene.web01.stop().await?;
    let home = support::home_in(&dir);
    std::fs::rename(home.cluster("c").root(), dir.path().join("elsewhere"))?;
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    until("it is ended", || async { Ok(!lives(pid)) }).await?;
    scene.web01.end().await
}

async fn what_ended_while_no_daemon_ran_is_told_and_in_the_audit() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let go = scene.web01.home.root().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done; echo late; exit 3", go.display());
    let spec = followed(&["sh", "-c", &script]);
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    let started: Started = next(&mut wire).await?.expect(Kind::Started, "Started")?;
    let dir = scene.web01.stop().await?;
    std::fs::write(&go, "")?;
    until("it ends by itself", || async { Ok(!lives(started.pid)) }).await?;
    ensure!(audited(&support::home_in(&dir), &spec)?.len() == 1, "somebody wrote the end down");
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    ensure!(audited(&scene.web01.home, &spec)?.len() == 2, "it is not written down before others are served");
    ensure!(end_of(&scene.web01.home, &spec).await?.code == Some(3));
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = follow(attach(&conn, scene.key.id(), &again(&spec, 2, 0)).await?).await?;
    ensure!(ran.stdout == b"late\n" && ran.end.is_ok_and(|record| record.exit_code() == 3));
    scene.web01.end().await
}

async fn a_request_that_was_sent_to_the_daemon_before_is_not_run_again() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (_control, hello) = peer::greet(&conn, None).await?;
    ensure!(hello.executor.is_some(), "it does not greet with its executor");
    let trace = scene.web01.home.root().join("trace");
    let spec = followed(&["sh", "-c", &format!("echo ran >> {}; cat", trace.display())]);
    let again = |number| {
        let resend = Some(Resend { number, met: hello.executor, since_ms: 5 });
        ExecSpec { resend, ..spec.clone() }
    };
    let mut wire = exec(&conn, scene.key.id(), &spec).await?;
    next(&mut wire).await?.expect::<Started>(Kind::Started, "Started")?;
    scene.web01 = scene.web01.restart().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let mut wire = exec(&conn, scene.key.id(), &again(2)).await?;
    let attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    ensure!(Some(attached.incarnation) == hello.executor, "{attached:?}");
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    ensure!(follow(wire).await?.end.is_ok());
    // After an executor that knew of it nobody does.
    drop(scene.web01.ask(Request::Stop).await);
    let dir = scene.web01.stop().await?;
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = follow(exec(&conn, scene.key.id(), &again(3)).await?).await?;
    let failure = ran.end.expect_err("refused").context("a reason")?;
    ensure!(failure.kind == FailureKind::Unknown, "{failure}");
    ensure!(std::fs::read_to_string(&trace)? == "ran\n");
    scene.web01.end().await
}

async fn a_daemon_that_is_stopped_ends_its_sessions_and_its_executor() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, pid) = cat(&scene, &conn).await?;
    let executor = scene.web01.status().await?.daemon.executor_pid.context("an executor")?;
    // One that is told to leave them does.
    drop(scene.web01.ask(Request::Leave).await);
    let dir = scene.web01.stop().await?;
    ensure!(lives(pid) && lives(executor));
    scene.web01 = support::Machine::start_with(dir, Some(program)).await?;
    ensure!(scene.web01.status().await?.daemon.executor_pid == Some(executor));
    let home = scene.web01.home.clone();
    drop(scene.web01.ask(Request::Stop).await);
    let _dir = scene.web01.stop().await?;
    ensure!(!lives(pid), "a command lives");
    ensure!(!lives(executor), "the executor lives");
    let end = end_of(&home, &spec).await?;
    ensure!(end.outcome.as_ref().is_some_and(|by| by.starts_with("shutdown")), "{end:?}");
    Ok(())
}

/// The executor's process; waits while one is started.
async fn executor_of(scene: &Scene) -> Result<u32> {
    let found = std::cell::Cell::new(None);
    until("there is an executor", || async {
        found.set(scene.web01.status().await?.daemon.executor_pid);
        Ok(found.get().is_some())
    })
    .await?;
    found.get().context("an executor")
}

async fn an_executor_of_another_program_is_replaced_when_its_last_command_has_ended() -> Result<()> {
    let mut scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, pid) = cat(&scene, &conn).await?;
    let old = executor_of(&scene).await?;
    scene.web01 = support::Machine::start_with(scene.web01.stop().await?, Some(upgraded)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    // Under the old one commands go on, and begin.
    scene.serves().await?;
    ensure!(executor_of(&scene).await? == old && lives(pid));
    let mut wire = attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?;
    let _attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
    wire.send(Frame::empty(Kind::StdinEof)).await?;
    ensure!(follow(wire).await?.end.is_ok_and(|record| record.stdout_bytes == 4));
    until("the executor is replaced", || async { Ok(executor_of(&scene).await? != old) }).await?;
    ensure!(!lives(old), "two executors");
    scene.serves().await?;
    // That one stays: its program is the installed one.
    let new = executor_of(&scene).await?;
    scene.web01 = support::Machine::start_with(scene.web01.stop().await?, Some(upgraded)).await?;
    scene.serves().await?;
    ensure!(executor_of(&scene).await? == new, "it was replaced by its like");
    // Without a command it is replaced before anybody is served.
    scene.web01 = support::Machine::start_with(scene.web01.stop().await?, Some(program)).await?;
    ensure!(executor_of(&scene).await? != new && !lives(new));
    scene.web01.end().await
}

async fn a_changed_network_ends_no_session() -> Result<()> {
    let scene = scene().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, pid) = cat(&scene, &conn).await?;
    scene.publish(&scene.text().replace("relays = []", "relays = [\"https://relay.invalid\"]")).await?;
    conn.closed().await;
    ensure!(lives(pid));
    until("it is followed again", || async {
        // The port is the same; for a moment nobody is there.
        let Ok(conn) = scene.friend.dial(&scene.web01).await else { return Ok(false) };
        let mut wire = attach(&conn, scene.key.id(), &again(&spec, 2, 4)).await?;
        let _attached: Attached = next(&mut wire).await?.expect(Kind::Attached, "Attached")?;
        wire.send(Frame::empty(Kind::StdinEof)).await?;
        Ok(follow(wire).await?.end.is_ok_and(|record| record.ended_by == EndedBy::Itself))
    })
    .await?;
    scene.web01.end().await
}
