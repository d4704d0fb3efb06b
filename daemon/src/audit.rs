//! The audit: one JSON object a line, one line before the start of every attempt and one at its end.
//!
//! A line is written with one call at the end of the file; what a full disk cut off is taken back, so that every line
//! is whole. The file is rotated by size and older parts are dropped, so it is bounded.

mod unended;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use malai_protocol::audit::{Entry, KEPT};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use crate::store::disk_failure;

pub(crate) use unended::{Unended, unended};

/// A part is rotated away before it would grow over this.
const MAX_PART: u64 = 10 * 1024 * 1024;

/// End lines that may wait for room on the disk while sessions begin: as many as a table of live sessions holds.
const MAX_OWED_LINES: usize = 4096;

/// The open audit log of one daemon.
#[derive(Debug)]
pub struct Audit {
    home: Home,
    max_part: u64,
    log: Mutex<Log>,
    /// End lines that wait for room on the disk.
    owed: AtomicUsize,
}

/// The newest part.
#[derive(Debug)]
struct Log {
    file: File,
    /// Its last line has no end: a crash cut it off, and the disk had no room for a newline.
    cut: bool,
}

impl Audit {
    /// Opens the log for appending, and makes it when it is not there.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(home: &Home) -> Result<Self, Failure> {
        Self::open_with(home, MAX_PART)
    }

    fn open_with(home: &Home, max_part: u64) -> Result<Self, Failure> {
        let path = home.audit();
        let log = open(&path).map_err(|e| disk_failure("open the audit", &path, &e))?;
        Ok(Self { home: home.clone(), max_part, log: Mutex::new(log), owed: AtomicUsize::new(0) })
    }

    /// Notes how many end lines wait for room on the disk.
    pub(crate) fn owes(&self, number: usize) {
        self.owed.store(number, Ordering::Relaxed);
    }

    /// Appends the line of a session that is about to start.
    ///
    /// # Errors
    /// As [`Audit::append`], and when too many ends of sessions wait to be written.
    pub(crate) fn append_start(&self, entry: &Entry) -> Result<(), Failure> {
        let owed = self.owed.load(Ordering::Relaxed);
        if owed >= MAX_OWED_LINES {
            let text = format!("the ends of {owed} sessions wait to be written into {}", self.home.audit().display());
            return Err(Failure::new(Kind::Internal, text).hint("make room on the disk: `df -h` shows how full it is"));
        }
        self.append(entry).map(drop)
    }

    /// Appends one line, and tells its bytes. It is with the kernel when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says: whatever the line was about must then not happen.
    pub fn append(&self, entry: &Entry) -> Result<u64, Failure> {
        let mut line = serde_json::to_vec(entry)
            .map_err(|e| Failure::new(Kind::Internal, format!("an audit line does not encode: {e}")))?;
        line.push(b'\n');
        // A poisoned lock means that a thread died in between; the file is still a file.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.home.audit();
        self.append_line(&mut log, &path, &line).map_err(|e| disk_failure("write the audit", &path, &e))?;
        Ok(line.len() as u64)
    }

    fn append_line(&self, log: &mut Log, path: &Path, line: &[u8]) -> io::Result<()> {
        let mut meta = log.file.metadata()?;
        let moved = fs::metadata(path).map_or(true, |there| (there.dev(), there.ino()) != (meta.dev(), meta.ino()));
        if moved {
            *log = open(path)?;
            meta = log.file.metadata()?;
        } else if meta.len() > 0 && meta.len() + line.len() as u64 > self.max_part {
            self.rotate(path)?;
            *log = open(path)?;
            meta = log.file.metadata()?;
        }
        if log.cut {
            end_last_line(&mut log.file)?;
            (log.cut, meta) = (false, log.file.metadata()?);
        }
        let written = match log.file.write(line) {
            Ok(n) if n == line.len() => return Ok(()),
            Ok(_) => io::ErrorKind::StorageFull.into(),
            Err(e) => e,
        };
        // Half a line would spoil the next one. If this fails too, the next opening mends it.
        if meta.is_file()
            && let Err(error) = log.file.set_len(meta.len())
        {
            tracing::warn!(%error, "cannot take back half an audit line");
        }
        Err(written)
    }

    /// Moves every part to the next number, the oldest one out.
    fn rotate(&self, path: &Path) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            rename_if_there(&self.home.audit_part(number), &self.home.audit_part(number + 1))?;
        }
        rename_if_there(path, &self.home.audit_part(1))
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open(path: &Path) -> io::Result<Log> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let cut = match end_last_line(&mut file) {
        // It is ended before the next line. Until then every line is refused, and what it is about; but there is a daemon.
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => true,
        ended => ended.map(|()| false)?,
    };
    Ok(Log { file, cut })
}

