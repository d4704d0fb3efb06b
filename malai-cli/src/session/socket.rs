//! A connection to the daemon with one attachment on it: frames out of it, and bytes that wait for it.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

/// Bounds how long the last words to the daemon may take.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Says what was sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The command, for the first time.
    Exec,
    /// The command, once more.
    Again,
    /// That it be followed.
    Attach,
}

/// Says how far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerStage {
    /// The daemon has not greeted.
    Greeting,
    /// The target has not answered.
    Waiting,
    /// The session is followed, and its command is about to run.
    Attached,
    /// The command runs, and is followed.
    Running,
}

/// Says what happened on a socket.
pub(super) enum SocketEvent {
    /// Bytes were written, or could not be.
    Wrote,
    /// A frame came, or what came instead.
    Frame(Option<Result<Frame, CodecError>>),
}

/// Holds a connection with an attachment on it.
pub(super) struct Socket<S> {
    frames: FramedRead<ReadHalf<S>, FrameCodec>,
    to_daemon: WriteHalf<S>,
    /// Bytes for the daemon.
    out: BytesMut,
    /// The daemon still takes bytes. When it does not, what it sent before may still say why.
    is_writable: bool,
    /// The daemon is to see that nothing more comes.
    hangs_up: bool,
    /// What was asked.
    pub(super) asked: Asked,
    /// How far the answer is.
    pub(super) stage: AnswerStage,
    /// The daemon has said that the request is on its way.
    pub(super) is_sent: bool,
}

impl<S: AsyncRead + AsyncWrite> Socket<S> {
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
            stage: AnswerStage::Greeting,
            is_sent: false,
        }
    }

    /// Returns what happens next. Frames are read only if there is room for what they carry. Cancel-safe.
    pub(super) async fn next(&mut self, has_room: bool) -> SocketEvent {
        let writes = self.is_writable && !self.out.is_empty();
        let (to_daemon, out) = (&mut self.to_daemon, &mut self.out);
        let write = async {
            match writes {
                true => to_daemon.write_buf(out).await.is_ok_and(|count| count > 0),
                false => {
                    drop(to_daemon.shutdown().await);
                    false
                }
            }
        };
        tokio::select! {
            is_written = write, if writes || self.hangs_up => {
                self.hangs_up &= writes;
                if !is_written {
                    self.is_writable = false;
                    self.out.clear();
                }
                SocketEvent::Wrote
            }
            frame = self.frames.next(), if has_room => SocketEvent::Frame(frame),
            else => std::future::pending().await,
        }
    }

    /// Tells whether input may follow: its place is known where this is the first sending, and where the target has said
    /// it.
    pub(super) fn takes_input(&self) -> bool {
        self.is_followed() || self.asked == Asked::Exec
    }

    /// Tells whether the session is followed.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self.stage, AnswerStage::Attached | AnswerStage::Running)
    }

    /// Returns how many bytes wait.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Sends nothing more, and still reads what the daemon says.
    pub(super) fn hang_up(&mut self) {
        self.hangs_up = true;
    }

    pub(super) fn queue(&mut self, frame: &Frame) {
        if self.is_writable {
            frame.write_to(&mut self.out);
        }
    }

    /// Leaves in good order.
    pub(super) async fn farewell(mut self) {
        self.queue(&Frame::empty(FrameKind::Goodbye));
        // The session is over on the other side: nothing depends on whether the daemon hears of it from here.
        drop(timeout(FAREWELL_TIMEOUT, self.to_daemon.write_all_buf(&mut self.out)).await);
    }
}
