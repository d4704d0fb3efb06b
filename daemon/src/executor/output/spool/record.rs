//! One stretch of one stream in a segment's file: stream (u8), length (u32 LE), offset (u64 LE), and the bytes.

use std::fs::File;
use std::io::{self, IoSlice, Write};

use malai_protocol::codec::MAX_DATA;
use malai_protocol::session::Output as Stream;

/// Bytes before the bytes.
pub(crate) const HEADER: usize = 13;

/// What was read from a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) stream: Stream,
    /// The offset of its first byte.
    pub(crate) at: u64,
    /// At least one, at most [`MAX_DATA`].
    pub(crate) bytes: &'a [u8],
}

impl Record<'_> {
    /// The offset after its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.len() as u64)
    }

    /// Its size in the file.
    pub(crate) fn size(&self) -> u64 {
        (HEADER + self.bytes.len()) as u64
    }

    /// Appends it; on an error a part of it may be there.
    pub(crate) fn write(&self, file: &mut File) -> io::Result<()> {
        let stream: u8 = match self.stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        let length = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let mut header = Vec::with_capacity(HEADER);
        header.push(stream);
        header.extend(length.to_le_bytes());
        header.extend(self.at.to_le_bytes());
        let written = match file.write_vectored(&[IoSlice::new(&header), IoSlice::new(self.bytes)]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            written => written?,
        };
        if let Some(rest) = header.get(written..) {
            file.write_all(rest)?;
        }
        file.write_all(self.bytes.get(written.saturating_sub(HEADER)..).unwrap_or_default())
    }
}

/// The first record, and what follows it; none where it is not whole, or is none.
pub(crate) fn split(from: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (stream, rest) = from.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let stream = match stream {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        _ => return None,
    };
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| (1..=MAX_DATA).contains(length))?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    Some((Record { stream, at: u64::from_le_bytes(*at), bytes }, rest))
}
