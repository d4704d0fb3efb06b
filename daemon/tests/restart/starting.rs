//! Executors that take their time: one that does not come, and one that hangs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use malai_protocol::home::Home;
use malai_protocol::local::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use super::support::peer::exec;
use super::support::scene::Scene;
use super::support::{Machine, followed, until};
use super::{cat, executor_of, program};

/// The argument that makes this program an executor that waits before it opens its socket.
pub(crate) const WAITS: &str = "waits";
/// Bounds how long an answer takes on a busy machine; an executor that does not come is given twice that.
const CLI_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

fn waits(home: &Home) -> (PathBuf, Vec<OsString>) {
    let (program, _) = program(home);
    (program, vec![WAITS.into(), home.root().as_os_str().to_owned()])
}

/// Runs as such an executor: it goes on when there is no file `hold` in its home.
pub(crate) fn main(home: &Path) -> Result<()> {
    while home.join("hold").exists() {
        std::fs::write(home.join("held"), "")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    malai_daemon::executor::main(Home::new(home.to_owned()), None)
}

/// Sends a signal to the executor's process.
fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

async fn asked(machine: &Machine, request: Request) -> Result<Response> {
    timeout(CLI_ANSWER_TIMEOUT, machine.ask(request)).await.context("no CLI is served while the executor is started")?
}

pub(crate) async fn clis_are_served_and_a_daemon_stops_while_its_executor_does_not_come() -> Result<()> {
    let scene = Scene::with(Some(waits)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (_spec, _wire, _) = cat(&scene, &conn).await?;
    let home = scene.web01.home.root().to_owned();
    std::fs::write(home.join("hold"), "")?;
    signal(executor_of(&scene).await?, Signal::SIGKILL)?;
    until("another one is started", || async { Ok(home.join("held").exists()) }).await?;
    let Response::Daemon(daemon) = asked(&scene.web01, Request::DaemonStatus).await? else { panic!("no status") };
    ensure!(daemon.executor_pid.is_none() && daemon.sessions == 1, "{daemon:?}");
    ensure!(matches!(asked(&scene.web01, Request::Metrics).await?, Response::Metrics(_)));
    drop(asked(&scene.web01, Request::Leave).await);
    timeout(CLI_ANSWER_TIMEOUT, scene.web01.left())
        .await
        .context("it does not stop while the executor is started")??;
    ensure!(home.join("hold").exists());
    scene.web01.stop().await?;
    Ok(())
}

pub(crate) async fn the_next_executor_is_met_when_it_comes_late() -> Result<()> {
    let scene = Scene::with(Some(waits)).await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let (spec, _wire, _) = cat(&scene, &conn).await?;
    let home = scene.web01.home.root().to_owned();
    std::fs::write(home.join("hold"), "")?;
    let old = executor_of(&scene).await?;
    signal(old, Signal::SIGKILL)?;
    until("another one is started", || async { Ok(home.join("held").exists()) }).await?;
    std::fs::remove_file(home.join("hold"))?;
    let end = super::end_of(&scene.web01.home, &spec).await?;
    ensure!(end.outcome.as_ref().is_some_and(|outcome| outcome.starts_with("unknown")), "{end:?}");
    scene.serves().await?;
    ensure!(executor_of(&scene).await? != old);
    scene.web01.end().await
}

pub(crate) async fn a_stop_is_answered_when_the_executor_takes_no_orders_any_more() -> Result<()> {
    let scene = Scene::with(Some(program)).await?;
    scene.serves().await?;
    let executor = executor_of(&scene).await?;
    signal(executor, Signal::SIGSTOP)?;
    // What fills its socket, and then the queue before it.
    let conn = scene.friend.dial(&scene.web01).await?;
    let (large, mut wires) = ("x".repeat(200_000), Vec::new());
    for number in 0..200 {
        let words = if number < 8 { vec!["true", &large] } else { vec!["true"] };
        wires.push(exec(&conn, scene.key.id(), &followed(&words)).await?);
    }
    until("they wait for it", || async { Ok(scene.web01.status().await?.daemon.sessions >= 100) }).await?;
    let answer = timeout(4 * CLI_ANSWER_TIMEOUT, scene.web01.ask(Request::Stop)).await.context("no answer")??;
    let Response::Failed(failure) = answer else { panic!("{answer:?}") };
    ensure!(failure.hint.is_some_and(|hint| hint.contains(&format!("kill -9 {executor}"))), "{}", failure.message);
    signal(executor, Signal::SIGCONT)?;
    drop(wires);
    scene.web01.end().await
}
