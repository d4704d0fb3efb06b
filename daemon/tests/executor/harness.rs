//! One executor in this process, a daemon's control connection to it, and callers.

use std::path::Path;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use malai_daemon::executor::{Connection, Incoming, Options, run};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::{FollowerId, MachineId};
use malai_protocol::plan::{Attachment, Ended, Hello, Plan, SessionName, Sessions, Tree, VERSION};
use malai_protocol::session::{Ack, Attached, ExitRecord, Signal, Started, Status, StdinAck};

pub(crate) use crate::plan::plan;
pub(crate) use crate::process::{lives, until, within};

/// The pid in a file that a command writes.
pub(crate) async fn pid_in(path: &Path) -> u32 {
    until("the command writes its pid", || std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))).await;
    std::fs::read_to_string(path).expect("reads").trim().parse().expect("a pid")
}

/// A plan for a shell script.
pub(crate) fn script(text: &str) -> Plan {
    plan(&["/bin/sh", "-c", text])
}

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) connections: mpsc::Sender<Connection>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<anyhow::Result<()>>,
    pub(crate) control: Control,
}

impl Lab {
    /// An executor with cgroups where they can be had.
    pub(crate) async fn new() -> Self {
        Self::with(true).await
    }

    pub(crate) async fn with(cgroups: bool) -> Self {
        Self::at(tempfile::tempdir().expect("a directory"), cgroups).await
    }

    /// On a home that another may have used.
    pub(crate) async fn at(dir: tempfile::TempDir, cgroups: bool) -> Self {
        let (connections, incoming) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let options = Options { home: Home::new(dir.path()), cgroups, stop: stop.clone(), log: None };
        let task = tokio::spawn(run(options, Incoming::Channel(incoming)));
        let control = Control::open(&connections).await;
        Self { dir, connections, stop, task, control }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A connection that has said nothing.
    pub(crate) async fn dial(&self) -> Framed<DuplexStream, FrameCodec> {
        dial(&self.connections).await
    }

    pub(crate) async fn new_control(&self) -> Control {
        Control::open(&self.connections).await
    }

    pub(crate) async fn attach(&self, session: SessionName) -> Caller {
        let mut framed = self.dial().await;
        let hello = Hello::Attach(attachment(session, None, 1));
        framed.send(Frame::control(Kind::ExecutorHello, &hello).expect("fits")).await.expect("sent");
        Caller { framed, received: 0, acks: true }
    }

    /// The first attachment of a process that may come back.
    pub(crate) async fn follow(&mut self, plan: Plan, follower: FollowerId) -> Caller {
        let hello = Hello::Attach(attachment(plan.session, Some(follower), 1));
        self.control.send(Kind::Plan, &plan).await;
        self.greet(hello).await
    }

    /// Asks for a session that is there.
    pub(crate) async fn resume(&self, attachment: Attachment, out_offset: u64) -> Caller {
        let received = out_offset;
        let hello = Hello::Resume { attachment, out_offset, from_end: false, take_over: false, resend: None };
        Caller { received, ..self.greet(hello).await }
    }

    pub(crate) async fn greet(&self, hello: Hello) -> Caller {
        let mut framed = self.dial().await;
        framed.send(Frame::control(Kind::ExecutorHello, &hello).expect("fits")).await.expect("sent");
        Caller { framed, received: 0, acks: true }
    }

    /// Starts a session and attaches.
    pub(crate) async fn start(&mut self, plan: Plan) -> Caller {
        let session = plan.session;
        self.control.send(Kind::Plan, &plan).await;
        self.attach(session).await
    }

    /// Runs a session to its end.
    pub(crate) async fn run(&mut self, plan: Plan) -> Done {
        self.start(plan).await.finish().await
    }

    /// Ends the executor: nothing may be left.
    pub(crate) async fn close(self) -> tempfile::TempDir {
        let Self { dir, connections, stop, task, control } = self;
        stop.cancel();
        drop((connections, control));
        within("the executor ends", task).await.expect("no panic").expect("no error");
        dir
    }
}

/// An attachment of this process, binding.
pub(crate) fn attachment(session: SessionName, follower: Option<FollowerId>, number: u32) -> Attachment {
    Attachment { session, by: session.caller, follower, number, binding: true, watches: false }
}

/// The key of another caller: that of RFC 8032's second test.
pub(crate) fn other_caller() -> MachineId {
    MachineId::from_bytes([
        0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a, 0xa7, 0x4d, 0x1b, 0x7e, 0xbc, 0x9c, 0x98,
        0x2c, 0xcf, 0x2e, 0xc4, 0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1, 0x2a, 0xf4, 0x66, 0x0c,
    ])
    .expect("a key")
}

/// The name of a process.
pub(crate) fn process(byte: u8) -> FollowerId {
    FollowerId::from_bytes([byte; 16])
}

/// The same command, which waits for its caller.
pub(crate) fn patient(plan: Plan) -> Plan {
    Plan { grace_ms: 60_000, kill_on_lost: false, ..plan }
}

async fn dial(connections: &mpsc::Sender<Connection>) -> Framed<DuplexStream, FrameCodec> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    connections.send(Box::new(far)).await.expect("the executor takes connections");
    Framed::new(near, FrameCodec::new())
}

