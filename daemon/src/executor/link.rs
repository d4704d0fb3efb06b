//! A session's side of its attachment: frames in, at once and always; frames out, as the peer takes them.

use std::future::pending;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::codec::FramedRead;

use malai_protocol::codec::{CodecError, Frame, FrameCodec, HEADER_LEN, Kind};

use super::Connection;

/// How long a session waits for its attachment, and an attachment for its plan: they are sent together.
pub(crate) const MEET: Duration = Duration::from_secs(5);
/// Bytes that wait to be written; with as many, output is not read, and acknowledgements are held and merged.
const OUTBOX: usize = 128 * 1024;
/// How long the peer may take to close after the last frame.
const CLOSE: Duration = Duration::from_secs(10);

/// One attachment: a connection that said which session it follows.
#[derive(Debug)]
pub(crate) struct Attachment {
    number: u32,
    reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
    writer: WriteHalf<Connection>,
}

impl Attachment {
    /// Of a connection whose first frame was read.
    pub(crate) fn new(
        number: u32,
        reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
        writer: WriteHalf<Connection>,
    ) -> Self {
        Self { number, reader, writer }
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
    outbox: BytesMut,
}

/// What happened on the attachment.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame came.
    Frame(Frame),
    /// Something was written, or the attachment came.
    Moved,
    /// There is none any more; why.
    Lost(String),
}

impl Link {
    /// Waits for the attachment.
    pub(crate) fn new(slot: oneshot::Receiver<Attachment>) -> Self {
        Self { state: State::Waiting(slot, Instant::now() + MEET), outbox: BytesMut::new() }
    }

    /// Of an attachment that is there.
    pub(crate) fn of(attachment: Attachment) -> Self {
        Self { state: State::Open(attachment), outbox: BytesMut::new() }
    }

    /// The number of the attachment, once it came.
    pub(crate) fn number(&self) -> Option<u32> {
        match &self.state {
            State::Open(attachment) => Some(attachment.number),
            _ => None,
        }
    }

    /// Nobody follows, and nobody will.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Nothing waits to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// How many bytes of output may be added.
    pub(crate) fn room(&self) -> usize {
        OUTBOX.saturating_sub(self.outbox.len())
    }

    /// Cuts the attachment off.
    pub(crate) fn drop_attachment(&mut self) {
        self.state = State::Gone;
        self.outbox = BytesMut::new();
    }

    /// Queues a control frame.
    pub(crate) fn control<T: Serialize>(&mut self, kind: Kind, value: &T) {
        match Frame::control(kind, value) {
            Ok(frame) => self.frame(&frame),
            // All that is sent here is short by construction.
            Err(error) => tracing::error!(%error, ?kind, "a frame could not be made"),
        }
    }

    /// Queues a frame.
    pub(crate) fn frame(&mut self, frame: &Frame) {
        if !self.is_gone() {
            frame.write_to(&mut self.outbox);
        }
    }

    /// Queues a data frame whose payload `read` puts into the buffer, at most `limit` bytes; returns how many.
    pub(crate) fn data(
        &mut self,
        kind: Kind,
        limit: usize,
        read: impl FnOnce(&mut bytes::buf::Limit<&mut BytesMut>) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        let at = self.outbox.len();
        self.outbox.reserve(HEADER_LEN + limit);
        self.outbox.put_bytes(0, HEADER_LEN);
        let result = read(&mut (&mut self.outbox).limit(limit));
        let length = *result.as_ref().unwrap_or(&0);
        if length == 0 {
            self.outbox.truncate(at);
        } else if let Some(header) = self.outbox.get_mut(at..at + HEADER_LEN) {
            header[0] = kind as u8;
            header[1..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        result
    }

    /// The next thing that happens. Reading never waits for writing. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        match &mut self.state {
            State::Gone => pending().await,
            State::Waiting(slot, until) => match timeout_at(*until, slot).await {
                Ok(Ok(attachment)) => {
                    self.state = State::Open(attachment);
                    Event::Moved
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
                    wrote = write(writer, &mut self.outbox) => match wrote {
                        Ok(()) => Event::Moved,
                        Err(error) => Event::Lost(format!("the attachment broke: {error}")),
                    },
                };
                if let Event::Lost(why) = event { self.lose(&why) } else { event }
            }
        }
    }

    fn lose(&mut self, why: &str) -> Event {
        self.drop_attachment();
        Event::Lost(why.to_owned())
    }

    /// Writes what waits, the last frame included, and then leaves it to the peer to close: closing a socket under
    /// bytes that were not read would take away from the peer what it has not read yet.
    pub(crate) async fn deliver(mut self) {
        while !self.outbox.is_empty() && !self.is_gone() {
            if let Event::Frame(frame) = self.next().await {
                tracing::trace!(kind = ?frame.kind, "after the end");
            }
        }
        let State::Open(Attachment { mut reader, mut writer, .. }) = self.state else {
            return;
        };
        let closed = async {
            writer.shutdown().await?;
            while let Some(frame) = reader.next().await {
                if frame?.kind == Kind::Goodbye {
                    break;
                }
            }
            Ok::<(), CodecError>(())
        };
        tokio::select! {
            result = closed => if let Err(error) = result {
                tracing::debug!(%error, "after the last frame");
            },
            () = sleep_until(Instant::now() + CLOSE) => {}
        }
    }
}

/// Writes some of the buffer; waits for ever when it is empty.
async fn write(writer: &mut WriteHalf<Connection>, outbox: &mut BytesMut) -> std::io::Result<()> {
    if outbox.is_empty() {
        return pending().await;
    }
    let wrote = writer.write_buf(outbox).await?;
    if wrote == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    if outbox.is_empty() {
        // A buffer that was large once is not kept by a session that idles.
        *outbox = BytesMut::new();
    }
    Ok(())
}
