//! Where one session's output is: the segments, oldest first, which its writer changes and its readers look up.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How the name of a segment's file ends.
const SUFFIX: &str = ".out";

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The offset of its first byte of output.
    pub(crate) start: u64,
    /// Bytes of the file that are whole records.
    pub(crate) size: u64,
}

/// One session's.
#[derive(Debug)]
pub(crate) struct Segments {
    path: PathBuf,
    index: Mutex<Index>,
}

/// Never locked over the disk.
#[derive(Debug, Default)]
struct Index {
    segments: VecDeque<Segment>,
    end: u64,
}

impl Segments {
    /// None yet, of the session that has this directory.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self::found(path, VecDeque::new(), 0)
    }

    /// Those that were found there, and the offset after the last byte.
    pub(crate) fn found(path: PathBuf, segments: VecDeque<Segment>, end: u64) -> Self {
        Self { path, index: Mutex::new(Index { segments, end }) }
    }

    /// The session's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the segment that begins at this offset.
    pub(crate) fn file(&self, start: u64) -> PathBuf {
        self.path.join(format!("{start:020}{SUFFIX}"))
    }

    /// Makes that file, to be appended to.
    pub(crate) fn make(&self, start: u64) -> io::Result<File> {
        OpenOptions::new().create_new(true).append(true).mode(0o600).open(self.file(start))
    }

    /// The first byte that is kept, and the offset after the last.
    pub(crate) fn range(&self) -> Range<u64> {
        let index = self.index();
        index.segments.front().map_or(index.end, |first| first.start)..index.end
    }

    /// How many, and the sizes of their files together.
    pub(crate) fn count(&self) -> (usize, u64) {
        let index = self.index();
        (index.segments.len(), index.segments.iter().map(|segment| segment.size).sum())
    }

    /// Those that may have output from `offset` on, each with the offset where it ends at the latest; and the offset after
    /// the last byte, of the same moment.
    pub(crate) fn from(&self, offset: u64) -> (Vec<(Segment, u64)>, u64) {
        let index = self.index();
        let first = index.segments.partition_point(|segment| segment.start <= offset).saturating_sub(1);
        let ends = index.segments.iter().skip(first + 1).map(|next| next.start).chain([index.end]);
        (index.segments.iter().skip(first).copied().zip(ends).collect(), index.end)
    }

    /// Whether it is still there.
    pub(crate) fn has(&self, start: u64) -> bool {
        self.index().segments.binary_search_by_key(&start, |segment| segment.start).is_ok()
    }

    /// The newest has this size now, and output is there up to `end`.
    pub(crate) fn wrote(&self, newest: Segment, end: u64) {
        let mut index = self.index();
        match index.segments.back_mut() {
            Some(last) if last.start == newest.start => last.size = newest.size,
            _ => index.segments.push_back(newest),
        }
        index.end = end;
    }

    /// What follows up to `end` is lost.
    pub(crate) fn lost(&self, end: u64) {
        self.index().end = end;
    }

    /// Takes the oldest out; its file is the caller's to remove.
    pub(crate) fn pop(&self) -> Option<Segment> {
        self.index().segments.pop_front()
    }

    /// Nothing is kept any more.
    pub(crate) fn clear(&self) {
        self.index().segments.clear();
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The offset that a segment's file is named by.
pub(crate) fn start_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}
