//! A session's side of its attachment: frames in, at once and always; frames out, as the peer takes them.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::FramedRead;

use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::plan;
use malai_protocol::session::Superseded;

use super::outbox::Outbox;
use crate::executor::Connection;

/// How long a session waits for its attachment, and an attachment for its plan: they are sent together.
pub(crate) const MEET: Duration = Duration::from_secs(5);
/// Bytes that wait to be written; with as many, no output is added, and acknowledgements are held and merged.
pub(crate) const OUTBOX: usize = 128 * 1024;
/// How long the peer may take to take the last frame and to close.
const CLOSE: Duration = Duration::from_secs(10);

/// One attachment: a connection that said which session it follows.
#[derive(Debug)]
pub(crate) struct Attachment {
    who: plan::Attachment,
    reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
    writer: WriteHalf<Connection>,
}

impl Attachment {
    /// Of a connection whose first frame was read.
    pub(crate) fn new(
        who: plan::Attachment,
        reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
        writer: WriteHalf<Connection>,
    ) -> Self {
        Self { who, reader, writer }
    }

    /// What it said.
    pub(crate) fn who(&self) -> plan::Attachment {
        self.who
    }
}

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Attachment>, Instant),
    Open(Attachment),
    Gone,
}

/// The attachment of a session, before, while and after it is there.
#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    /// Frames that wait to be written.
    outbox: Outbox,
}

/// What happened on the attachment.
#[derive(Debug)]
pub(crate) enum Event {
    /// The one that was waited for came.
    Came(plan::Attachment),
    /// A frame came.
    Frame(Frame),
    /// Something was written.
    Moved,
    /// There is none any more; why.
    Lost(String),
}

impl Link {
    /// Waits for the attachment.
    pub(crate) fn new(slot: oneshot::Receiver<Attachment>) -> Self {
        Self { state: State::Waiting(slot, Instant::now() + MEET), outbox: Outbox::default() }
    }

    /// Of an attachment that is there.
    pub(crate) fn of(attachment: Attachment) -> Self {
        Self { state: State::Open(attachment), outbox: Outbox::default() }
    }

    /// Somebody follows.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Nobody follows, and nobody is waited for.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.outbox.len()
    }

    /// Whether more than control frames may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX
    }

    /// Cuts the attachment off.
    pub(crate) fn drop_attachment(&mut self) {
        *self = Self { state: State::Gone, outbox: Outbox::default() };
    }

    /// Follows this one from here on; returns the one whose place it takes.
    pub(crate) fn replace(&mut self, attachment: Attachment) -> Option<Self> {
        let old = std::mem::replace(self, Self::of(attachment));
        old.is_open().then_some(old)
    }

    /// Queues a control frame.
    pub(crate) fn control<T: Serialize>(&mut self, kind: Kind, value: &T) {
        match Frame::control(kind, value) {
            Ok(frame) => self.frame(frame),
            // All that is sent here is short by construction.
            Err(error) => tracing::error!(%error, ?kind, "a frame could not be made"),
        }
    }

    /// Queues a frame.
    pub(crate) fn frame(&mut self, frame: Frame) {
        if !self.is_gone() {
            self.outbox.push(frame);
        }
    }

    /// Queues output.
    pub(crate) fn data(&mut self, kind: Kind, payload: Bytes) {
        self.frame(Frame::data(kind, payload));
    }

    /// The next thing that happens. Reading never waits for writing. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        match &mut self.state {
            State::Gone => pending().await,
            State::Waiting(slot, until) => match timeout_at(*until, slot).await {
                Ok(Ok(attachment)) => {
                    let who = attachment.who;
                    self.state = State::Open(attachment);
                    Event::Came(who)
                }
                _ => self.lose("no attachment came for the session"),
            },
            State::Open(Attachment { reader, writer, .. }) => {
                let event = tokio::select! {
                    frame = reader.next() => match frame {
                        Some(Ok(frame)) => Event::Frame(frame),
                        Some(Err(CodecError::Io(error))) => Event::Lost(format!("the attachment broke: {error}")),
                        Some(Err(error)) => Event::Lost(format!("the attachment broke the protocol: {error}")),
                        None => Event::Lost("the attachment was closed".into()),
                    },
                    wrote = self.outbox.write_to(writer) => match wrote {
                        Ok(()) => Event::Moved,
                        Err(error) => Event::Lost(format!("the attachment broke: {error}")),
                    },
                };
                if let Event::Lost(why) = event { self.lose(&why) } else { event }
            }
        }
    }

    /// Writes what waits and reads nothing; never returns. Cancel-safe.
    pub(crate) async fn write(&mut self) {
        if let State::Open(Attachment { writer, .. }) = &mut self.state {
            // The first read tells of what is broken.
            while self.outbox.write_to(writer).await.is_ok() {}
        }
        pending().await
    }

    fn lose(&mut self, why: &str) -> Event {
        self.drop_attachment();
        Event::Lost(why.to_owned())
    }

    /// Tells the attachment that another one follows now, and drops all else that it was to be sent.
    pub(crate) fn supersede(&mut self, by: &plan::Attachment) {
        self.outbox.cut();
        if let plan::Attachment { by, follower: Some(follower), .. } = *by {
            self.control(Kind::Superseded, &Superseded { by, follower });
        }
    }

    /// Writes what waits, the last frame included, and then leaves it to the peer to close: closing a socket under
    /// bytes that were not read would take away from the peer what it has not read yet.
    pub(crate) async fn deliver(mut self) {
        let delivered = timeout(CLOSE, async {
            // Whoever is waited for has its own time.
            while !self.outbox.is_empty() && !self.is_gone() {
                if let Event::Frame(frame) = self.next().await {
                    tracing::trace!(kind = ?frame.kind, "after the end");
                }
            }
            let State::Open(Attachment { mut reader, mut writer, .. }) = self.state else {
                return Ok(());
            };
            writer.shutdown().await?;
            while let Some(frame) = reader.next().await {
                if frame?.kind == Kind::Goodbye {
                    break;
                }
            }
            Ok::<(), CodecError>(())
        });
        if let Ok(Err(error)) = delivered.await {
            tracing::debug!(%error, "after the last frame");
        }
    }
}
