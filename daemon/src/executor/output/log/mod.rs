//! The output log: what a command wrote, in the order in which it was read, until its reader has it.
//!
//! Both streams share one offset. What an attachment was handed and did not acknowledge stays, so that the next one goes
//! on at any byte that is still kept. Bytes are read once into buffers that the log and the attachment share.

mod window;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use malai_protocol::codec::MAX_DATA;
use malai_protocol::session::Output as Stream;

pub(crate) use window::Budget;
use window::Window;

/// A buffer with less room than this is not read into: what it would waste is bounded so, and reads are large.
const SPARE: usize = 16 * 1024;
/// What one piece costs beside its bytes: many small writes of two streams in turn must not cost more than the window.
const PIECE: u64 = 64;

/// A stretch of one stream.
#[derive(Debug)]
struct Piece {
    /// The offset of its first byte.
    at: u64,
    stream: Stream,
    bytes: Bytes,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// One session's output.
#[derive(Debug)]
pub(crate) struct Log {
    /// All that is kept, but for what `buffer` still collects.
    pieces: VecDeque<Piece>,
    /// Collects what one stream writes, at most one frame of it.
    buffer: BytesMut,
    /// Of which stream `buffer` is.
    stream: Stream,
    /// The first byte that is kept.
    start: u64,
    /// The first byte that the current attachment was not handed, and the piece that has it.
    handed: u64,
    next: usize,
    /// The first byte that no attachment was handed.
    sent: u64,
    /// The offset of the next byte that is read.
    end: u64,
    window: Window,
}

impl Log {
    /// Empty.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            pieces: VecDeque::new(),
            buffer: BytesMut::new(),
            stream: Stream::Stdout,
            start: 0,
            handed: 0,
            next: 0,
            sent: 0,
            end: 0,
            window: Window::new(budget),
        }
    }

    /// Bytes that the current attachment was not handed.
    pub(crate) fn backlog(&self) -> u64 {
        self.end - self.handed
    }

    /// All that was read is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that were read in all.
    pub(crate) fn total(&self) -> u64 {
        self.end
    }

    /// What is kept costs so many bytes.
    pub(crate) fn kept(&self) -> u64 {
        (self.end - self.start).max(self.pieces.len() as u64 * PIECE)
    }

    /// How many bytes may be read now. `idle`: all that was read has left this process.
    pub(crate) fn room(&mut self, idle: bool) -> u64 {
        let kept = self.kept();
        self.window.room(kept, idle)
    }

    /// Has `read` put at most `limit` bytes of this stream into a buffer; returns how many came.
    pub(crate) fn read(
        &mut self,
        stream: Stream,
        limit: usize,
        read: impl FnOnce(&mut Limit<&mut BytesMut>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.stream != stream {
            self.seal();
            self.stream = stream;
        }
        if self.spare() < SPARE.min(limit) {
            self.seal();
            if self.spare() < SPARE.min(limit) {
                self.buffer = BytesMut::with_capacity(MAX_DATA);
            }
        }
        let limit = limit.min(self.spare());
        let length = read(&mut (&mut self.buffer).limit(limit))?;
        self.end += length as u64;
        Ok(length)
    }

    /// How much the buffer may still take.
    fn spare(&self) -> usize {
        self.buffer.capacity().min(MAX_DATA).saturating_sub(self.buffer.len())
    }

    /// Makes a piece of what was collected.
    fn seal(&mut self) {
        if !self.buffer.is_empty() {
            let bytes = self.buffer.split().freeze();
            self.pieces.push_back(Piece { at: self.end - bytes.len() as u64, stream: self.stream, bytes });
        }
    }

    /// What the current attachment is to be sent next, at most one frame of one stream.
    pub(crate) fn take(&mut self) -> Option<(Stream, Bytes)> {
        if self.next == self.pieces.len() {
            self.seal();
        }
        let piece = self.pieces.get(self.next)?;
        let skip = usize::try_from(self.handed - piece.at).unwrap_or(usize::MAX);
        let bytes = piece.bytes.slice(skip.min(piece.bytes.len())..);
        self.next += 1;
        self.handed = piece.end();
        self.sent = self.sent.max(self.handed);
        self.window.handed(self.handed);
        Some((piece.stream, bytes))
    }

    /// The reader has all up to `offset`. False when it cannot have that.
    pub(crate) fn ack(&mut self, offset: u64) -> bool {
        if offset > self.handed {
            return false;
        }
        if offset > self.start {
            self.forget(offset);
        }
        self.window.acked(self.start);
        if self.is_empty() {
            self.pieces = VecDeque::new();
            self.buffer = BytesMut::new();
            self.window.release();
        }
        true
    }

    /// Keeps nothing before `offset`.
    fn forget(&mut self, offset: u64) {
        while self.pieces.pop_front_if(|piece| piece.end() <= offset).is_some() {
            self.next = self.next.saturating_sub(1);
        }
        if let Some(piece) = self.pieces.front_mut()
            && piece.at < offset
        {
            piece.bytes.advance(usize::try_from(offset - piece.at).unwrap_or(usize::MAX).min(piece.bytes.len()));
            piece.at = offset;
        }
        self.start = offset;
    }

    /// Whether output up to there was sent: an attachment may ask for what follows it.
    pub(crate) fn was_sent(&self, offset: u64) -> bool {
        offset <= self.sent
    }

    /// Another attachment wants what follows `offset`. Returns where it begins: later, where that is not kept.
    pub(crate) fn resume(&mut self, offset: u64) -> u64 {
        self.handed = offset.min(self.sent).max(self.start);
        self.next = self.pieces.partition_point(|piece| piece.end() <= self.handed);
        self.window.rerouted();
        self.handed
    }

    /// Drops the oldest, down to the window: for a command that is being ended and must not wait for a reader. Before
    /// anything is lost, the window becomes as large as it may be for a command that nobody reads.
    pub(crate) fn shed(&mut self) {
        self.room(false);
        while self.kept() > self.window.size() {
            self.seal();
            let Some(end) = self.pieces.front().map(Piece::end) else { return };
            self.handed = self.handed.max(end);
            self.next = self.next.max(1);
            self.forget(end);
        }
    }
}

#[cfg(test)]
mod tests;
