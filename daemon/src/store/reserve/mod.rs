//! The reserve: a file whose blocks were taken while there was room, for one snapshot that a full disk does not let into
//! its own file.
//!
//! A snapshot is written over what is there, so that no new block is needed: a frame of magic, length and checksum, then
//! the bytes. There are two places for it, the beginning and the middle. The one that holds the newest snapshot is not
//! written to where the next one fits into the other, so that a power cut in the middle of a write leaves the earlier
//! one; only a snapshot of more than half the file goes over everything. A place whose frame is zero is empty.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use malai_protocol::codec::MAX_SNAPSHOT;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::snapshot::{Order, Snapshot, order};

use super::owners::Trusted;
use super::{FILE_MODE, disk_failure, room, snapshot};
use crate::runtime::platform::allocate_blocks;

const FRAME_MAGIC: [u8; 8] = *b"malairs1";
/// Magic, length, and the BLAKE3 hash of the bytes.
const FRAME_BYTES: usize = 8 + 8 + 32;
const BLOCK_BYTES: u64 = 4096;
/// Sets the size of a reserve that has room for the largest possible snapshot.
const LARGE_RESERVE_BYTES: u64 = ((FRAME_BYTES + MAX_SNAPSHOT) as u64).next_multiple_of(BLOCK_BYTES);
/// Sets how much room a file system must have for a large reserve.
const LARGE_RESERVE_MIN_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// Sets the size of the reserve on a smaller file system, unless the snapshot needs more.
const SMALL_RESERVE_BYTES: u64 = 256 * 1024;

/// Finds the newest snapshot of `cluster` in this file. What does not verify is logged and does not count: the reserve
/// only ever adds something newer.
pub fn load(path: &Path, cluster: &ClusterId) -> Option<Snapshot> {
    let file = match Trusted::own().open(path) {
        Ok(file) => file?,
        Err(failure) => {
            tracing::error!("the reserve of the snapshot does not count: {failure}");
            return None;
        }
    };
    match newest(&file, path, cluster) {
        Ok(found) => found.map(|found| found.snapshot),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the reserve of the snapshot cannot be read");
            None
        }
    }
}

/// Writes a verified snapshot into the reserve's own blocks, unless it or a newer one is there.
///
/// # Errors
/// What the disk says; [`Kind::Internal`] when there is no reserve, or it is too small.
pub fn save(path: &Path, snapshot: &Snapshot) -> Result<(), Failure> {
    let bytes = snapshot::encode(snapshot)?;
    let fail = |e: io::Error| disk_failure("write", path, &e);
    let Some(file) = Trusted::own().open_with(path, OpenOptions::new().read(true).write(true))? else {
        return Err(Failure::new(Kind::Internal, format!("there is no reserve {}", path.display())));
    };
    let length = file.metadata().map_err(fail)?.len();
    // What cannot be read is not worth keeping from being written over.
    let there = newest(&file, path, &snapshot.header().cluster).unwrap_or_default();
    if there.as_ref().is_some_and(|there| order(snapshot.header(), Some(there.snapshot.header())) != Order::Newer) {
        return Ok(());
    }
    let needed = (FRAME_BYTES + bytes.len()) as u64;
    let Some(at) = place_for(needed, length, there.map(|there| (there.at, there.end))) else {
        let message = format!("the snapshot needs {needed} bytes, and {} has {length}", path.display());
        return Err(Failure::new(Kind::Internal, message));
    };
    let hash = blake3::hash(&bytes);
    let framed = [&FRAME_MAGIC[..], &(bytes.len() as u64).to_le_bytes(), hash.as_bytes(), &bytes];
    file.write_all_at(&framed.concat(), at).and_then(|()| file.sync_data()).map_err(fail)
}

/// Empties the reserve, whose snapshot is in its own file. Makes the reserve where there is none, and enlarges it where it
/// has no room for another snapshot of `snapshot_bytes`.
///
/// # Errors
/// What the disk says, when a snapshot of that size would find no room.
pub fn prepare(path: &Path, snapshot_bytes: usize) -> Result<(), Failure> {
    let needed = (FRAME_BYTES + snapshot_bytes) as u64;
    let prepared = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path)?;
        empty(&file)?;
        if room(path).is_some_and(|room| room.bytes >= LARGE_RESERVE_MIN_FREE_BYTES)
            && allocate(&file, LARGE_RESERVE_BYTES).is_ok()
        {
            return Ok(());
        }
        let wanted = SMALL_RESERVE_BYTES.max((2 * needed).next_multiple_of(BLOCK_BYTES));
        match allocate(&file, wanted) {
            Err(_) if file.metadata()?.len() >= needed => Ok(()),
            allocated => allocated,
        }
    };
    prepared().map_err(|e| {
        // One without room would only look as if there was a reserve.
        if fs::metadata(path).is_ok_and(|meta| meta.len() == 0)
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "an empty reserve stays behind");
        }
        disk_failure("take room for", path, &e)
    })
}

