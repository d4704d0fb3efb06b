//! Finds the executor of a home, or starts it.

use std::ffi::{CString, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::home::Home;
use malai_protocol::plan::{Hello, Sessions, VERSION};
use malai_protocol::session::Status;

use crate::executor::process::spawn::{Directory, Prepared, Pwd, Trouble};
use crate::executor::{self, Connection, Incoming, MARKER, Options, Reaper};
use crate::runtime::secrecy;
use crate::store::owners::Trusted;

/// How long it may take until an executor answers: one that starts may first kill what another left.
const START: Duration = Duration::from_secs(10);
/// How long one that took the connection may take to say what it has.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// `Sessions` in so many frames at most: far more than the executor's own bounds allow.
const MAX_PARTS: usize = 256;
/// Variables that do not go to the executor: the marker of a session in which the daemon was started, and a secret.
const WITHHELD: [&str; 2] = [MARKER, "MALAI_INVITE"];

/// A control connection on which the executor has said what it has.
pub(super) struct Opened {
    pub(super) reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
    pub(super) writer: WriteHalf<Connection>,
    pub(super) sessions: Sessions,
    pub(super) pid: Option<u32>,
}

/// Starts an executor as a task.
pub(super) fn in_process(home: Home) -> (mpsc::Sender<Connection>, JoinHandle<anyhow::Result<()>>) {
    let (sender, receiver) = mpsc::channel(16);
    let options = Options { home, cgroups: true, stop: CancellationToken::new(), log: None };
    (sender, tokio::spawn(executor::run(options, Incoming::Channel(receiver))))
}

/// Opens the control connection.
pub(super) async fn open(connection: Connection, pid: Option<u32>) -> Result<Opened, Failure> {
    match timeout(ANSWER, hello(connection)).await {
        Ok(Ok((reader, writer, sessions))) if sessions.version.abs_diff(VERSION) <= 1 => {
            Ok(Opened { reader, writer, sessions, pid })
        }
        Ok(Ok((_, _, sessions))) => Err(other_version(sessions.version, pid)),
        Ok(Err(error)) => Err(super::broken(error)),
        Err(_) => Err(Failure::new(failure::Kind::Internal, "the executor takes connections but does not answer")
            .hint(pid.map_or_else(|| "start the daemon again".into(), |pid| format!("end it: `kill {pid}`")))),
    }
}

fn other_version(version: u32, pid: Option<u32>) -> Failure {
    let message =
        format!("an executor of another malai still runs: it speaks version {version}, this daemon {VERSION}");
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    Failure::new(failure::Kind::Unsupported, message)
        .hint(format!("end it, and the commands that it runs: `kill {pid}`"))
}

type Halves = (FramedRead<ReadHalf<Connection>, FrameCodec>, WriteHalf<Connection>, Sessions);

async fn hello(connection: Connection) -> Result<Halves, CodecError> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = FramedRead::new(reader, FrameCodec::new());
    let hello = Frame::control(Kind::ExecutorHello, &Hello::Control { version: VERSION })?;
    writer.write_all(&hello.to_bytes()).await?;
    let mut all = part(&mut reader).await?;
    let mut more = all.more;
    for _ in 0..MAX_PARTS {
        if !more {
            break;
        }
        let next = part(&mut reader).await?;
        more = next.more;
        all.live.extend(next.live);
        all.ended.extend(next.ended);
    }
    all.more = false;
    Ok((reader, writer, all))
}

async fn part(reader: &mut FramedRead<ReadHalf<Connection>, FrameCodec>) -> Result<Sessions, CodecError> {
    let closed = || CodecError::Io(io::ErrorKind::UnexpectedEof.into());
    reader.next().await.ok_or_else(closed)??.expect(Kind::Sessions, "the executor's sessions")
}

/// Connects to the executor of this socket, if one runs.
pub(super) async fn find(socket: &Path) -> Result<Option<Opened>, Failure> {
    let until = Instant::now() + ANSWER;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                let pid = pid_of(&stream);
                refuse_strangers(&stream, socket)?;
                match open(Box::new(stream), pid).await {
                    // One that is about to end closes what it was sent.
                    Err(failure) if failure.kind == failure::Kind::Internal && Instant::now() < until => {}
                    result => return result.map(Some),
                }
            }
            Err(error) if is_none_there(&error) => return Ok(None),
            Err(error) => {
                let text = format!("cannot connect to {}: {error}", socket.display());
                return Err(Failure::new(failure::Kind::Internal, text).hint("check who may use that socket: `ls -l`"));
            }
        }
        sleep(PAUSE).await;
    }
}

pub(super) fn is_none_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn pid_of(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok())
}