/// A daemon's control connection.
pub(crate) struct Control {
    pub(crate) framed: Framed<DuplexStream, FrameCodec>,
    pub(crate) sessions: Sessions,
}

impl Control {
    async fn open(connections: &mpsc::Sender<Connection>) -> Self {
        let mut framed = dial(connections).await;
        let hello = Frame::control(Kind::ExecutorHello, &Hello::Control { version: VERSION }).expect("fits");
        framed.send(hello).await.expect("sent");
        let frame = within("sessions", framed.next()).await.expect("open").expect("a frame");
        let sessions = frame.expect(Kind::Sessions, "sessions").expect("decodes");
        Self { framed, sessions }
    }

    pub(crate) fn tree(&self) -> Tree {
        self.sessions.tree
    }

    pub(crate) async fn send<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        let frame = Frame::control(kind, value).expect("fits");
        self.framed.send(frame).await.expect("the control connection is open");
    }

    /// The next end of a session.
    pub(crate) async fn ended(&mut self) -> Ended {
        let frame = within("an end", self.framed.next()).await.expect("open").expect("a frame");
        frame.expect(Kind::Ended, "an end").expect("decodes")
    }
}

/// A caller's side of an attachment.
pub(crate) struct Caller {
    pub(crate) framed: Framed<DuplexStream, FrameCodec>,
    pub(crate) received: u64,
    /// Whether output is acknowledged as it is received.
    pub(crate) acks: bool,
}

/// How a session went.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: Result<ExitRecord, Failure>,
}

impl Caller {
    /// The next frame; `None` when the executor closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let frame = within("a frame", self.framed.next()).await?.expect("a frame");
        if matches!(frame.kind, Kind::Stdout | Kind::Stderr) {
            self.received += frame.payload.len() as u64;
            if self.acks {
                self.send(Kind::Ack, &Ack { out_offset: self.received }).await;
            }
        }
        Some(frame)
    }

    pub(crate) async fn started(&mut self) -> Started {
        self.next().await.expect("open").expect(Kind::Started, "started").expect("decodes")
    }

    pub(crate) async fn attached(&mut self) -> Attached {
        self.next().await.expect("open").expect(Kind::Attached, "attached").expect("decodes")
    }

    pub(crate) async fn refused(&mut self) -> Failure {
        self.next().await.expect("open").expect(Kind::Refused, "refused").expect("decodes")
    }

    /// The next frame of this kind; output before it is passed over.
    pub(crate) async fn wait_for(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.next().await.expect("open");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    pub(crate) async fn send<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        self.raw(Frame::control(kind, value).expect("fits")).await;
    }

    pub(crate) async fn raw(&mut self, frame: Frame) {
        within("the executor reads", self.framed.send(frame)).await.expect("open");
    }

    pub(crate) async fn stdin(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(malai_protocol::codec::MAX_DATA) {
            self.raw(Frame::data(Kind::Stdin, Bytes::copy_from_slice(chunk))).await;
        }
    }

    pub(crate) async fn signal(&mut self, number: u8) {
        self.send(Kind::Signal, &Signal { number, order: 0 }).await;
    }

    /// Reads all to the last frame, after which the executor must say nothing more.
    pub(crate) async fn finish(mut self) -> Done {
        let mut done = Done {
            stdout: Vec::new(),
            stderr: Vec::new(),
            end: Err(Failure::new(malai_protocol::failure::Kind::Internal, "no end")),
        };
        loop {
            let frame = self.next().await.expect("an end before the executor closes");
            match frame.kind {
                Kind::Started | Kind::Attached | Kind::StdinClosed => {}
                Kind::StdinAck => drop(frame.decode::<StdinAck>().expect("decodes")),
                Kind::Stdout => done.stdout.extend_from_slice(&frame.payload),
                Kind::Stderr => done.stderr.extend_from_slice(&frame.payload),
                Kind::Exit => {
                    done.end = Ok(frame.decode().expect("decodes"));
                    // A session that waits for nobody may be gone already.
                    drop(within("the executor reads", self.framed.send(Frame::empty(Kind::Goodbye))).await);
                    break;
                }
                Kind::Refused => {
                    done.end = Err(frame.decode().expect("decodes"));
                    break;
                }
                kind => panic!("{kind:?} to a caller"),
            }
        }
        assert!(self.next().await.is_none(), "something follows the end");
        done
    }
}

impl Done {
    #[track_caller]
    pub(crate) fn record(&self) -> &ExitRecord {
        self.end.as_ref().expect("it ran")
    }

    #[track_caller]
    pub(crate) fn failure(&self) -> &Failure {
        self.end.as_ref().expect_err("it was refused")
    }

    #[track_caller]
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("UTF-8")
    }

    pub(crate) fn code(&self) -> Option<u8> {
        match self.record().status {
            Status::Exited { code } => Some(code),
            Status::Signalled { .. } => None,
        }
    }
}

/// What only works with cgroups cannot be shown without; in CI that is a failure.
pub(crate) fn has_cgroups(lab: &Lab) -> bool {
    let has = lab.control.tree() == Tree::Cgroup;
    assert!(has || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI needs a writable cgroup v2");
    has
}
