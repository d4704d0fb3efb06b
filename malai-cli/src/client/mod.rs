//! The CLI's end of the daemon's socket: greets and asks. [`dial`] reaches the socket, [`agent`]
//! starts what listens there.

mod agent;
mod dial;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{Hello, Request, Response, VERSION};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use crate::output::Output;

pub(crate) use agent::{dial_or_start, dialler};
pub(crate) use dial::{DialOptions, Dialler, Dialling, dial_patiently};

/// Bounds how long a daemon may take to greet; it does nothing before.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Says what to type when the daemon is of another version.
pub(crate) const RESTART_HINT: &str = "the daemon may be of another version; restart it: malai daemon stop; malai daemon; \
     under systemd: systemctl restart malai";
/// Says what to type when the daemon does not answer.
const STATUS_HINT: &str = "see: malai daemon status";

/// Says what does a request when no daemon runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// An agent, which is started if there is none: the request needs the network.
    Agent,
    /// This process, as far as the disk goes.
    Disk,
}

/// Is a greeted connection to the daemon.
pub(crate) type Frames = Framed<UnixStream, FrameCodec>;

/// Returns this side's greeting.
pub(crate) fn hello() -> Hello {
    Hello::new(env!("CARGO_PKG_VERSION"), std::process::id(), false)
}

/// Runs a future on this thread: a CLI has one thing to do.
///
/// # Errors
/// The future's failure, or that the event loop cannot start.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    event_loop(&mut tokio::runtime::Builder::new_current_thread())?.block_on(future)
}

/// Makes the event loop of a process.
pub(crate) fn event_loop(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Failure> {
    let failure = |e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}"));
    builder.enable_all().build().map_err(failure)
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

/// Returns the failure for an answer of the wrong kind.
pub(crate) fn unexpected() -> Failure {
    Failure::new(Kind::Internal, "the daemon's answer does not fit the request").hint(RESTART_HINT)
}

/// Greets, and returns the daemon's greeting.
///
/// # Errors
/// When it does not greet, or speaks another version: nothing was asked.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<(Framed<S, FrameCodec>, Hello), Failure> {
    let mut frames = Framed::new(stream, FrameCodec::new());
    let ours = Frame::control(FrameKind::LocalHello, &hello()).map_err(|e| not_understood(&e))?;
    let none = || Failure::new(Kind::Internal, "the daemon here does not answer").hint(STATUS_HINT);
    // Nothing was asked yet. Whatever goes wrong here, nothing was done.
    frames.send(ours).await.map_err(|_| none())?;
    let first = timeout(GREETING_TIMEOUT, frames.next()).await.map_err(|_| none())?.ok_or_else(none)?;
    let theirs = check_greeting(&first.map_err(|e| not_understood(&e))?)?;
    Ok((frames, theirs))
}

/// Asks, shows progress, and returns the last answer.
///
/// # Errors
/// When no answer comes, or none that is understood.
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
/// When neither can be asked.
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

/// Returns the next answer. Cancel-safe.
///
/// # Errors
/// When no answer comes, or none that is understood.
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
    let (there, here) = (&theirs.malai, env!("CARGO_PKG_VERSION"));
    let message = format!("the daemon here is malai {there}, whose protocol differs from that of this malai {here}");
    Err(Failure::new(Kind::Unsupported, message).hint(RESTART_HINT))
}

/// Tells whether a connection was lost, and did not break the rules: a daemon that dies leaves frames unread or cut.
pub(crate) fn is_loss(error: &CodecError) -> bool {
    matches!(error, CodecError::Io(_) | CodecError::Truncated)
}

fn gone() -> Failure {
    let message = "the daemon here ended before it answered; it is not known whether it did what was asked";
    Failure::new(Kind::Unknown, message).hint(STATUS_HINT)
}

fn lost(e: &CodecError) -> Failure {
    let message =
        format!("lost the connection to the daemon here ({e}); it is not known whether it did what was asked");
    Failure::new(Kind::Unknown, message).hint(STATUS_HINT)
}

fn not_understood(e: &CodecError) -> Failure {
    Failure::new(Kind::Internal, format!("cannot understand the answer of the daemon here: {e}")).hint(RESTART_HINT)
}