/// Refuses a process of another user that listens where the executor should.
fn refuse_strangers(stream: &UnixStream, socket: &Path) -> Result<(), Failure> {
    match stream.peer_cred() {
        Ok(peer) if Trusted::own().has(peer.uid()) => Ok(()),
        Ok(peer) => {
            let text = format!("a process of user {} listens at {}", peer.uid(), socket.display());
            Err(Failure::new(failure::Kind::BadConfig, text).hint(format!("fuser -v {} shows it", socket.display())))
        }
        Err(error) => {
            let text = format!("{} does not tell who listens: {error}", socket.display());
            Err(Failure::new(failure::Kind::Internal, text))
        }
    }
}

/// Connects to the executor of this socket; where none answers, starts `program`.
pub(super) async fn find_or_start(socket: &Path, program: &Path, args: &[OsString]) -> Result<Opened, Failure> {
    let until = Instant::now() + START;
    let mut started: Option<oneshot::Receiver<Status>> = None;
    let mut last = "it did not open its socket".to_owned();
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                let pid = pid_of(&stream);
                refuse_strangers(&stream, socket)?;
                match open(Box::new(stream), pid).await {
                    // One that is about to end closes what it was sent.
                    Err(failure) if failure.kind == failure::Kind::Internal => last = failure.message,
                    result => return result,
                }
            }
            Err(error) if is_none_there(&error) => {}
            Err(error) => last = format!("cannot connect to {}: {error}", socket.display()),
        }
        let ended = match &mut started {
            None => true,
            Some(exit) => match exit.try_recv() {
                Ok(status) => {
                    last = format!("{} ended at once: {status:?}", program.display());
                    sleep(PAUSE * 10).await;
                    true
                }
                Err(_) => false,
            },
        };
        if Instant::now() >= until {
            return Err(Failure::new(failure::Kind::Internal, format!("the executor cannot be started: {last}"))
                .hint(format!("run it by hand to see why: `{} {}`", program.display(), shown(args))));
        }
        if ended {
            started = Some(launch(program, args).await?);
        }
        sleep(PAUSE).await;
    }
}

/// Collects the status of an executor that this daemon started, whenever it ends.
async fn watch(reaper: Reaper, exit: oneshot::Receiver<Status>, tell: oneshot::Sender<Status>) {
    tokio::select! {
        result = reaper.run(CancellationToken::new()) => if let Err(error) = result {
            tracing::warn!(%error, "the executor's status will not be collected");
        },
        Ok(status) = exit => if tell.send(status).is_err() {
            tracing::debug!(?status, "the executor's process ended");
        },
    }
}

fn shown(args: &[OsString]) -> String {
    let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    args.join(" ")
}

/// Starts the executor's process: a session of its own, /dev/null for descriptors 0 to 2 and no other, `/` as directory.
async fn launch(program: &Path, args: &[OsString]) -> Result<oneshot::Receiver<Status>, Failure> {
    let failed = |why: String| {
        Failure::new(failure::Kind::Internal, format!("cannot start the executor {}: {why}", program.display()))
            .hint("check that malai is installed as it was when the daemon was started, and start the daemon again")
    };
    let prepared = prepare(program, args).map_err(|error| failed(error.to_string()))?;
    let reaper = Reaper::new(false);
    let (_, forked, exit) = reaper.start(&prepared).map_err(|error| failed(error.to_string()))?;
    let said = async {
        let mut said = Vec::new();
        pipe::Receiver::from_owned_fd(forked.exec)?.take(16).read_to_end(&mut said).await?;
        io::Result::Ok(said)
    };
    let said = said.await.map_err(|error| failed(error.to_string()))?;
    match Trouble::parse(&said) {
        Some(trouble) => Err(failed(io::Error::from_raw_os_error(trouble.errno).to_string())),
        None => {
            let (tell, ended) = oneshot::channel();
            tokio::spawn(watch(reaper, exit, tell));
            Ok(ended)
        }
    }
}

fn prepare(program: &Path, args: &[OsString]) -> io::Result<Prepared> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let mut argv = vec![program.clone()];
    for arg in args {
        argv.push(CString::new(arg.as_bytes())?);
    }
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os().filter(|(name, _)| WITHHELD.iter().all(|w| name != w)) {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        env.push(CString::new(variable)?);
    }
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok(Prepared {
        programs: vec![program],
        argv,
        env,
        directories: vec![Directory { path: c"/".to_owned(), pwd: Pwd::AsInherited }],
        identity: None,
        cgroup: None,
        stdio: [null()?, null()?, null()?],
        open_files: None,
        core: secrecy::given_core_limit(),
        tag: None,
    })
}
