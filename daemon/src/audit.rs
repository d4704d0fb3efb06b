//! The audit: one JSON object a line, one line before the start of every attempt and one at its end.
//!
//! A line is written with one call at the end of the file; what a full disk cut off is taken back, so that every line
//! is whole. The file is rotated by size and older parts are dropped, so it is bounded.
//!
//! What is to happen waits for its line ([`Audit::append`]). What has happened cannot: a line about it that the disk does
//! not take is owed (`Audit::record`), kept in memory, and written before any other as soon as there is room.

mod unended;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use malai_protocol::audit::{Entry, KEPT};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::requests::blocking;
use crate::shared::Shared;
use crate::store::disk_failure;

pub(crate) use unended::{Unended, unended};

/// A part is rotated away before it would grow over this.
const MAX_PART: u64 = 10 * 1024 * 1024;
/// Bounds the memory that owed lines take.
const MAX_OWED_BYTES: usize = 4 * 1024 * 1024;
/// The first pause before the disk is offered again what is owed; it doubles.
const OWED_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such pause.
const OWED_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(10);

/// End lines that may wait for room on the disk while sessions begin: as many as a table of live sessions holds.
const MAX_WAITING_ENDS: usize = 4096;

/// The open audit log of one daemon.
#[derive(Debug)]
pub struct Audit {
    home: Home,
    max_part: u64,
    log: Mutex<Log>,
    /// How many end lines wait for room on the disk.
    waiting_ends: AtomicUsize,
    /// Something is owed.
    owes: Notify,
}

