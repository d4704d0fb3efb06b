//! Processes of this host at the daemon's socket.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use malai_protocol::codec::{Frame, FrameCodec, Kind, MAX_CONTROL, MAX_DATA, MAX_EXEC};
use malai_protocol::local::{ClusterInit, Hello, Request, Response, SessionTarget, VERSION};
use malai_protocol::session::{ExecSpec, Signal, Started};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use crate::support::{Machine, SOON, next, spec, until};

fn claim(kind: Kind, length: usize) -> Vec<u8> {
    [&[kind as u8][..], &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()].concat()
}

fn frame<T: serde::Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>> {
    Ok(Frame::control(kind, value)?.to_bytes().to_vec())
}

fn greeting() -> Result<Vec<u8>> {
    frame(Kind::LocalHello, &Hello { version: VERSION, malai: "test".into(), pid: 0, agent: false })
}

fn session() -> Result<Vec<u8>> {
    let target = SessionTarget {
        machine: "laptop".into(),
        cluster: Some("c".into()),
        connect_timeout_ms: 10_000,
        gone_timeout_ms: None,
        wait: false,
        attachment: None,
    };
    frame(Kind::Request, &Request::Session(target))
}

/// Sends these bytes, and returns what came back until the daemon closed.
async fn answer(machine: &Machine, bytes: &[u8]) -> Result<Vec<Frame>> {
    let mut stream = UnixStream::connect(machine.home.socket()).await?;
    stream.write_all(bytes).await?;
    let mut socket = Framed::new(stream, FrameCodec::new());
    let mut frames = Vec::new();
    while let Some(frame) = timeout(SOON, socket.next()).await.context("the socket stays open")? {
        // A socket that is closed over unread bytes says so.
        let Ok(frame) = frame else { break };
        frames.push(frame);
    }
    Ok(frames)
}

async fn serves(machine: &Machine) -> Result<()> {
    let ran = machine.run("laptop", &["echo", "it serves"]).await?;
    ensure!(ran.stdout == b"it serves\n", "{ran:?}");
    Ok(())
}

/// A cluster of one machine.
async fn laptop() -> Result<Machine> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    Ok(laptop)
}

