//! Each of a session's directions stalled in turn, across two daemons: what has to get through does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use malai_protocol::codec::{Frame, Kind, MAX_DATA};
use malai_protocol::session::{EndedBy, ExecSpec, STDIN_CREDIT, Signal, Started, Status, StdinAck};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::support::{Machine, Socket, follow, next, spec, until};

/// More than all buffers between a command and its caller hold together: the output window, two QUIC streams' windows,
/// sockets and pipes.
const MUCH: u64 = 64 * 1024 * 1024;

async fn pair() -> Result<(Machine, Machine)> {
    let (laptop, web01) = (Machine::start().await?, Machine::start().await?);
    laptop.init("laptop").await?;
    web01.join(laptop.invite("web01").await?).await?;
    Ok((laptop, web01))
}

async fn stop(laptop: Machine, web01: Machine) -> Result<()> {
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}

async fn started(session: &mut Socket) -> Result<Pid> {
    let started: Started = next(session).await?.expect(Kind::Started, "Started")?;
    Ok(Pid::from_raw(started.pid.try_into()?))
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec { stdin: true, ..spec(&["sh", "-c", script]) }
}

/// Sends standard input as far as it is allowed, until no more credit comes.
async fn fill(session: &mut Socket) -> Result<u64> {
    let (mut sent, mut credit) = (0, STDIN_CREDIT);
    loop {
        while sent < credit {
            let chunk = (credit - sent).min(MAX_DATA as u64);
            session.send(Frame::data(Kind::Stdin, Bytes::from(vec![0; usize::try_from(chunk)?]))).await?;
            sent += chunk;
        }
        // What the pipe takes is confirmed at once; then silence is the stall.
        let Ok(frame) = timeout(Duration::from_millis(500), next(session)).await else { return Ok(sent) };
        let ack: StdinAck = frame?.expect(Kind::StdinAck, "StdinAck")?;
        credit = ack.credit;
        ensure!(sent < MUCH, "a command that reads nothing takes all");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_nothing_holds_its_command_and_no_other() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let count = web01.home.root().join("count");
    let script = format!(
        "i=0; while [ $i -lt 64 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > {0}.new; mv {0}.new {0}; done",
        count.display()
    );
    let mut session = laptop.begin("web01", &shell(&script)).await?;
    started(&mut session).await?;
    let stalled_at = stall(&count).await?;
    ensure!(stalled_at << 20 < MUCH, "{stalled_at} MiB were taken from a command whose caller reads nothing");
    let other = laptop.run("web01", &["echo", "hello"]).await?;
    ensure!(other.stdout == b"hello\n", "{other:?}");
    // It goes on where it was, without losing a byte.
    let ran = follow(session).await?;
    ensure!(ran.stdout.len() as u64 == MUCH, "{} bytes", ran.stdout.len());
    ensure!(ran.end.is_ok_and(|record| record.status == Status::Exited { code: 0 }));
    stop(laptop, web01).await
}

/// Waits until the number in a file has stopped to grow.
async fn stall(path: &Path) -> Result<u64> {
    let read = || std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    until("the command prints", || async { Ok(read().is_some()) }).await?;
    let mut last = read();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = read();
        if now == last {
            return now.context("a number");
        }
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_gets_through_to_a_command_that_reads_nothing() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &ExecSpec { stdin: true, ..spec(&["sleep", "600"]) }).await?;
    started(&mut session).await?;
    let sent = fill(&mut session).await?;
    ensure!(sent >= STDIN_CREDIT, "{sent} bytes: nothing stalled");
    session.send(Frame::control(Kind::Signal, &Signal { number: 2 })?).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.status == Status::Signalled { signal: 2, core: false }, "{record:?}");
    ensure!(record.ended_by == EndedBy::Itself, "{record:?}");
    stop(laptop, web01).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_gets_through_although_the_output_is_stalled() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &spec(&["yes"])).await?;
    let pid = started(&mut session).await?;
    // It is stalled when its pipe takes nothing more: then it sleeps in write.
    until("the command waits for its reader", || async { Ok(sleeps(pid)) }).await?;
    session.send(Frame::control(Kind::Signal, &Signal { number: 2 })?).await?;
    until("the command is gone", || async { Ok(kill(pid, None).is_err()) }).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.status == Status::Signalled { signal: 2, core: false }, "{record:?}");
    stop(laptop, web01).await
}

/// Whether a process sleeps, and goes on sleeping.
fn sleeps(pid: Pid) -> bool {
    (0..50).all(|_| {
        std::thread::sleep(Duration::from_millis(2));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_vanishes_under_a_full_standard_input_ends_the_whole_tree() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &shell("sleep 600 & sleep 600 & wait")).await?;
    let group = started(&mut session).await?;
    let sent = fill(&mut session).await?;
    ensure!(sent >= STDIN_CREDIT, "{sent} bytes: nothing stalled");
    drop(session);
    until("the tree is gone", || async { Ok(killpg(group, None).is_err()) }).await?;
    until("the audit says why", || async {
        let audit = std::fs::read_to_string(web01.home.audit())?;
        Ok(audit.lines().any(|line| line.contains("caller-gone")))
    })
    .await?;
    stop(laptop, web01).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_vanishes_under_stalled_output_ends_the_whole_tree() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &shell("sleep 600 & exec yes")).await?;
    let group = started(&mut session).await?;
    until("the command waits for its reader", || async { Ok(sleeps(group)) }).await?;
    drop(session);
    until("the tree is gone", || async { Ok(killpg(group, None).is_err()) }).await?;
    stop(laptop, web01).await
}

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_on_while_the_caller_reads_no_output() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let (trace, writer) = (web01.home.root().join("trace"), web01.home.root().join("writer"));
    let script = format!(
        "head -c {MUCH} /dev/zero & echo $! > {}; cat > {}; wait; echo done",
        writer.display(),
        trace.display()
    );
    let mut session = laptop.begin("web01", &shell(&script)).await?;
    started(&mut session).await?;
    let stalled = || {
        std::fs::read_to_string(&writer).is_ok_and(|pid| pid.trim().parse().is_ok_and(|pid| sleeps(Pid::from_raw(pid))))
    };
    until("the output is stalled", || async { Ok(stalled()) }).await?;
    session.send(Frame::data(Kind::Stdin, Bytes::from_static(b"a line\n"))).await?;
    session.send(Frame::empty(Kind::StdinEof)).await?;
    until("the input arrives", || async { Ok(std::fs::read(&trace).is_ok_and(|text| text == b"a line\n")) }).await?;
    let ran = follow(session).await?;
    ensure!(ran.stdout.ends_with(b"done\n") && ran.stdout.len() as u64 == MUCH + 5, "{} bytes", ran.stdout.len());
    stop(laptop, web01).await
}