/// The newest part.
#[derive(Debug)]
struct Log {
    file: File,
    /// Its last line has no end: a crash cut it off, and the disk had no room for a newline.
    cut: bool,
    /// Lines that were not written yet, one after the other, of what has happened already.
    owed: Vec<u8>,
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
        let waiting_ends = AtomicUsize::new(0);
        Ok(Self { home: home.clone(), max_part, log: Mutex::new(log), waiting_ends, owes: Notify::new() })
    }

    /// Notes how many end lines wait for room on the disk.
    pub(crate) fn set_waiting_ends(&self, number: usize) {
        self.waiting_ends.store(number, Ordering::Relaxed);
    }

    /// Appends the line of a session that is about to start.
    ///
    /// # Errors
    /// As [`Audit::append`], and when too many ends of sessions wait to be written.
    pub(crate) fn append_start(&self, entry: &Entry) -> Result<(), Failure> {
        let waiting = self.waiting_ends.load(Ordering::Relaxed);
        if waiting >= MAX_WAITING_ENDS {
            let text =
                format!("the ends of {waiting} sessions wait to be written into {}", self.home.audit().display());
            return Err(Failure::new(Kind::Internal, text).hint("make room on the disk: `df -h` shows how full it is"));
        }
        self.append(entry).map(drop)
    }

    /// Appends one line, and tells its bytes. It is with the kernel when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says: whatever the line was about must then not happen.
    pub fn append(&self, entry: &Entry) -> Result<u64, Failure> {
        let line = line_of(entry)?;
        let mut log = self.lock();
        self.pay_first(&mut log)
            .and_then(|()| self.append_line(&mut log, &self.home.audit(), &line))
            .map_err(|e| self.failure(&e))?;
        Ok(line.len() as u64)
    }

    /// Appends one line about what has happened, and tells its bytes. What the disk does not take is owed: that is no error.
    ///
    /// # Errors
    /// When as much is owed as may be: the line is lost.
    pub(crate) fn record(&self, entry: &Entry) -> Result<u64, Failure> {
        let line = line_of(entry)?;
        let mut log = self.lock();
        let written = self.pay_first(&mut log).and_then(|()| self.append_line(&mut log, &self.home.audit(), &line));
        if let Err(error) = written {
            let failure = self.failure(&error);
            if log.owed.len() + line.len() > MAX_OWED_BYTES {
                return Err(failure);
            }
            log.owed.extend_from_slice(&line);
            tracing::error!("{failure}; the line is kept and written when there is room");
            self.owes.notify_one();
        }
        Ok(line.len() as u64)
    }

    /// Writes what is owed. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn pay(&self) -> Result<(), Failure> {
        self.pay_first(&mut self.lock()).map_err(|e| self.failure(&e))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A poisoned lock means that a thread died in between; the file is still a file.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, error: &io::Error) -> Failure {
        disk_failure("write the audit", &self.home.audit(), error)
    }

    fn pay_first(&self, log: &mut Log) -> io::Result<()> {
        let owed = std::mem::take(&mut log.owed);
        let mut lines = owed.split_inclusive(|byte| *byte == b'\n');
        let mut paid = 0;
        let all = lines.try_for_each(|line| {
            self.append_line(log, &self.home.audit(), line)?;
            paid += line.len();
            Ok(())
        });
        log.owed = owed;
        log.owed.drain(..paid);
        all
    }

    fn append_line(&self, log: &mut Log, path: &Path, line: &[u8]) -> io::Result<()> {
        let mut meta = log.file.metadata()?;
        let moved = fs::metadata(path).map_or(true, |there| (there.dev(), there.ino()) != (meta.dev(), meta.ino()));
        if moved {
            log.begin(path)?;
            meta = log.file.metadata()?;
        } else if meta.len() > 0 && meta.len() + line.len() as u64 > self.max_part {
            self.rotate(path)?;
            log.begin(path)?;
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
        // Half a line would spoil the next one. If this fails too, it is ended before the next one.
        if meta.is_file()
            && let Err(error) = log.file.set_len(meta.len())
        {
            tracing::warn!(%error, "cannot take back half an audit line");
            log.cut = true;
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

impl Log {
    /// Goes on in another file.
    fn begin(&mut self, path: &Path) -> io::Result<()> {
        let Self { file, cut, .. } = open(path)?;
        (self.file, self.cut) = (file, cut);
        Ok(())
    }
}

/// Writes what the audit owes, as soon as the disk takes it.
pub(crate) async fn keep_paying(shared: Arc<Shared>) {
    loop {
        shared.audit.owes.notified().await;
        let mut pause = OWED_RETRY_MIN_INTERVAL;
        loop {
            sleep(pause).await;
            let paying = Arc::clone(&shared);
            if blocking(move || paying.audit.pay()).await.is_ok() {
                break;
            }
            pause = (pause * 2).min(OWED_RETRY_MAX_INTERVAL);
        }
    }
}

fn line_of(entry: &Entry) -> Result<Vec<u8>, Failure> {
    let mut line = serde_json::to_vec(entry)
        .map_err(|e| Failure::new(Kind::Internal, format!("an audit line does not encode: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

fn open(path: &Path) -> io::Result<Log> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let cut = match end_last_line(&mut file) {
        // It is ended before the next line. Until then every line is refused, and what it is about; but there is a daemon.
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => true,
        ended => ended.map(|()| false)?,
    };
    Ok(Log { file, cut, owed: Vec::new() })
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
            owner: None,
            owner_name: None,
            words: vec!["uptime".into()],
            named: None,
            user: None,
            env: Vec::new(),
            reason: Some(reason.into()),
            signal: None,
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
    fn what_has_happened_is_owed_until_there_is_room_and_comes_before_what_follows() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
        let audit = Audit::open(&home).expect("opens");
        for word in ["one", "two"] {
            audit.record(&entry(word)).expect("is owed");
        }
        audit.append(&entry("lost")).expect_err("nothing new is written before what is owed");
        audit.pay().expect_err("no space");
        fs::remove_file(home.audit()).expect("removed");
        audit.append(&entry("three")).expect("written");
        assert_eq!(reasons(&home.audit()), said(&["one", "two", "three"]));
        audit.pay().expect("nothing is owed");
        assert_eq!(reasons(&home.audit()), said(&["one", "two", "three"]));
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
        let audit = Audit::open(&home).expect("opens");
        let large = entry(&"x".repeat(1024 * 1024));
        let owed = (0..10).take_while(|_| audit.record(&large).is_ok()).count();
        assert_eq!(owed, MAX_OWED_BYTES / serde_json::to_vec(&large).expect("encodes").len());
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
