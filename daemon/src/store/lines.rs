//! Reads files of lines, also where the writer died in the middle of one or the disk spoilt some. All that stands
//! between two line ends is one line, whatever its length, and no part of it passes for another.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};

/// Reads lines of bounded length.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    cap: usize,
    at: u64,
    number: u64,
}

/// Holds one line of a file, or the beginning of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'b> {
    /// Counts lines from 1.
    pub number: u64,
    /// Is the offset at which it begins.
    pub at: u64,
    /// Is its length in bytes, without its end, also of what was not kept.
    pub length: u64,
    /// Holds its bytes, without its end; of a line over the cap only the first ones.
    pub bytes: &'b [u8],
    /// Says whether it has a line end.
    pub ended: bool,
}

impl Line<'_> {
    /// Says whether all of its bytes were kept.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.length
    }
}

impl<R: BufRead> Lines<R> {
    /// Returns a reader of lines. Of a line over `cap` bytes it keeps only the beginning, and skips the rest.
    pub fn new(reader: R, cap: usize) -> Self {
        Self { reader, cap, at: 0, number: 0 }
    }

    /// Reads the next line into `buffer`; `None` at the end.
    ///
    /// # Errors
    /// What the disk says.
    pub fn next<'b>(&mut self, buffer: &'b mut Vec<u8>) -> io::Result<Option<Line<'b>>> {
        const PART: u64 = 64 * 1024;
        let at = self.at;
        let (mut length, mut rest) = (0u64, Vec::new());
        buffer.clear();
        let ended = loop {
            // What is beyond the cap is read, too, and dropped.
            let into = if length == 0 { &mut *buffer } else { &mut rest };
            into.clear();
            let most = if length == 0 { self.cap as u64 + 1 } else { PART };
            let read = self.reader.by_ref().take(most).read_until(b'\n', into)?;
            self.at += read as u64;
            let ended = into.pop_if(|byte| *byte == b'\n').is_some();
            length += (read - usize::from(ended)) as u64;
            if ended || read == 0 {
                break ended;
            }
        };
        buffer.truncate(self.cap);
        if self.at == at {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, at, length, bytes: buffer, ended }))
    }
}

/// Ends a line that a crash cut off, so that the next one stands by itself.
///
/// # Errors
/// What the disk says.
pub(crate) fn end_last(file: &mut File) -> io::Result<()> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0u8];
    file.read_exact(&mut last)?;
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers, places, lengths, bytes and whether they have an end.
    fn all(text: &[u8], cap: usize, step: usize) -> Vec<(u64, u64, u64, Vec<u8>, bool)> {
        let mut lines = Lines::new(io::BufReader::with_capacity(step, text), cap);
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next(&mut buffer).expect("reads") {
            found.push((line.number, line.at, line.length, line.bytes.to_vec(), line.ended));
        }
        found
    }

    #[test]
    fn a_line_that_is_too_long_is_one_line_and_the_next_is_read_whole() {
        for step in 1..12 {
            let found = all(b"ab\n0123456789\n\nc", 4, step);
            let expected = [
                (1, 0, 2, b"ab".to_vec(), true),
                (2, 3, 10, b"0123".to_vec(), true),
                (3, 14, 0, Vec::new(), true),
                (4, 15, 1, b"c".to_vec(), false),
            ];
            assert_eq!(found, expected, "{step}");
        }
        assert_eq!(all(b"", 4, 4), []);
    }
}
