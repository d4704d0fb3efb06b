//! The CLI's end of the daemon's socket: find it, check whose it is, greet, ask.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use malai_daemon::store::lock::{self, Holder};
use malai_daemon::store::owners::Trusted;
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{Hello, Request, Response, VERSION};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::Framed;

use crate::background;
use crate::output::Output;

/// How long a daemon may take to greet; it does nothing before.
const GREETING: Duration = Duration::from_secs(10);
/// Bounds the wait for an agent that is still starting: on a busy machine that may take long.
const AGENT_START_LIMIT: Duration = Duration::from_secs(60);
/// Sets when malai says that it waits for an agent.
const AGENT_START_TOLD_AFTER: Duration = Duration::from_secs(3);
/// Sets the pause before another agent is started, when the first one found the home taken by a process that does not
/// answer.
const AGENT_START_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a daemon is waited for that holds its lock and is not reached: it may be starting, and keeps every agent out.
const DAEMON_WITHOUT_SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks for a socket that is about to appear.
const LOOK: Duration = Duration::from_millis(5);
/// Bounds the wait for the socket of a daemon that holds its lock: it binds a socket again that was removed.
const SOCKET_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the time between two looks for that socket.
const SOCKET_BACK_INTERVAL: Duration = Duration::from_millis(50);

/// Who does a request when no daemon runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// An agent, which is started if there is none: the request needs the network.
    Agent,
    /// This process, as far as the disk goes.
    Disk,
}

/// A greeted connection to the daemon.
pub(crate) type Frames = Framed<UnixStream, FrameCodec>;

/// This side's greeting.
pub(crate) fn hello() -> Hello {
    Hello { version: VERSION, malai: env!("CARGO_PKG_VERSION").into(), pid: std::process::id(), agent: false }
}

/// Runs a future on this thread: a CLI has one thing to do.
///
/// # Errors
/// What the future says, or that the runtime cannot start.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}")))?;
    runtime.block_on(future)
}

/// Sends a request to the daemon, or has it done otherwise, and returns the last answer.
///
/// # Errors
/// The failure that was answered, or why there is no answer.
pub(crate) fn request(home: &Home, request: Request, otherwise: Otherwise, out: Output) -> Result<Response, Failure> {
    block_on(async {
        let stream = match otherwise {
            Otherwise::Agent => Some(dial_or_start(home, out).await?),
            Otherwise::Disk => dial_patiently(home, false).await?.ok(),
        };
        let greeted = match stream {
            Some(stream) => Some(greet(stream).await?),
            None => None,
        };
        let answer = match greeted {
            // An agent only calls: what it has in memory of a cluster is not what others go by.
            Some((frames, theirs)) if otherwise == Otherwise::Agent || !theirs.agent => {
                answer(frames, request, out).await?
            }
            _ => {
                // It may read keys.
                malai_daemon::runtime::secrecy::hide_memory();
                malai_daemon::offline(home, request).await
            }
        };
        match answer {
            Response::Failed(failure) => Err(failure),
            answer => Ok(answer),
        }
    })
}

/// The failure of an answer of the wrong kind.
pub(crate) fn unexpected() -> Failure {
    Failure::new(Kind::Internal, "the daemon answered another question").hint(RESTART)
}

/// What to type when the daemon is of another version.
pub(crate) const RESTART: &str = "the daemon may be of another version; restart it: malai daemon stop; malai daemon; \
     under systemd: systemctl restart malai";

/// Connects to the socket, starting an agent when nobody listens.
///
/// # Errors
/// When the socket is not ours to trust, or no agent comes up.
pub(crate) async fn dial_or_start(home: &Home, out: Output) -> Result<UnixStream, Failure> {
    match dial(home).await? {
        Some(stream) => Ok(stream),
        None => start_agent(home, out).await,
    }
}

