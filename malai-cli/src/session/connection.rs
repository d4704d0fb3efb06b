//! One connection to the daemon, and what there is in its place while it is lost.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind};
use malai_protocol::failure::Failure;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::FramedRead;

/// How long the last words to the daemon may take.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// A connection that is being made.
pub(crate) type Dialling<S> = Pin<Box<dyn Future<Output = Result<S, Failure>> + Send>>;
/// Makes connections to the daemon.
pub(crate) type Connect<S> = Box<dyn FnMut(Dial) -> Dialling<S> + Send>;

/// How a connection is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dial {
    /// How long it may take, the start of an agent aside.
    pub(crate) within: Duration,
    /// Start an agent when nobody listens. Not at once after a loss: a daemon that is replaced is back in a moment.
    pub(crate) agent: bool,
}

/// What was sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The command, for the first time.
    Exec,
    /// The command, once more.
    Again,
    /// To follow it.
    Attach,
}

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The daemon has not greeted.
    Greeting,
    /// The target has not answered.
    Waiting,
    /// The session is followed, and its command is about to run.
    Attached,
    /// The command runs, and is followed.
    Running,
}

/// The connection, or how there will be one.
pub(super) enum Link<S> {
    /// None until then.
    Down(Instant),
    /// About to be.
    Dialling(Dialling<S>),
    /// There.
    Up(Connection<S>),
}

/// What a link tells.
pub(super) enum Moment<S> {
    Due,
    Dialled(Result<S, Failure>),
    Sent(io::Result<usize>),
    HungUp,
    Frame(Option<Result<Frame, CodecError>>),
}

impl<S: AsyncRead + AsyncWrite> Link<S> {
    /// What happens next; frames are read only if there is room for what they carry. Cancel-safe.
    pub(super) async fn next(&mut self, has_room: bool) -> Moment<S> {
        match self {
            Self::Down(until) => {
                sleep_until(*until).await;
                Moment::Due
            }
            Self::Dialling(dialling) => Moment::Dialled(dialling.await),
            Self::Up(connection) => connection.next(has_room).await,
        }
    }

    pub(super) fn connection(&mut self) -> Option<&mut Connection<S>> {
        match self {
            Self::Up(connection) => Some(connection),
            _ => None,
        }
    }
}

/// A connection with an attachment on it.
pub(super) struct Connection<S> {
    frames: FramedRead<ReadHalf<S>, FrameCodec>,
    to_daemon: WriteHalf<S>,
    /// Bytes for the daemon.
    out: BytesMut,
    /// The daemon still takes bytes; when it does not, what it sent before may still say why.
    is_writable: bool,
    /// It is to be told that nothing more comes.
    hangs_up: bool,
    /// What was asked.
    pub(super) asked: Asked,
    /// How far the answer is.
    pub(super) stage: Stage,
    /// The daemon told that the request is on its way.
    pub(super) sent: bool,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    /// Asks by these first bytes.
    pub(super) fn new(stream: S, asked: Asked, first: BytesMut) -> Self {
        let (from_daemon, to_daemon) = tokio::io::split(stream);
        Self {
            frames: FramedRead::new(from_daemon, FrameCodec::new()),
            to_daemon,
            out: first,
            is_writable: true,
            hangs_up: false,
            asked,
            stage: Stage::Greeting,
            sent: false,
        }
    }

    async fn next(&mut self, has_room: bool) -> Moment<S> {
        let writes = self.is_writable && !self.out.is_empty();
        let (to_daemon, out) = (&mut self.to_daemon, &mut self.out);
        let write = async {
            match writes {
                true => Some(to_daemon.write_buf(out).await),
                false => to_daemon.shutdown().await.err().and(None),
            }
        };
        tokio::select! {
            sent = write, if writes || self.hangs_up => match sent {
                Some(sent) => Moment::Sent(sent),
                None => {
                    (self.hangs_up, self.is_writable) = (false, false);
                    Moment::HungUp
                }
            },
            frame = self.frames.next(), if has_room => Moment::Frame(frame),
            else => std::future::pending().await,
        }
    }

    /// Whether input may follow: its place is known where this is the first sending, and where the target has told it.
    pub(super) fn takes_input(&self) -> bool {
        self.is_answered() || self.asked == Asked::Exec
    }

    /// Whether the session is followed.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Attached | Stage::Running)
    }

    /// How many bytes wait for the socket.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Nothing more is sent; what the daemon still says is read.
    pub(super) fn hang_up(&mut self) {
        self.hangs_up = true;
    }

    pub(super) fn queue(&mut self, frame: &Frame) {
        if self.is_writable {
            frame.write_to(&mut self.out);
        }
    }

    pub(super) fn sent(&mut self, sent: &io::Result<usize>) {
        if !matches!(sent, Ok(1..)) {
            self.is_writable = false;
            self.out.clear();
        }
    }

    /// Leaves in good order.
    pub(super) async fn farewell(mut self) {
        self.queue(&Frame::empty(FrameKind::Goodbye));
        // The session is over on the other side: nothing depends on whether the daemon hears of it from here.
        drop(timeout(FAREWELL, self.to_daemon.write_all_buf(&mut self.out)).await);
    }
}

/// Whether a connection ended so, and did not break its rules: a daemon that dies leaves frames unread or cut.
pub(super) fn is_loss(error: &CodecError) -> bool {
    matches!(error, CodecError::Io(_) | CodecError::Truncated)
}
