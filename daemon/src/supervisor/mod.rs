//! The daemon's side of the executor: finds or starts it, holds the control connection, and opens attachments.

mod ask;
mod control;
mod launch;
pub(crate) mod slot;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::{CancellationToken, DropGuard};

use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{
    Attachment, Audited, CallerGone, End, Ended, Hello, Plan, Program, SessionName, Sessions, Shutdown, Tree,
};
use malai_protocol::session::Resend;

use crate::executor::Connection;

/// How long an ordered shutdown may take: TERM, 5 s, KILL, and the confirmation of the last ends.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long the process may take to go after it closed the connection.
const GONE: Duration = Duration::from_secs(3);
/// How long it may take to say whether it has a session.
const ANSWER: Duration = Duration::from_secs(5);
/// Bounds how long the socket of an executor is waited for when it was removed, and the executor binds it again.
const SOCKET_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks for that socket.
const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Orders that wait to be written.
const ORDERS: usize = 64;
/// What an in-memory connection holds in each direction.
const DUPLEX: usize = 64 * 1024;

/// How to start an executor.
#[derive(Debug)]
pub struct StartOptions {
    /// Whose.
    pub home: Home,
    /// As what.
    pub mode: Mode,
    /// Where to tell what happens. While it is full, further ends wait in the executor.
    pub events: mpsc::Sender<Event>,
}

/// What an executor runs as.
#[derive(Debug, Clone)]
pub enum Mode {
    /// A process of its own, which outlives the daemon's; one that runs already is used.
    Process {
        /// The program, an absolute path.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
    /// A task of this process, for simulations and tests.
    InProcess,
}

/// What an executor tells.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "almost every event is the large one")]
pub enum Event {
    /// A session ended, or a plan came to nothing. To be confirmed with [`Executor::audited`].
    Ended(Ended),
    /// The executor died, or closed the connection unasked; nothing follows. Another may be started: it will tell how
    /// the sessions of this one ended.
    Lost,
}

/// A handle of an executor that runs. When the last one is dropped, the executor takes its daemon to be gone.
#[derive(Debug, Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dial: Dial,
    orders: mpsc::Sender<Frame>,
    sessions: Sessions,
    pid: Option<u32>,
    /// Cancelled when the control connection has ended and every end that it told was delivered.
    gone: CancellationToken,
    /// Its end is ordered, and so no loss.
    closing: Arc<AtomicBool>,
    /// It went while its end was ordered, and so no loss was told.
    untold: Arc<AtomicBool>,
    task: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
    /// Ends the tasks of the control connection, and with them the connection.
    _guard: DropGuard,
}

/// An attachment to a session that is there already.
#[derive(Debug, Clone, Copy)]
pub struct Resume {
    /// To which session, and as whom.
    pub attachment: Attachment,
    /// Output up to here was written out by the follower.
    pub out_offset: u64,
    /// Only output that comes from now on is wanted.
    pub from_end: bool,
    /// It may take the place of another follower.
    pub take_over: bool,
    /// For a request that was sent again.
    pub resend: Option<Resend>,
}

/// What came of a [`Resume`].
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "almost every answer is the large one")]
pub enum Resumed {
    /// The session answers: `Attached`, `Superseded` or `Refused`, and then its other frames.
    Attached {
        /// The answer.
        first: Frame,
        /// What follows, both ways.
        stream: Framed<Connection, FrameCodec>,
    },
    /// No such session is known; a request that was sent again may be run.
    Missing,
}

/// How another connection is made.
#[derive(Debug)]
enum Dial {
    Socket(PathBuf),
    Channel(mpsc::Sender<Connection>),
}

impl Executor {
    /// Connects to the home's executor, and starts one where none runs.
    ///
    /// # Errors
    /// When none can be reached or started within ten seconds, or one of another version runs.
    pub async fn start(options: StartOptions) -> Result<Self, Failure> {
        let StartOptions { home, mode, events } = options;
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let (opened, dial, task) = match mode {
            Mode::Process { program, args } => {
                let socket = home.executor_socket();
                (launch::find_or_start(&socket, &program, &args).await?, Dial::Socket(socket), None)
            }
            Mode::InProcess => {
                let (connections, task) = launch::in_process(home);
                let dial = Dial::Channel(connections);
                (launch::open(dial.connect(&CancellationToken::new()).await?, None).await?, dial, Some(task))
            }
        };
        Ok(Self::over(opened, dial, task, events, stop, guard))
    }