/// Connects to the socket; `None` when nobody listens there.
///
/// # Errors
/// When the socket cannot be reached for another reason, or is not ours to trust.
pub(crate) async fn dial(home: &Home) -> Result<Option<UnixStream>, Failure> {
    let path = home.socket();
    match UnixStream::connect(&path).await {
        Ok(stream) => {
            check_owner(home, &stream)?;
            Ok(Some(stream))
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(Failure::new(Kind::Internal, format!("the daemon's socket {} fails: {e}", path.display()))),
    }
}

/// Connects to the socket of a daemon, with `agents` of an agent too, and waits for one that was removed and comes
/// back. Without a connection, returns the holder of the lock, if there is one.
///
/// # Errors
/// As [`dial`], and when the lock cannot be looked at.
pub(crate) async fn dial_patiently(home: &Home, agents: bool) -> Result<Result<UnixStream, Option<Holder>>, Failure> {
    let deadline = Instant::now() + SOCKET_BACK_TIMEOUT;
    loop {
        if let Some(stream) = dial(home).await? {
            return Ok(Ok(stream));
        }
        match lock::find_holder(home)? {
            Some(holder) if (agents || !holder.agent) && Instant::now() < deadline => sleep(SOCKET_BACK_INTERVAL).await,
            holder => return Ok(Err(holder)),
        }
    }
}

/// The socket gets argv, standard input and invites: it has to be ours, or root's, as the directory that it is in.
fn check_owner(home: &Home, stream: &UnixStream) -> Result<(), Failure> {
    let trusted = Trusted::own();
    trusted.check(home)?;
    match trusted.socket(&home.socket()) {
        // It was removed, or replaced, by the one that listened there.
        Err(failure) if failure.kind == Kind::Internal => {}
        looked => looked?,
    }
    let fail = |what: String| {
        Failure::new(Kind::BadConfig, what)
            .hint(format!("see which process that is: fuser -v {}", home.socket().display()))
    };
    let peer = stream.peer_cred().map_err(|e| fail(format!("the socket does not tell who listens: {e}")))?;
    if trusted.has(peer.uid()) {
        Ok(())
    } else {
        Err(fail(format!("a process of user {} listens at {}", peer.uid(), home.socket().display())))
    }
}

/// Starts an agent, and waits until its socket, or that of a faster one, answers. It waits for as long as the agent is
/// starting, and says so when that takes long.
async fn start_agent(home: &Home, out: Output) -> Result<UnixStream, Failure> {
    let begun = Instant::now();
    let mut start = AgentStart::begin(home)?;
    let mut told = false;
    let mut daemon_since = None;
    loop {
        if let Some(stream) = dial(home).await? {
            return Ok(stream);
        }
        if start.has_ended()? {
            // It may have answered and left between the two looks, as one does that a daemon replaces.
            sleep(AGENT_START_AGAIN_AFTER).await;
            if let Some(stream) = dial(home).await? {
                return Ok(stream);
            }
            if let Some(holder) = find_daemon(home)? {
                if daemon_since.get_or_insert_with(Instant::now).elapsed() >= DAEMON_WITHOUT_SOCKET_TIMEOUT {
                    return Err(holder.unreachable(home));
                }
            } else {
                daemon_since = None;
            }
            start = AgentStart::begin(home)?;
        }
        let waited = begun.elapsed();
        if waited >= AGENT_START_LIMIT {
            return Err(match lock::find_holder(home)?.filter(|holder| !holder.agent) {
                Some(holder) => holder.unreachable(home),
                None => agent_is_late(),
            });
        }
        if waited >= AGENT_START_TOLD_AFTER && !std::mem::replace(&mut told, true) {
            out.note(&match find_daemon(home)? {
                Some(holder) => format!("{} holds the lock and is not reached yet; waiting for it…", holder.name()),
                None => STILL_STARTING.to_owned(),
            });
        }
        sleep(LOOK).await;
    }
}

/// Says that an agent takes long to start.
const STILL_STARTING: &str =
    "no daemon runs here, and the agent that calls in its place is still starting; waiting for it…";

/// The daemon that holds the lock, which an agent does not get then. Who has not written yet who it is may be an agent.
fn find_daemon(home: &Home) -> Result<Option<Holder>, Failure> {
    Ok(lock::find_holder(home)?.filter(|holder| !holder.agent && holder.pid.is_some()))
}

/// Follows an agent that is starting.
struct AgentStart {
    child: background::Child,
    /// Whether it was ready, or found the home taken by another process, which will answer or end.
    was_sound: bool,
}

impl AgentStart {
    fn begin(home: &Home) -> Result<Self, Failure> {
        Ok(Self { child: background::Child::start(home, &["agent"])?, was_sound: false })
    }

    /// Tells whether it has ended without a fault, so that another one may do better.
    fn has_ended(&mut self) -> Result<bool, Failure> {
        match self.child.news() {
            background::News::Report(background::Report::Failed(failure)) if failure.kind != Kind::Conflict => {
                return Err(failure);
            }
            background::News::Report(background::Report::Warning(_)) | background::News::Nothing => return Ok(false),
            background::News::Report(_) => {
                self.was_sound = true;
                return Ok(false);
            }
            background::News::Closed if self.was_sound => return Ok(true),
            background::News::Closed => {}
        }
        Err(Failure::new(Kind::Internal, "no daemon runs here, and the agent ended before it was ready")
            .hint(AGENT_FAILED_HINT))
    }
}

fn agent_is_late() -> Failure {
    let limit = AGENT_START_LIMIT.as_secs();
    let message = format!("no daemon runs here, and the agent's socket did not answer within {limit} s");
    Failure::new(Kind::Internal, message).hint(AGENT_FAILED_HINT)
}

/// Says what to type when no agent starts.
const AGENT_FAILED_HINT: &str = "start a daemon yourself and see what it says: malai daemon --foreground";

/// Greets, asks, tells progress, and returns the last answer.
///
/// # Errors
/// When the daemon does not answer, or not what can be understood.
pub(crate) async fn ask(stream: UnixStream, request: Request, out: Output) -> Result<Response, Failure> {
    let (frames, _) = greet(stream).await?;
    answer(frames, request, out).await
}

/// Greets, and returns who answers.
///
/// # Errors
/// When it does not greet, or speaks another version: nothing was asked.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<(Framed<S, FrameCodec>, Hello), Failure> {
    let mut frames = Framed::new(stream, FrameCodec::new());
    let ours = Frame::control(FrameKind::LocalHello, &hello()).map_err(|e| not_understood(&e))?;
    let none = || Failure::new(Kind::Internal, "the daemon here does not answer").hint("see: malai daemon status");
    // Nothing was asked yet, so that whatever goes wrong here, nothing was done.
    frames.send(ours).await.map_err(|_| none())?;
    let first = timeout(GREETING, frames.next()).await.map_err(|_| none())?.ok_or_else(none)?;
    let theirs = check_greeting(&first.map_err(|e| not_understood(&e))?)?;
    Ok((frames, theirs))
}