/// Ends a line that a crash cut off, so that the next one stands by itself.
fn end_last_line(file: &mut File) -> io::Result<()> {
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
    use malai_protocol::audit::Event;

    use super::*;

    fn entry(reason: &str) -> Entry {
        Entry {
            at_ms: 1,
            event: Event::Start,
            cluster: "company".into(),
            session: "00".into(),
            who: None,
            id52: "id".into(),
            words: vec!["uptime".into()],
            named: None,
            user: None,
            env: Vec::new(),
            reason: Some(reason.into()),
            code: None,
            outcome: None,
            count: None,
            stdout_bytes: None,
            stderr_bytes: None,
            duration_ms: None,
        }
    }

    fn reasons(path: &Path) -> Vec<Option<String>> {
        let text = fs::read_to_string(path).expect("reads");
        text.lines().map(|line| serde_json::from_str::<Entry>(line).ok().and_then(|e| e.reason)).collect()
    }

    fn said(words: &[&str]) -> Vec<Option<String>> {
        words.iter().map(|word| Some((*word).to_owned())).collect()
    }

    #[test]
    fn a_line_is_there_when_append_returns_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let audit = Audit::open(&home).expect("opens");
        audit.append(&entry("one\ntwo")).expect("written");
        assert_eq!(reasons(&home.audit()), said(&["one\ntwo"]));
        assert_eq!(fs::metadata(home.audit()).expect("there").mode() & 0o7777, 0o600);
    }

    #[test]
    fn the_log_is_rotated_by_size_and_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let length = serde_json::to_vec(&entry("0")).expect("encodes").len() as u64 + 1;
        let audit = Audit::open_with(&home, 2 * length).expect("opens");
        for number in 0..9 {
            audit.append(&entry(&number.to_string())).expect("written");
        }
        assert_eq!(reasons(&home.audit()), said(&["8"]));
        assert_eq!(reasons(&home.audit_part(1)), said(&["6", "7"]));
        assert_eq!(reasons(&home.audit_part(4)), said(&["0", "1"]));
        for number in 9..20 {
            audit.append(&entry(&number.to_string())).expect("written");
        }
        let parts = fs::read_dir(dir.path()).expect("lists").count();
        assert_eq!(parts, 1 + KEPT as usize);
        assert!(!home.audit_part(KEPT + 1).exists());
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_silent_loss() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
        let audit = Audit::open(&home).expect("opens");
        let failed = audit.append(&entry("lost")).expect_err("no space");
        assert!(failed.message.starts_with("cannot write the audit "), "{failed}");
        assert!(failed.hint.is_some_and(|hint| hint.contains("df -h")));
    }

    #[test]
    fn a_line_that_a_crash_cut_off_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        fs::write(home.audit(), "{\"at_ms\":1,\"ev").expect("written");
        Audit::open(&home).expect("opens").append(&entry("whole")).expect("written");
        assert_eq!(reasons(&home.audit()), [None, Some("whole".to_owned())]);
    }

    #[test]
    fn a_log_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let audit = Audit::open(&home).expect("opens");
        audit.append(&entry("one")).expect("written");
        fs::rename(home.audit(), dir.path().join("elsewhere")).expect("moved");
        audit.append(&entry("two")).expect("written");
        assert_eq!(reasons(&home.audit()), said(&["two"]));
    }
}
