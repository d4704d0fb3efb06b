//! A home of its own for each test, the real binary in it, and a daemon that speaks frames by hand.

#![allow(clippy::unwrap_used, reason = "a test's scaffolding ends the test when it breaks")]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::local::{Hello, Request, Response, VERSION};
use malai_protocol::session::{Attach, Attached, EndedBy, ExitRecord, STDIN_CREDIT, Started, Status, StdinAck};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal as Number, kill};
use nix::unistd::Pid;
use tokio_util::codec::Decoder;

/// How long a test waits for anything.
const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The binary with these arguments; its streams are pipes.
    pub(crate) fn malai(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_malai"));
        self.prepare(&mut command);
        command.args(args);
        command
    }

    pub(crate) fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env_remove("MALAI_INVITE").env_remove("COLUMNS").env("MALAI_HOME", self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        wait(self.malai(args).spawn().unwrap())
    }
}

/// A home with a cluster `company`, whose first machine is `laptop`, and which contacts nobody.
pub(crate) fn made() -> Home {
    let home = Home::new();
    let ended = home.run(&["cluster", "init", "company", "--name", "laptop", "--private"]);
    assert_eq!(ended.code, 0, "{ended}");
    home
}

/// Waits for a state, with a deadline.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 3 * SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops the daemon of a home, however the test ends.
pub(crate) struct Stopped<'a>(pub(crate) &'a Home);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // Of several agents that start at once a late one may get the lock when the first has gone.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.0.run(&["daemon", "stop"]);
            if !is_lived_in(self.0) || Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// Whether a process has this home in its environment; not known but on Linux.
fn is_lived_in(home: &Home) -> bool {
    let wanted = [b"MALAI_HOME=", home.path().as_os_str().as_bytes()].concat();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let environments = processes.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.into_iter().any(|all| all.split(|byte| *byte == 0).any(|one| one == wanted))
}

/// Whether this test sees what a daemon or an agent has open: they hide that from all but root. In CI it has to.
#[cfg(target_os = "linux")]
pub(crate) fn sees_what_is_open() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    assert!(root || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "only root sees what a daemon has open");
    root
}

/// How a process ended, and what it wrote to pipes.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Waits for a process, with a deadline.
pub(crate) fn wait(mut child: Child) -> Ended {
    let streams = (child.stdout.take(), child.stderr.take());
    let stdout = std::thread::spawn(move || drain(streams.0));
    let stderr = std::thread::spawn(move || drain(streams.1));
    let deadline = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let code = status.code().unwrap_or(-1);
    Ended { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Sends a signal to a process that was started.
pub(crate) fn send_signal(child: &Child, number: Number) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), number).unwrap();
}

/// A signal that was ignored where the tests were started (`nohup`) would be ignored by the CLI, too, and rightly so.
#[allow(unsafe_code, reason = "the system's call for it is unsafe for handlers, and this sets none")]
pub(crate) fn heed(signal: Number) {
    // SAFETY: the default disposition runs no code of this process.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }
        .expect("a signal that can be set");
}

fn drain(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    stream.into_iter().for_each(|mut stream| {
        stream.read_to_end(&mut bytes).unwrap();
    });
    String::from_utf8(bytes).unwrap()
}

pub(crate) fn record(code: u8, stdout_bytes: u64, stderr_bytes: u64) -> ExitRecord {
    ExitRecord {
        status: Status::Exited { code },
        ended_by: EndedBy::Itself,
        stdout_bytes,
        stderr_bytes,
        duration_ms: 1,
        output_open: false,
        reason: None,
        left: 0,
    }
}

fn started() -> Started {
    let incarnation = Incarnation::from_bytes([1; 16]);
    Started { incarnation, hostname: "web01".into(), pid: 7, user: "u".into(), grace_ms: None }
}

/// Listens where the daemon would.
pub(crate) struct Daemon(UnixListener);

impl Daemon {
    pub(crate) fn bind(home: &Home) -> Self {
        Self(UnixListener::bind(home.path().join("malai.sock")).unwrap())
    }

