//! Writes one session's output while it runs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use malai_protocol::codec::MAX_DATA;
use malai_protocol::plan::Live;
use malai_protocol::session::{Output as Stream, Started};

use super::record::{HEADER, Record};
use super::segments::{Segment, Segments};
use super::{END, End, FLOOR, Kept, Reader, STARTED, Spools, remove, write_whole};

/// The one writer of a session. Dropped without its end it leaves the files, and what was reserved for them, to the next
/// executor.
#[derive(Debug)]
pub(crate) struct Spool {
    spools: Arc<Spools>,
    about: Live,
    segments: Arc<Segments>,
    /// What is written to, if that is not full.
    pub(super) current: Option<Current>,
    /// How many segments it has room for.
    reserved: usize,
    /// Bytes that count beside the segments.
    fixed: u64,
}

/// The newest segment.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) file: File,
    segment: Segment,
}

impl Spool {
    pub(super) fn new(spools: Arc<Spools>, about: Live, segments: Arc<Segments>, fixed: u64) -> Self {
        Self { spools, about, segments, current: None, reserved: FLOOR, fixed }
    }

    /// Writes down that it runs.
    ///
    /// # Errors
    /// When that cannot be written: a later executor will not know it, if this one dies.
    pub(crate) fn started(&mut self, started: &Started) -> io::Result<()> {
        write_whole(self.segments.path(), STARTED, &serde_json::to_vec(started)?)
    }

    /// Appends output. The oldest that is kept may have to go for it.
    ///
    /// # Errors
    /// When the disk refuses: these bytes, or the last of them, are lost. The offset goes on all the same, so that readers
    /// see the gap, and later output may succeed.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let end = self.range().end.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.write(stream, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) => {
                    self.segments.lost(end);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes one record of these bytes; returns how many it took.
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<usize> {
        let at = self.range().end;
        let most = usize::try_from(self.spools.limits.segment).unwrap_or(usize::MAX);
        let room = |current: &Current| {
            let used = usize::try_from(current.segment.size).unwrap_or(usize::MAX);
            most.saturating_sub(used).saturating_sub(HEADER)
        };
        let mut current = match self.current.take() {
            Some(current) if room(&current) > 0 => current,
            _ => self.begin(at)?,
        };
        let length = bytes.len().min(MAX_DATA).min(room(&current).max(1));
        let record = Record { stream, at, bytes: bytes.get(..length).unwrap_or_default() };
        if let Err(error) = record.write(&mut current.file) {
            self.cut(current);
            return Err(error);
        }
        current.segment.size += record.size();
        self.segments.wrote(current.segment, record.end());
        self.current = Some(current);
        self.shed();
        Ok(length)
    }

    /// Begins a segment, with more room where that may be had.
    fn begin(&mut self, at: u64) -> io::Result<Current> {
        let needed = self.segments.count().0 + 1;
        let limits = &self.spools.limits;
        if needed > self.reserved
            && needed <= limits.segments()
            && self.spools.state().ledger.grow(self.about.session.caller, limits.segment)
        {
            self.reserved += 1;
        }
        Ok(Current { file: self.segments.make(at)?, segment: Segment { start: at, size: 0 } })
    }

    /// Takes half a record away again. Where that fails the file is left as it is: its index ends before that.
    fn cut(&mut self, current: Current) {
        if current.segment.size == 0 {
            remove(&self.segments.file(current.segment.start));
        } else if current.file.set_len(current.segment.size).is_ok() {
            self.current = Some(current);
        }
    }

    /// Drops the oldest, down to what is reserved: only when a newer one has something in it, so that a full disk does not
    /// empty the spool.
    fn shed(&self) {
        while self.segments.count().0 > self.reserved
            && let Some(oldest) = self.segments.pop()
        {
            remove(&self.segments.file(oldest.start));
        }
    }

    /// Reads what was appended, now and later.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.segments.clone())
    }

    /// The first byte that is kept, and the offset after the last.
    pub(crate) fn range(&self) -> Range<u64> {
        self.segments.range()
    }

    fn reserved(&self) -> u64 {
        self.fixed.saturating_add(self.spools.limits.bytes(self.reserved))
    }

    /// It is over: that is written down, and it is kept for its time. `end.total` becomes what was appended.
    ///
    /// # Errors
    /// When the end cannot be written: this executor keeps it all the same, and writes it when it can: until then the next
    /// one would not know how it ended.
    pub(crate) fn finish(self, mut end: End) -> io::Result<()> {
        end.total = self.range().end;
        let json = serde_json::to_vec(&end)?;
        let written = write_whole(self.segments.path(), END, &json);
        let size = self.fixed + self.segments.count().1 + json.len() as u64;
        let (session, reserved) = (self.about.session, self.reserved());
        let mut state = self.spools.state();
        state.ledger.resize(session.caller, reserved, size);
        state.taken.remove(&session);
        state.keep(Kept { about: self.about, end, segments: self.segments, size });
        if written.is_err() {
            state.unwritten.push(session);
            self.spools.owes.notify_one();
        }
        written
    }

    /// It never ran, and nothing of it is wanted.
    pub(crate) fn discard(self) {
        self.segments.clear();
        self.spools.forget(&self.about.session, self.segments.path(), self.reserved());
    }
}
