//! Keeps a lead for a file that grows by lines: blocks beyond its end, allocated in advance, so that lines still go in
//! for a while when the disk is full.
//!
//! While the disk has room, the lead is kept at the wanted length. When the disk is full, appending goes on into the
//! lead, and the lead's owner decides which lines may use it. Where a file system cannot allocate blocks beyond the end
//! of a file, there is no lead, and its owner decides nothing by it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::runtime::platform::allocate_beyond_end;

/// Sets the unit in which `stat` counts blocks, on every file system.
const STAT_BLOCK_BYTES: u64 = 512;
/// Sets the smallest part of the lead to ask for: a disk that has no room for the whole lead is asked for half of it,
/// and so on down to this part.
const LEAD_SMALLEST_PART: u64 = 16;
/// Sets the part of the lead that has to be used before it is extended.
const LEAD_USED_PART: u64 = 8;
/// Sets the pause before a disk that was full is asked again.
const LEAD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Holds how far the blocks of an open file reach.
#[derive(Debug)]
pub(crate) struct Lead {
    /// Is how many bytes beyond its end the file should have.
    wanted: u64,
    /// Is the offset up to which blocks are allocated.
    until: u64,
    /// Is when the disk last refused more; absent = it did not.
    refused: Option<Instant>,
    /// Says that the file system cannot allocate beyond the end of a file.
    unsupported: bool,
}

impl Lead {
    /// Takes a lead of `wanted` bytes, as much of it as the disk gives, for a file that was just opened.
    pub(crate) fn open(file: &File, wanted: u64) -> io::Result<Self> {
        let meta = file.metadata()?;
        let until = allocated(&meta).max(meta.len());
        let mut lead = Self { wanted, until, refused: None, unsupported: !meta.is_file() };
        lead.extend(file, meta.len());
        Ok(lead)
    }

    /// Extends the lead of a file of this length, where that is due.
    pub(crate) fn extend(&mut self, file: &File, length: u64) {
        self.until = self.until.max(length);
        let is_due = match self.refused {
            Some(at) => at.elapsed() >= LEAD_RETRY_INTERVAL,
            None => self.left(length) < self.wanted - self.wanted / LEAD_USED_PART,
        };
        if is_due && !self.unsupported {
            self.take(file, length);
        }
    }

    /// Returns how much room there is for lines where the disk takes no more, as [`Lead::last_room`] does. One that has not
    /// enough for `needed` bytes is asked once more: there may be room by now.
    pub(crate) fn room_for(&mut self, file: &File, length: u64, needed: u64) -> Option<u64> {
        self.extend(file, length);
        if self.last_room(length).is_some_and(|room| room < needed) && !self.unsupported {
            self.take(file, length);
        }
        self.last_room(length)
    }

    fn take(&mut self, file: &File, length: u64) {
        let mut part = self.wanted;
        while part >= self.wanted / LEAD_SMALLEST_PART && part > 0 {
            // What is there already was taken before.
            if part < self.wanted && self.left(length) >= part {
                break;
            }
            match allocate_beyond_end(file, length, part) {
                Ok(()) => {
                    self.until = self.until.max(length.saturating_add(part));
                    break;
                }
                Err(error) if is_full(&error) => part /= 2,
                Err(error) => {
                    tracing::debug!(%error, "no room can be taken beyond the end of a file");
                    self.unsupported = true;
                    return;
                }
            }
        }
        self.refused = (part < self.wanted).then(Instant::now);
    }

    /// Returns how many bytes may still be appended to a file of this length although the disk takes no more; `None` where
    /// the disk does, or where that is not known.
    pub(crate) fn last_room(&self, length: u64) -> Option<u64> {
        self.refused.map(|_| self.left(length))
    }

    /// Returns how much of the lead is allocated.
    pub(crate) fn left(&self, length: u64) -> u64 {
        self.until.saturating_sub(length)
    }
}

/// Returns how much of its lead this file has, which another process may have open; `None` where there is no such file,
/// or no lead.
pub(crate) fn left_of(path: &Path) -> Option<u64> {
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some(allocated(&meta).saturating_sub(meta.len())).filter(|left| *left > 0)
}

fn allocated(meta: &std::fs::Metadata) -> u64 {
    meta.blocks().saturating_mul(STAT_BLOCK_BYTES)
}

/// Says whether this error means a full disk.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns the error of a full disk.
pub(crate) fn full() -> io::Error {
    nix::errno::Errno::ENOSPC.into()
}