    pub(crate) fn accept(&self) -> Peer {
        let soon = PollTimeout::try_from(SOON).unwrap();
        let ready = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], soon).unwrap();
        assert!(ready > 0, "nobody came");
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Peer { stream, buffer: BytesMut::new(), codec: FrameCodec::new() }
    }

    /// Takes one request and answers it.
    pub(crate) fn answer(&self, responses: &[Response]) -> Request {
        let mut peer = self.accept();
        peer.greet();
        let request = peer.request();
        responses.iter().for_each(|response| peer.send(Kind::Response, response));
        request
    }
}

/// One CLI, seen from the daemon.
pub(crate) struct Peer {
    stream: UnixStream,
    buffer: BytesMut,
    codec: FrameCodec,
}

impl Peer {
    pub(crate) fn try_next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 65536];
            let n = self.stream.read(&mut bytes).unwrap();
            if n == 0 {
                return None;
            }
            self.buffer.extend_from_slice(&bytes[..n]);
        }
    }

    pub(crate) fn next(&mut self) -> Frame {
        self.try_next().expect("a frame")
    }

    /// The next frame of this kind.
    pub(crate) fn await_kind(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.next();
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The kinds of all frames until the CLI closes.
    pub(crate) fn rest(&mut self) -> Vec<Kind> {
        std::iter::from_fn(|| self.try_next()).map(|frame| frame.kind).collect()
    }

    /// The greeting and the request.
    pub(crate) fn request(&mut self) -> Request {
        let hello: Hello = self.next().expect(Kind::LocalHello, "a greeting").unwrap();
        assert_eq!(hello.version, VERSION);
        self.next().expect(Kind::Request, "a request").unwrap()
    }

    pub(crate) fn send_frame(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.to_bytes()).unwrap();
    }

    pub(crate) fn send<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        self.send_frame(&Frame::control(kind, value).unwrap());
    }

    pub(crate) fn greet(&mut self) {
        self.greet_as(false);
    }

    pub(crate) fn greet_as(&mut self, agent: bool) {
        self.send(Kind::LocalHello, &Hello { version: VERSION, malai: "0.1.0".into(), pid: 1, agent });
    }

    /// Tells that the command runs.
    pub(crate) fn start(&mut self) {
        self.greet();
        self.started();
    }

    /// The same to a CLI that was greeted.
    pub(crate) fn started(&mut self) {
        self.send(Kind::Started, &started());
    }

    /// Takes input up to there.
    pub(crate) fn take_input(&mut self, offset: usize) {
        let offset = offset as u64;
        self.send(Kind::StdinAck, &StdinAck { offset, credit: offset + STDIN_CREDIT });
    }

    /// What is asked for by one that comes back.
    pub(crate) fn attach(&mut self) -> Attach {
        self.request();
        self.next().expect(Kind::Attach, "to follow").unwrap()
    }

    /// Tells that the session is followed from here on.
    pub(crate) fn attached(&mut self, out_offset: u64, stdin_offset: u64) {
        self.attached_as(out_offset, stdin_offset, false);
    }

    /// The same, of a command that takes no more input if `stdin_closed`.
    pub(crate) fn attached_as(&mut self, out_offset: u64, stdin_offset: u64, stdin_closed: bool) {
        self.greet();
        let (incarnation, credit) = (started().incarnation, stdin_offset + STDIN_CREDIT);
        let started = Some(started());
        let attached =
            Attached { incarnation, started, out_offset, stdin_offset, credit, stdin_closed, watches: false };
        self.send(Kind::Attached, &attached);
    }

    pub(crate) fn output(&mut self, kind: Kind, bytes: &'static [u8]) {
        self.send_frame(&Frame::data(kind, bytes::Bytes::from_static(bytes)));
    }

    pub(crate) fn exit(&mut self, record: &ExitRecord) {
        self.send(Kind::Exit, record);
    }
}