/// Asks, tells progress, and returns the last answer.
///
/// # Errors
/// When no answer comes, or none that can be understood.
pub(crate) async fn answer(mut frames: Frames, request: Request, out: Output) -> Result<Response, Failure> {
    send(&mut frames, &request).await?;
    loop {
        match next(&mut frames).await? {
            Response::Progress(words) => out.note(&words),
            last => return Ok(last),
        }
    }
}

/// Sends a request that needs the network to the daemon, or to an agent; [`next`] has the answers.
///
/// # Errors
/// When nobody is there to be asked.
pub(crate) async fn begin(home: &Home, request: &Request, out: Output) -> Result<Frames, Failure> {
    let (mut frames, _) = greet(dial_or_start(home, out).await?).await?;
    send(&mut frames, request).await?;
    Ok(frames)
}

async fn send(frames: &mut Frames, request: &Request) -> Result<(), Failure> {
    let asked = Frame::control(FrameKind::Request, request)
        .map_err(|e| Failure::new(Kind::Usage, format!("the request is too long: {e}")))?;
    frames.send(asked).await.map_err(|e| lost(&e))
}

/// The next answer. Cancel-safe.
///
/// # Errors
/// When none comes, or none that can be understood.
pub(crate) async fn next(frames: &mut Frames) -> Result<Response, Failure> {
    let frame = frames.next().await.ok_or_else(gone)?.map_err(|e| lost(&e))?;
    frame.expect(FrameKind::Response, "a response").map_err(|e| not_understood(&e))
}

/// Checks the daemon's first frame.
///
/// # Errors
/// When it is no greeting, or one of another version.
pub(crate) fn check_greeting(frame: &Frame) -> Result<Hello, Failure> {
    let theirs: Hello = frame.expect(FrameKind::LocalHello, "a greeting").map_err(|e| not_understood(&e))?;
    if theirs.version == VERSION {
        return Ok(theirs);
    }
    Err(Failure::new(
        Kind::Unsupported,
        format!("the daemon here is malai {}, which speaks another version than this {}", theirs.malai, hello().malai),
    )
    .hint(RESTART))
}

fn gone() -> Failure {
    Failure::new(Kind::Unknown, "the daemon here went away before it answered; whether it was done is not known")
        .hint("see: malai daemon status")
}

fn lost(e: &CodecError) -> Failure {
    Failure::new(
        Kind::Unknown,
        format!("the connection to the daemon here broke ({e}); whether it was done is not known"),
    )
    .hint("see: malai daemon status")
}

fn not_understood(e: &CodecError) -> Failure {
    Failure::new(Kind::Internal, format!("the daemon here is not understood: {e}")).hint(RESTART)
}