/// What is no request, by name.
fn openings() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let hello = greeting()?;
    let after = |bytes: Vec<u8>| [&hello[..], &bytes].concat();
    let exec = frame(Kind::Exec, &spec(&["true"]))?;
    Ok(vec![
        ("garbage", vec![0xff; 4096]),
        ("an unknown kind", vec![0xfe, 0, 0, 0, 0]),
        ("a greeting over its cap", claim(Kind::LocalHello, MAX_CONTROL + 1)),
        ("a greeting of 4 GiB", claim(Kind::LocalHello, usize::MAX)),
        ("a greeting that is no CBOR", [claim(Kind::LocalHello, 3), vec![0xff; 3]].concat()),
        ("a request without a greeting", frame(Kind::Request, &Request::Stop)?),
        ("two greetings", after(hello.clone())),
        ("a command without a request", after(exec.clone())),
        ("a request over its cap", after(claim(Kind::Request, MAX_EXEC + 1))),
        ("an unknown request", after(frame(Kind::Request, &"fly")?)),
        ("a request that is no CBOR", after([claim(Kind::Request, 2), vec![0xff; 2]].concat())),
        ("a session that begins with data", after([session()?, claim(Kind::Stdin, 0)].concat())),
        ("a session's command over its cap", after([session()?, claim(Kind::Exec, MAX_EXEC + 1)].concat())),
        ("a session's command that is no CBOR", after([session()?, claim(Kind::Exec, 2), vec![0xff; 2]].concat())),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_closes_the_socket_and_nothing_is_carried_out() -> Result<()> {
    let laptop = laptop().await?;
    for (what, bytes) in openings()? {
        let answers = answer(&laptop, &bytes).await?;
        let kinds: Vec<Kind> = answers.iter().map(|frame| frame.kind).collect();
        ensure!(kinds.iter().all(|kind| *kind == Kind::LocalHello), "{what}: {kinds:?}");
    }
    ensure!(std::fs::read_to_string(laptop.home.audit()).unwrap_or_default().is_empty(), "something ran");
    serves(&laptop).await?;
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_is_not_carried_out() -> Result<()> {
    let laptop = laptop().await?;
    let rescan = malai_protocol::local::Rescan { cluster: None, check: false, yes: false, over: None };
    let twice = [greeting()?, frame(Kind::Request, &Request::Rescan(rescan))?, frame(Kind::Request, &Request::Stop)?];
    for frame in answer(&laptop, &twice.concat()).await?.iter().skip(1) {
        let response: Response = frame.expect(Kind::Response, "Response")?;
        ensure!(!matches!(response, Response::Done), "the second was carried out");
    }
    serves(&laptop).await?;
    laptop.stop().await?;
    Ok(())
}

/// A socket on which half of something was said is closed.
pub(crate) async fn late() -> Result<()> {
    let laptop = laptop().await?;
    let hello = greeting()?;
    let halves = [hello[..7].to_vec(), hello.clone(), [hello.clone(), session()?].concat()];
    let answers = halves.iter().map(|bytes| answer(&laptop, bytes));
    for frames in futures_util::future::join_all(answers).await {
        ensure!(frames?.iter().all(|frame| frame.kind == Kind::LocalHello));
    }
    serves(&laptop).await?;
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_of_another_version_is_told_so_with_a_hint() -> Result<()> {
    let laptop = laptop().await?;
    let newer = Hello { version: VERSION + 1, malai: "9.9".into(), pid: 0, agent: false };
    let asked = [frame(Kind::LocalHello, &newer)?, frame(Kind::Request, &Request::Stop)?].concat();
    let answers = answer(&laptop, &asked).await?;
    let [_hello, refused] = &answers[..] else { anyhow::bail!("{answers:?}") };
    let Response::Failed(failure) = refused.expect(Kind::Response, "Response")? else { anyhow::bail!("{refused:?}") };
    ensure!(failure.kind == malai_protocol::failure::Kind::Unsupported && failure.message.contains("9.9"), "{failure}");
    ensure!(failure.hint.is_some_and(|hint| hint.contains("malai daemon")));
    serves(&laptop).await?;
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_session_that_breaks_the_protocol_ends_with_its_command() -> Result<()> {
    let laptop = laptop().await?;
    let wrong = [
        ("garbage", vec![0xff; 100]),
        ("a second command", frame(Kind::Exec, &spec(&["true"]))?),
        ("a frame of the target's", claim(Kind::Exit, 0)),
        ("data over its cap", claim(Kind::Stdin, MAX_DATA + 1)),
        ("data beyond its credit", [claim(Kind::Stdin, MAX_DATA), vec![0; MAX_DATA]].concat().repeat(6)),
        ("a signal that there is not", frame(Kind::Signal, &Signal { number: 222, order: 0 })?),
    ];
    for (what, bytes) in wrong {
        let mut socket = laptop.begin("laptop", &ExecSpec { stdin: true, ..spec(&["sleep", "600"]) }).await?;
        let started: Started = next(&mut socket).await?.expect(Kind::Started, "Started")?;
        // The daemon may close while it is still being written to.
        drop(socket.get_mut().write_all(&bytes).await);
        let mut rest = Vec::new();
        drop(timeout(SOON, socket.get_mut().read_to_end(&mut rest)).await.context("the socket stays open")?);
        ensure!(!rest.contains(&(Kind::Exit as u8)), "{what}: a record came");
        let pid = nix::unistd::Pid::from_raw(started.pid.try_into()?);
        until(&format!("{what}: the command ends"), || async { Ok(nix::sys::signal::kill(pid, None).is_err()) })
            .await?;
    }
    serves(&laptop).await?;
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_silent_connections_do_not_keep_others_out() -> Result<()> {
    let laptop = laptop().await?;
    let mut silent = Vec::new();
    for _ in 0..2000 {
        silent.push(UnixStream::connect(laptop.home.socket()).await?);
    }
    serves(&laptop).await?;
    let mut byte = [0];
    let closed = silent.iter_mut().filter(|stream| matches!(stream.try_read(&mut byte), Ok(0))).count();
    ensure!(closed == 0, "{closed} were closed before it served");
    laptop.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cli_began_is_finished_although_it_leaves() -> Result<()> {
    let laptop = Machine::start().await?;
    let username = nix::unistd::Uid::effective().is_root().then(|| "root".to_owned());
    for number in 0..5 {
        let alias = format!("c{number}");
        let name = Some("laptop".to_owned());
        let make = ClusterInit { cluster: alias.clone(), name, private: true, username: username.clone() };
        let mut socket = laptop.connect().await?;
        socket.send(Frame::control(Kind::Request, &Request::ClusterInit(make))?).await?;
        // It leaves when the files are there, and the daemon has not taken them in yet.
        let made = laptop.home.cluster(&alias).config();
        until("it is begun", || async { Ok(made.exists()) }).await?;
        drop(socket);
        let served = || async { Ok(laptop.status().await?.clusters.iter().any(|cluster| cluster.alias == alias)) };
        until("the cluster is served", served).await?;
    }
    laptop.stop().await?;
    Ok(())
}

/// Set in the process that plays another user: the socket to try.
const AS_OTHER: &str = "MALAI_TEST_SOCKET";

#[test]
#[allow(clippy::print_stderr, reason = "says why it proves nothing")]
fn another_user_is_turned_away_although_the_directory_lets_it_in() -> Result<()> {
    if let Some(path) = std::env::var_os(AS_OTHER) {
        return try_socket(std::path::Path::new(&path));
    }
    if !nix::unistd::Uid::effective().is_root() {
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "only root can play another user");
        eprintln!("not shown: only root can play another user");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let laptop = laptop().await?;
        for (path, mode) in [(laptop.home.root(), 0o755), (laptop.home.root().parent().context("a parent")?, 0o755)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        let socket = laptop.home.socket();
        // As it is, the socket itself keeps others out.
        ensure!(!as_other(&socket).await?.contains("closed at once"), "the socket's own mode lets others in");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
        let said = as_other(&socket).await?;
        ensure!(said.contains("closed at once"), "{said}");
        serves(&laptop).await?;
        laptop.stop().await?;
        Ok(())
    })
}

/// Runs this very test as `nobody`, and returns what it says.
async fn as_other(socket: &std::path::Path) -> Result<String> {
    let mut command = Command::new("/proc/self/exe");
    let name = "socket::another_user_is_turned_away_although_the_directory_lets_it_in";
    command.args(["--exact", name, "--nocapture"]).env(AS_OTHER, socket).current_dir("/").uid(65534).gid(65534);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// What another user does: greets, asks the daemon to stop, and tells what came of it.
#[allow(clippy::print_stderr, reason = "tells the test that started it")]
fn try_socket(path: &std::path::Path) -> Result<()> {
    use std::io::{Read, Write};
    ensure!(!nix::unistd::Uid::effective().is_root(), "still root");
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    drop(stream.write_all(&[greeting()?, frame(Kind::Request, &Request::Stop)?].concat()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    eprintln!("{}", if answer.is_empty() { "closed at once" } else { "answered" });
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_home_another_process_has_taken_leaves_it_to_that() -> Result<()> {
    let laptop = laptop().await?;
    let theirs = laptop.home.root().join("theirs");
    let lock = std::fs::File::create(&theirs)?;
    lock.lock()?;
    std::fs::rename(&theirs, laptop.home.lock())?;
    laptop.left().await?;
    ensure!(!laptop.home.socket().exists(), "its socket is still there");
    ensure!(std::fs::read(laptop.home.lock())?.is_empty(), "it wrote into the other one's lock");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_again_and_again_is_bound_again_and_again() -> Result<()> {
    let laptop = laptop().await?;
    for _ in 0..20 {
        std::fs::remove_file(laptop.home.socket())?;
        std::fs::remove_file(laptop.home.lock())?;
        until("both are back", || async { Ok(laptop.home.socket().exists() && laptop.home.lock().exists()) }).await?;
    }
    serves(&laptop).await
}