/// Holds a snapshot from the reserve, and its place there.
struct Found {
    snapshot: Snapshot,
    at: u64,
    end: u64,
}

fn newest(file: &File, path: &Path, cluster: &ClusterId) -> io::Result<Option<Found>> {
    let mut newest: Option<Found> = None;
    for at in places(file.metadata()?.len()) {
        let Some(bytes) = framed_at(file, path, at)? else { continue };
        let end = at + (FRAME_BYTES + bytes.len()) as u64;
        match snapshot::verified(path, &bytes, cluster) {
            Ok(snapshot) => {
                let newer = |there: &Found| order(snapshot.header(), Some(there.snapshot.header())) == Order::Newer;
                if newest.as_ref().is_none_or(newer) {
                    newest = Some(Found { snapshot, at, end });
                }
            }
            Err(failure) => tracing::error!("the reserve does not count: {failure}"),
        }
    }
    Ok(newest)
}

/// Returns where a snapshot may begin in a file of this length.
fn places(length: u64) -> [u64; 2] {
    [0, length / 2 / BLOCK_BYTES * BLOCK_BYTES]
}

/// Returns where `needed` bytes go: beside the snapshot that is there, else over it.
fn place_for(needed: u64, length: u64, there: Option<(u64, u64)>) -> Option<u64> {
    let [first, second] = places(length);
    let fits = |at: u64, until: u64| at.checked_add(needed).is_some_and(|end| end <= until);
    match there {
        Some((at, end)) if at == first && end <= second && fits(second, length) => Some(second),
        Some((at, _)) if at == second && second > first && fits(first, second) => Some(first),
        _ => fits(first, length).then_some(first),
    }
}

/// Returns the bytes of a whole frame; `None` when the place is empty, or only half written.
fn framed_at(file: &File, path: &Path, at: u64) -> io::Result<Option<Vec<u8>>> {
    let mut frame = [0u8; FRAME_BYTES];
    if let Err(error) = file.read_exact_at(&mut frame, at) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let Some(rest) = frame.strip_prefix(&FRAME_MAGIC) else { return Ok(None) };
    let Some((length, hash)) = rest.split_first_chunk::<8>() else { return Ok(None) };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length <= MAX_SNAPSHOT {
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, at + FRAME_BYTES as u64) {
            Ok(()) if blake3::hash(&bytes).as_bytes() == hash => return Ok(Some(bytes)),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
    }
    tracing::error!(path = %path.display(), at, "a snapshot in the reserve was written by half: it does not count");
    Ok(None)
}

fn empty(file: &File) -> io::Result<()> {
    let mut emptied = false;
    for at in places(file.metadata()?.len()) {
        let mut magic = [0u8; FRAME_MAGIC.len()];
        if file.read_exact_at(&mut magic, at).is_ok() && magic == FRAME_MAGIC {
            file.write_all_at(&[0; FRAME_BYTES], at)?;
            emptied = true;
        }
    }
    if emptied { file.sync_data() } else { Ok(()) }
}

/// Makes the file at least this long, and allocates all its blocks.
fn allocate(file: &File, length: u64) -> io::Result<()> {
    let before = file.metadata()?.len();
    let length = length.max(before);
    match allocate_blocks(file, length) {
        Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => extend(file, length)?,
        done => done?,
    }
    // One that is large enough already costs no write at every start.
    if length > before { file.sync_all() } else { Ok(()) }
}

/// Writes zeros up to this length, all or none, where the file system cannot allocate blocks otherwise.
fn extend(file: &File, length: u64) -> io::Result<()> {
    let before = file.metadata()?.len();
    let zeros = [0u8; BLOCK_BYTES as usize];
    let mut at = before;
    while at < length {
        let part = zeros.get(..usize::try_from(length - at).unwrap_or(usize::MAX)).unwrap_or(&zeros);
        if let Err(error) = file.write_all_at(part, at) {
            file.set_len(before)?;
            return Err(error);
        }
        at += part.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
