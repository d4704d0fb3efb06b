//! What an earlier executor left.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::plan::{Live, Outcome};

use super::record::split;
use super::segments::{Segment, Segments, start_of};
use super::{ABOUT, END, End, Kept, STARTED, directory_name, now_ms, remove, write_whole};

/// All sessions in the directory, each with its end. What does not read is removed.
///
/// # Errors
/// When the directory cannot be listed.
pub(crate) fn all(directory: &Path) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match one(&path) {
            Ok(kept) => all.push(kept),
            Err(error) if is_broken(&error) => {
                tracing::warn!(%error, path = %path.display(), "kept output does not read: it is removed");
                remove(&path);
            }
            // It may be there the next time.
            Err(error) => tracing::warn!(%error, path = %path.display(), "kept output cannot be read now"),
        }
    }
    Ok(all)
}

/// It is not what a session leaves, and will not become that.
fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotADirectory | NotFound | UnexpectedEof)
}

fn one(path: &Path) -> io::Result<Kept> {
    let about = fs::read(path.join(ABOUT))?;
    let mut size = about.len() as u64;
    let about: Live = serde_json::from_slice(&about).map_err(invalid)?;
    if path.file_name().is_none_or(|name| *name != *directory_name(&about.session)) {
        return Err(invalid("the directory has the name of another session"));
    }
    let mut segments = segments(path)?;
    let (mut end, length) = match end(path)? {
        Some(known) => known,
        None => died(path, &mut segments)?,
    };
    // A clock that was ahead must not keep it for ever.
    end.at_ms = end.at_ms.min(now_ms());
    size += length + segments.iter().map(|segment| segment.size).sum::<u64>();
    let segments = Arc::new(Segments::found(path.to_owned(), segments, end.total));
    Ok(Kept { about, end, segments, size })
}

/// How it ended, if that is known, and the length of the file that says so.
fn end(path: &Path) -> io::Result<Option<(End, u64)>> {
    let json = match fs::read(path.join(END)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        json => json?,
    };
    match serde_json::from_slice(&json) {
        Ok(end) => Ok(Some((end, json.len() as u64))),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the end of a session does not read");
            Ok(None)
        }
    }
}

/// Its executor died over it: that is its end. Half a record is cut off.
fn died(path: &Path, segments: &mut VecDeque<Segment>) -> io::Result<(End, u64)> {
    let mut total = 0;
    if let Some(last) = segments.back_mut() {
        let file = file_of(path, last.start);
        let whole = whole(&file, last.start)?;
        (last.size, total) = whole;
    }
    if let Some(last) = segments.pop_back_if(|last| last.size == 0) {
        remove(&file_of(path, last.start));
    }
    let message = "the executor died while the command ran: how it ended is not known";
    let outcome = Outcome::Refused(Failure::new(Kind::Unknown, message));
    let started = fs::read(path.join(STARTED)).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let end = End { started, outcome, total, at_ms: now_ms() };
    let json = serde_json::to_vec(&end)?;
    if let Err(error) = write_whole(path, END, &json) {
        tracing::warn!(%error, path = %path.display(), "the end of a session cannot be written down");
    }
    Ok((end, json.len() as u64))
}

/// Cuts a segment's file after its last whole record: its size then, and the offset where that ends.
fn whole(path: &Path, start: u64) -> io::Result<(u64, u64)> {
    let bytes = fs::read(path)?;
    let (mut size, mut end) = (0, start);
    let mut rest = bytes.as_slice();
    while let Some((record, after)) = split(rest).filter(|(record, _)| record.at >= end) {
        size += record.size();
        end = record.end();
        rest = after;
    }
    if !rest.is_empty() {
        tracing::warn!(path = %path.display(), bytes = rest.len(), "half a record is cut off");
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    Ok((size, end))
}

/// The segments that are there, oldest first.
fn segments(path: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if let Some(start) = entry.file_name().to_str().and_then(start_of) {
            segments.push(Segment { start, size: entry.metadata()?.len() });
        } else if ![ABOUT, STARTED, END].iter().any(|known| entry.file_name() == *known) {
            // Half an end, most likely.
            remove(&entry.path());
        }
    }
    segments.sort_unstable_by_key(|segment| segment.start);
    Ok(segments.into())
}

fn file_of(path: &Path, start: u64) -> PathBuf {
    Segments::new(path.to_owned()).file(start)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