    /// Connects to the home's executor, if one runs.
    ///
    /// # Errors
    /// When the one that runs does not answer, or is of another version.
    pub(crate) async fn find(home: &Home, events: mpsc::Sender<Event>) -> Result<Option<Self>, Failure> {
        let socket = home.executor_socket();
        let Some(opened) = launch::find(&socket).await? else { return Ok(None) };
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        Ok(Some(Self::over(opened, Dial::Socket(socket), None, events, stop, guard)))
    }

    fn over(
        opened: launch::Opened,
        dial: Dial,
        task: Option<JoinHandle<anyhow::Result<()>>>,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
        guard: DropGuard,
    ) -> Self {
        let launch::Opened { reader, writer, sessions, pid } = opened;
        let (orders, taken) = mpsc::channel(ORDERS);
        let (gone, closing, untold) =
            (CancellationToken::new(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        tokio::spawn(stop.clone().run_until_cancelled_owned(control::write(writer, taken)));
        let tell = control::read(reader, events, [closing.clone(), untold.clone()], gone.clone().drop_guard());
        tokio::spawn(stop.run_until_cancelled_owned(tell));
        let task = Mutex::new(task);
        let inner = Inner { dial, orders, sessions, pid, gone, closing, untold, task, _guard: guard };
        Self { inner: Arc::new(inner) }
    }

    /// What the executor had when this handle connected.
    pub fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    /// How sessions' processes are found when they end.
    pub fn tree(&self) -> Tree {
        self.inner.sessions.tree
    }

    /// This life of the executor.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.sessions.incarnation
    }

    /// The version of the protocol that it speaks: this one's, or a neighbour.
    pub fn version(&self) -> u32 {
        self.inner.sessions.version
    }

    /// What it runs, where it told.
    pub fn program(&self) -> Option<Program> {
        self.inner.sessions.program
    }

    /// Whether its control connection has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.inner.gone.is_cancelled()
    }

    /// Whether it was lost while it was told to end, which then came to nothing: no [`Event::Lost`] tells of that.
    pub(crate) fn is_lost_untold(&self) -> bool {
        self.inner.untold.load(Ordering::SeqCst) && !self.inner.closing.load(Ordering::SeqCst)
    }

    /// Its process id; absent when it runs inside this process.
    pub fn pid(&self) -> Option<u32> {
        self.inner.pid
    }

    /// Starts a session.
    ///
    /// # Errors
    /// When the plan is too large to be sent, or the executor is gone.
    pub async fn plan(&self, plan: Plan) -> Result<(), Failure> {
        self.order(Kind::Plan, &plan).await
    }

    /// Tells that the caller of an attachment went away for good.
    ///
    /// # Errors
    /// When the executor is gone.
    pub async fn caller_gone(&self, gone: CallerGone) -> Result<(), Failure> {
        self.order(Kind::CallerGone, &gone).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the executor is gone.
    pub async fn end(&self, end: End) -> Result<(), Failure> {
        self.order(Kind::End, &end).await
    }

    /// Confirms that the end of a session is in the audit.
    ///
    /// # Errors
    /// When the executor is gone: the next one tells of that end again.
    pub async fn audited(&self, session: SessionName) -> Result<(), Failure> {
        self.order(Kind::Audited, &Audited { session }).await
    }

    async fn order<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), Failure> {
        let frame = Frame::control(kind, value).map_err(|error| match error {
            CodecError::TooLong { .. } => Failure::new(failure::Kind::Usage, "the command is too long to be sent")
                .hint("send long data by standard input, or in a file"),
            error => Failure::new(failure::Kind::Internal, format!("the command cannot be sent: {error}")),
        })?;
        if self.inner.gone.is_cancelled() {
            return Err(lost());
        }
        self.inner.orders.send(frame).await.map_err(|_| lost())
    }

    /// Opens an attachment: what follows are the frames of the session, both ways.
    ///
    /// # Errors
    /// When the executor is gone.
    pub async fn attach(&self, attachment: Attachment) -> Result<Framed<Connection, FrameCodec>, Failure> {
        let mut framed = Framed::new(self.inner.dial.connect(&self.inner.gone).await?, FrameCodec::new());
        let hello = Frame::control(Kind::ExecutorHello, &Hello::Attach(attachment)).map_err(broken)?;
        framed.send(hello).await.map_err(broken)?;
        Ok(framed)
    }

