//! Each of a session's directions stalled in turn, across two daemons: what has to get through does.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use malai_protocol::codec::{Frame, Kind, MAX_DATA};
use malai_protocol::session::{EndedBy, ExecSpec, STDIN_CREDIT, Signal, Started, Status, StdinAck};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;

use crate::pipes::{is_full, pipe, written};
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

/// Sends standard input as far as it is allowed to a command that reads none: its pipe takes what it holds, and no more.
async fn fill(session: &mut Socket, pid: Pid) -> Result<u64> {
    let holds = u64::try_from(fcntl(pipe(pid, 0)?, FcntlArg::F_GETPIPE_SZ)?)?;
    let (mut sent, mut ack) = (0, StdinAck { offset: 0, credit: STDIN_CREDIT });
    loop {
        while sent < ack.credit {
            let chunk = (ack.credit - sent).min(MAX_DATA as u64);
            session.send(Frame::data(Kind::Stdin, Bytes::from(vec![0; usize::try_from(chunk)?]))).await?;
            sent += chunk;
        }
        if ack.offset == holds {
            return Ok(sent);
        }
        ack = next(session).await?.expect(Kind::StdinAck, "StdinAck")?;
        ensure!(ack.offset <= holds, "{} bytes were taken by a pipe of {holds}", ack.offset);
    }
}

/// Waits until a command's output is stalled: its pipe is full, and nothing is taken from it while another command goes
/// all the way from its start to its end. Returns how much it has written.
async fn stalled(laptop: &Machine, pid: Pid) -> Result<u64> {
    let state = || async {
        let before = written(pid)?;
        if !is_full(pid)? {
            return Ok(false);
        }
        let other = laptop.run("web01", &["echo", "hello"]).await?;
        ensure!(other.stdout == b"hello\n", "{other:?}");
        Ok(is_full(pid)? && written(pid)? == before)
    };
    until("the command waits for its reader", state).await?;
    written(pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_nothing_holds_its_command_and_no_other() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let much = MUCH.to_string();
    let mut session = laptop.begin("web01", &spec(&["head", "-c", &much, "/dev/zero"])).await?;
    let pid = started(&mut session).await?;
    // Other commands run meanwhile.
    let stalled_at = stalled(&laptop, pid).await?;
    ensure!(stalled_at < MUCH, "{stalled_at} bytes were taken from a command whose caller reads nothing");
    // It goes on where it was, without losing a byte.
    let ran = follow(session).await?;
    ensure!(ran.stdout.len() as u64 == MUCH, "{} bytes", ran.stdout.len());
    ensure!(ran.end.is_ok_and(|record| record.status == Status::Exited { code: 0 }));
    stop(laptop, web01).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_gets_through_to_a_command_that_reads_nothing() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &ExecSpec { stdin: true, ..spec(&["sleep", "600"]) }).await?;
    let pid = started(&mut session).await?;
    let sent = fill(&mut session, pid).await?;
    ensure!(sent >= STDIN_CREDIT, "{sent} bytes: nothing stalled");
    session.send(Frame::control(Kind::Signal, &Signal { number: 2, order: 0 })?).await?;
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
    stalled(&laptop, pid).await?;
    session.send(Frame::control(Kind::Signal, &Signal { number: 2, order: 0 })?).await?;
    until("the command is gone", || async { Ok(kill(pid, None).is_err()) }).await?;
    let record = follow(session).await?.end.expect("a record");
    ensure!(record.status == Status::Signalled { signal: 2, core: false }, "{record:?}");
    stop(laptop, web01).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_vanishes_under_a_full_standard_input_ends_the_whole_tree() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let mut session = laptop.begin("web01", &shell("sleep 600 & sleep 600 & wait")).await?;
    let group = started(&mut session).await?;
    let sent = fill(&mut session, group).await?;
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
    stalled(&laptop, group).await?;
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
    let pid = || std::fs::read_to_string(&writer).ok().and_then(|pid| pid.trim_end().parse().ok());
    until("it begins to write", || async { Ok(pid().is_some()) }).await?;
    stalled(&laptop, Pid::from_raw(pid().context("a pid")?)).await?;
    session.send(Frame::data(Kind::Stdin, Bytes::from_static(b"a line\n"))).await?;
    session.send(Frame::empty(Kind::StdinEof)).await?;
    until("the input arrives", || async { Ok(std::fs::read(&trace).is_ok_and(|text| text == b"a line\n")) }).await?;
    let ran = follow(session).await?;
    ensure!(ran.stdout.ends_with(b"done\n") && ran.stdout.len() as u64 == MUCH + 5, "{} bytes", ran.stdout.len());
    stop(laptop, web01).await
}
