//! Reads one session's output, while it is written and afterwards.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use malai_protocol::codec::MAX_DATA;
use malai_protocol::session::Output as Stream;

use super::record::{HEADER, Record, split};
use super::segments::{Segment, Segments};

/// A stretch of one stream, at most [`MAX_DATA`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The offset of its first byte.
    pub(crate) at: u64,
    /// Of which stream.
    pub(crate) stream: Stream,
    /// Empty only where nothing up to `at` is kept: output goes on there.
    pub(crate) bytes: Bytes,
}

/// One reader. It holds no file open.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub(super) segments: Arc<Segments>,
    cursor: Cursor,
}

/// Where a reader that goes on finds the next record: all records before it end at or before `at`.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// The segment, by its start.
    segment: u64,
    /// Bytes from the beginning of its file.
    position: u64,
    at: u64,
}

impl Reader {
    pub(super) fn new(segments: Arc<Segments>) -> Self {
        Self { segments, cursor: Cursor::default() }
    }

    /// Output from `offset` on, at most `most` bytes and at least one, in order. Nothing when nothing follows `offset` yet.
    /// Where a piece begins later than the one before it ended, or the first later than `offset`, the output between is not
    /// kept; where no byte that follows is, the one piece is empty, and later output goes on at it.
    ///
    /// # Errors
    /// When the disk does not give what should be there.
    pub(crate) fn read(&mut self, offset: u64, most: usize) -> io::Result<Vec<Piece>> {
        let (segments, end) = self.segments.from(offset);
        if offset >= end {
            return Ok(Vec::new());
        }
        let mut taken = Taken { at: offset, room: most.max(1), pieces: Vec::new() };
        for (segment, until) in segments {
            match self.read_segment(segment, until, &mut taken) {
                Ok(()) if taken.room > 0 => {}
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // The writer dropped it meanwhile, unless its index says otherwise.
                    if self.segments.has(segment.start) {
                        tracing::warn!(path = %self.segments.file(segment.start).display(), "kept output is gone");
                    }
                }
                Err(_) if !taken.pieces.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken.finish(end))
    }

    /// The first byte that is kept, and the offset after the last.
    pub(crate) fn range(&self) -> Range<u64> {
        self.segments.range()
    }

    fn read_segment(&mut self, segment: Segment, until: u64, taken: &mut Taken) -> io::Result<()> {
        let Cursor { segment: start, mut position, at } = self.cursor;
        if start != segment.start || at > taken.at {
            position = 0;
        }
        let file = File::open(self.segments.file(segment.start))?;
        let mut buffer = Vec::new();
        while position < segment.size && taken.room > 0 {
            // Always enough for a whole record.
            let window = taken.room.saturating_add(HEADER + MAX_DATA);
            let left = usize::try_from(segment.size - position).unwrap_or(usize::MAX);
            buffer.resize(window.min(left), 0);
            file.read_exact_at(&mut buffer, position)?;
            let before = position;
            let mut rest = buffer.as_slice();
            let mut whole = true;
            while whole && let Some((record, after)) = split(rest).filter(|(record, _)| record.end() <= until) {
                whole = taken.take(&record);
                if whole {
                    position += record.size();
                    rest = after;
                }
            }
            self.cursor = Cursor { segment: segment.start, position, at: taken.at };
            if position == before && whole {
                let path = self.segments.file(segment.start);
                tracing::warn!(path = %path.display(), position, "the rest of this kept output does not read");
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What was read so far.
struct Taken {
    /// The offset that is wanted next.
    at: u64,
    /// How many bytes are still wanted.
    room: usize,
    pieces: Vec<(u64, Stream, BytesMut)>,
}

impl Taken {
    /// Takes what is wanted of a record. False when there was no room for its last byte.
    fn take(&mut self, record: &Record<'_>) -> bool {
        if record.end() <= self.at {
            return true;
        }
        let skip = usize::try_from(self.at.saturating_sub(record.at)).unwrap_or(usize::MAX);
        let wanted = record.bytes.get(skip..).unwrap_or_default();
        let bytes = wanted.get(..self.room).unwrap_or(wanted);
        let at = record.at.max(self.at);
        if bytes.is_empty() {
            return false;
        }
        match self.pieces.last_mut() {
            Some((_, stream, last))
                if at == self.at && *stream == record.stream && last.len() + bytes.len() <= MAX_DATA =>
            {
                last.extend_from_slice(bytes);
            }
            _ => self.pieces.push((at, record.stream, BytesMut::from(bytes))),
        }
        self.at = at + bytes.len() as u64;
        self.room -= bytes.len();
        bytes.len() == wanted.len()
    }

    fn finish(self, end: u64) -> Vec<Piece> {
        if self.pieces.is_empty() {
            return vec![Piece { at: end, stream: Stream::Stdout, bytes: Bytes::new() }];
        }
        let pieces = self.pieces.into_iter();
        pieces.map(|(at, stream, bytes)| Piece { at, stream, bytes: bytes.freeze() }).collect()
    }
}