    /// Opens an attachment to a session that is there already.
    ///
    /// # Errors
    /// When the executor is gone, or does not answer in time, or is too old for an attachment of another machine.
    pub async fn resume(&self, resume: Resume) -> Result<Resumed, Failure> {
        let Resume { attachment, out_offset, from_end, take_over, resend } = resume;
        if attachment.by != attachment.session.caller {
            self.check_watching()?;
        }
        let mut framed = Framed::new(self.inner.dial.connect(&self.inner.gone).await?, FrameCodec::new());
        let hello = Hello::Resume { attachment, out_offset, from_end, take_over, resend };
        framed.send(Frame::control(Kind::ExecutorHello, &hello).map_err(broken)?).await.map_err(broken)?;
        match timeout(ANSWER, framed.next()).await {
            Ok(Some(Ok(frame))) if frame.kind == Kind::Missing => Ok(Resumed::Missing),
            Ok(Some(Ok(first))) => Ok(Resumed::Attached { first, stream: framed }),
            Ok(Some(Err(error))) => Err(broken(error)),
            Ok(None) => Err(lost()),
            Err(_) => Err(Failure::new(failure::Kind::Internal, "the executor does not answer in time")),
        }
    }

    /// Ends all sessions, which are told `reason`, and then the executor. Meanwhile events go on, and are to be
    /// confirmed; [`Event::Lost`] does not come.
    ///
    /// # Errors
    /// When the executor has not gone after ten seconds. Its going is a loss then, as any other.
    pub async fn shutdown(&self, reason: &str) -> Result<(), Failure> {
        let inner = &self.inner;
        inner.closing.store(true, Ordering::SeqCst);
        let ended = self.end_all(reason).await;
        if ended.is_err() {
            inner.closing.store(false, Ordering::SeqCst);
        }
        ended
    }

    async fn end_all(&self, reason: &str) -> Result<(), Failure> {
        let inner = &self.inner;
        let ending = async {
            if let Err(failure) = self.order(Kind::Shutdown, &Shutdown { reason: reason.to_owned() }).await {
                tracing::debug!(%failure, "the executor went before it was told to");
            }
            inner.gone.cancelled().await;
        };
        if timeout(SHUTDOWN, ending).await.is_err() {
            return Err(self.stays());
        }
        let task = inner.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            return match timeout(GONE, task).await {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(error))) => Err(Failure::new(failure::Kind::Internal, format!("{error:#}"))),
                Ok(Err(error)) => Err(Failure::new(failure::Kind::Internal, format!("the executor failed: {error}"))),
                Err(_) => Err(self.stays()),
            };
        }
        let Some(pid) = inner.pid.and_then(|pid| i32::try_from(pid).ok()) else {
            return Ok(());
        };
        let until = Instant::now() + GONE;
        while kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
            if Instant::now() >= until {
                return Err(self.stays());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn stays(&self) -> Failure {
        let failure = Failure::new(failure::Kind::Internal, "the executor did not end when it was told to");
        match self.inner.pid {
            Some(pid) => failure.hint(format!("look at what it runs, `pstree -p {pid}`, then `kill -9 {pid}`")),
            None => failure,
        }
    }
}

impl Dial {
    /// Connects, unless the executor is `gone`.
    async fn connect(&self, gone: &CancellationToken) -> Result<Connection, Failure> {
        match self {
            Self::Socket(path) => Ok(Box::new(connect(path, gone).await.map_err(|_| lost())?)),
            Self::Channel(connections) => {
                let (near, far) = tokio::io::duplex(DUPLEX);
                connections.send(Box::new(far)).await.map_err(|_| lost())?;
                Ok(Box::new(near))
            }
        }
    }
}

/// Connects to the socket of an executor. While that is there, a socket that is not comes back: it was removed.
async fn connect(path: &Path, gone: &CancellationToken) -> io::Result<UnixStream> {
    let until = Instant::now() + SOCKET_BACK_TIMEOUT;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if launch::is_none_there(&error) && !gone.is_cancelled() && Instant::now() < until => {
                sleep(SOCKET_POLL_INTERVAL).await;
            }
            connected => return connected,
        }
    }
}

fn lost() -> Failure {
    Failure::new(failure::Kind::Internal, "the executor, which runs this machine's commands, is gone")
        .hint("a new one is started at once: run the command again")
}

fn broken(error: CodecError) -> Failure {
    Failure::new(failure::Kind::Internal, format!("the connection to the executor broke: {error}"))
        .hint("run the command again")
}
