//! The audit: one JSON object a line, one line before the start of every attempt and one at its end.
//!
//! A line is written with one call at the end of the file; what a full disk cut off is taken back, so that every line
//! is whole. The file is rotated by size and older parts are dropped, so it is bounded.
//!
//! What is to happen waits for its line (`Audit::append_start`). What has happened cannot: a line about it that the disk
//! does not take is owed (`Audit::record`), kept in memory, and written before any other as soon as there is room.
//!
//! On a full disk, lines go into the file's lead (`store::lead`): enough for a few hundred commands, which let
//! an administrator in to make room. Refusals use only a part of it, and starts leave a part for the ends that will
//! follow them.

pub(crate) mod allowance;
mod unended;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use malai_protocol::audit::{Entry, KEPT};
use malai_protocol::escape;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::runtime::backoff::Backoff;
use crate::runtime::blocking::blocking;
use crate::store::lead::{self, Lead, full, is_full};
use crate::store::{disk_failure, lines, temp_name};
use allowance::Allowances;

pub(crate) use unended::{Unended, unended};

/// Bounds a part of the audit, in bytes: it is rotated away before it would grow over this.
const MAX_PART_BYTES: u64 = 10 * 1024 * 1024;
/// Bounds the memory that owed lines take.
const MAX_OWED_BYTES: usize = 4 * 1024 * 1024;
/// Sets the first pause before what is owed is written again; it doubles.
const OWED_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds that pause.
const OWED_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(10);
/// Sets the room that the audit keeps for a full disk: 300 usual commands, each with two lines of 300 B.
const AUDIT_LEAD_BYTES: u64 = 256 * 1024;
/// Sets how much of that, at its end, is for ends alone: nothing begins there.
const AUDIT_LEAD_FOR_ENDS_BYTES: u64 = 48 * 1024;
/// Sets how much of the lead refusals leave: then they are only counted, until there is room.
const AUDIT_LEAD_WITHOUT_REFUSALS_BYTES: u64 = AUDIT_LEAD_BYTES / 4 * 3;

/// End lines that may wait for room on the disk while sessions begin: as many as a table of live sessions holds.
const MAX_WAITING_ENDS: usize = 4096;

/// Is the open audit log of a home.
#[derive(Debug)]
pub struct Audit {
    home: Home,
    max_part: u64,
    log: Mutex<Log>,
    /// Says what each caller's commands may still write.
    pub(crate) allowances: Allowances,
    /// Counts the end lines that wait for room on the disk.
    waiting_ends: AtomicUsize,
    /// Wakes the writer when something is owed, or the disk is full.
    owes: Notify,
}

/// Is the newest part, and what is not in it yet.
#[derive(Debug)]
struct Log {
    file: File,
    /// Says that its last line has no end: a crash cut it off, and the disk had no room for a newline.
    cut: bool,
    lead: Lead,
    /// Holds lines that were not written yet, one after the other, about what has happened already.
    owed: Vec<u8>,
}

/// Says what a line is about, since not every line may use the last room on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Is about something that begins after its line is written.
    Begins,
    /// Is about something that has happened.
    Happened,
    /// Is about something that was refused.
    Refused,
}

impl Use {
    /// Returns how much of the lead has to be left after such a line.
    fn leaves(self) -> u64 {
        match self {
            Self::Begins => AUDIT_LEAD_FOR_ENDS_BYTES,
            Self::Happened => 0,
            Self::Refused => AUDIT_LEAD_WITHOUT_REFUSALS_BYTES,
        }
    }
}

impl Audit {
    /// Opens the log for appending, and makes it when it is not there.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(home: &Home) -> Result<Self, Failure> {
        Self::open_with(home, MAX_PART_BYTES)
    }

    fn open_with(home: &Home, max_part: u64) -> Result<Self, Failure> {
        let path = home.audit();
        let log = open(&path).map_err(|e| disk_failure("open the audit", &path, &e))?;
        let owes = Notify::new();
        if log.last_room().is_some() {
            owes.notify_one();
        }
        let (waiting_ends, allowances) = (AtomicUsize::new(0), Allowances::default());
        Ok(Self { home: home.clone(), max_part, log: Mutex::new(log), allowances, waiting_ends, owes })
    }

    /// Notes how many end lines wait for room on the disk.
    pub(crate) fn set_waiting_ends(&self, number: usize) {
        self.waiting_ends.store(number, Ordering::Relaxed);
    }

    /// Returns how many bytes the line of this entry has.
    ///
    /// # Errors
    /// As [`Audit::append`], where the entry has no line.
    pub(crate) fn line_bytes(entry: &Entry) -> Result<u64, Failure> {
        Ok(line_of(entry)?.len() as u64)
    }

    /// Appends the line of a session that is about to start.
    ///
    /// # Errors
    /// As [`Audit::append_act`], and when too many ends of sessions wait to be written.
    pub(crate) fn append_start(&self, entry: &Entry) -> Result<(), Failure> {
        let waiting = self.waiting_ends.load(Ordering::Relaxed);
        if waiting >= MAX_WAITING_ENDS {
            let text =
                format!("the end lines of {waiting} sessions cannot be written yet to {}", self.home.audit().display());
            return Err(Failure::new(Kind::Internal, text).hint("make room on the disk: `df -h` shows how full it is"));
        }
        self.append_act(entry).map(drop)
    }

    /// Appends the line of something that is about to be done, and returns its length in bytes. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says: whatever the line was about must then not happen.
    pub(crate) fn append_act(&self, entry: &Entry) -> Result<u64, Failure> {
        self.write(entry, Use::Begins)
    }

    /// Appends one line about what has happened, and returns its length in bytes. The line is with the kernel then. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&self, entry: &Entry) -> Result<u64, Failure> {
        self.write(entry, Use::Happened)
    }

    fn write(&self, entry: &Entry, about: Use) -> Result<u64, Failure> {
        let line = line_of(entry)?;
        let mut log = self.lock();
        self.pay_first(&mut log)
            .and_then(|()| self.append_line(&mut log, &self.home.audit(), &line, about))
            .map_err(|e| self.failure(&e))?;
        Ok(line.len() as u64)
    }

    /// Appends one line about a refusal, and returns its length in bytes. What the disk does not take is owed: that is no
    /// error.
    ///
    /// # Errors
    /// When as much is owed as may be, or the last room on a full disk is kept for others: the line is lost.
    pub(crate) fn record(&self, entry: &Entry) -> Result<u64, Failure> {
        let line = line_of(entry)?;
        let mut log = self.lock();
        let written =
            self.pay_first(&mut log).and_then(|()| self.append_line(&mut log, &self.home.audit(), &line, Use::Refused));
        if let Err(error) = written {
            let failure = self.failure(&error);
            // What is owed comes before what begins, and must not take the last room from it.
            if log.last_room().is_some() || log.owed.len() + line.len() > MAX_OWED_BYTES {
                return Err(failure);
            }
            log.owed.extend_from_slice(&line);
            tracing::error!("{failure}; the line is kept and written when there is room");
            self.owes.notify_one();
        }
        Ok(line.len() as u64)
    }

    /// Writes what is owed, and takes room for a full disk again. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn pay(&self) -> Result<(), Failure> {
        let mut log = self.lock();
        self.pay_first(&mut log)
            .and_then(|()| {
                let length = log.file.metadata()?.len();
                let Log { lead, file, .. } = &mut *log;
                lead.extend(file, length);
                lead.last_room(length).map_or(Ok(()), |_| Err(full()))
            })
            .map_err(|e| self.failure(&e))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A poisoned lock means that a thread died in between; the file is still a file.
        self.log.lock()
    }

    fn failure(&self, error: &io::Error) -> Failure {
        disk_failure("write the audit", &self.home.audit(), error)
    }

    fn pay_first(&self, log: &mut Log) -> io::Result<()> {
        let owed = std::mem::take(&mut log.owed);
        let mut lines = owed.split_inclusive(|byte| *byte == b'\n');
        let mut paid = 0;
        let all = lines.try_for_each(|line| {
            self.append_line(log, &self.home.audit(), line, Use::Happened)?;
            paid += line.len();
            Ok(())
        });
        log.owed = owed;
        log.owed.drain(..paid);
        all
    }

    fn append_line(&self, log: &mut Log, path: &Path, line: &[u8], about: Use) -> io::Result<()> {
        let mut meta = log.file.metadata()?;
        let moved = fs::metadata(path).map_or(true, |there| (there.dev(), there.ino()) != (meta.dev(), meta.ino()));
        if moved {
            log.begin(path)?;
            meta = log.file.metadata()?;
        } else if meta.len() > 0 && meta.len() + line.len() as u64 > self.max_part {
            self.rotate(log, path, meta.len())?;
            meta = log.file.metadata()?;
        }
        self.claim(log, meta.len(), line.len() as u64 + about.leaves())?;
        if log.cut {
            lines::end_last(&mut log.file)?;
            (log.cut, meta) = (false, log.file.metadata()?);
        }
        let written = match log.file.write(line) {
            Ok(n) if n == line.len() => return Ok(()),
            Ok(_) => full(),
            Err(e) => e,
        };
        log.take_back(&meta);
        Err(written)
    }

    /// Keeps the lead, and refuses what would take too much of the last of it.
    fn claim(&self, log: &mut Log, length: u64, needed: u64) -> io::Result<()> {
        let before = log.lead.last_room(length);
        let Log { lead, file, .. } = log;
        let Some(room) = lead.room_for(file, length, needed) else { return Ok(()) };
        if before.is_none() {
            tracing::error!(path = %self.home.audit().display(), room, "the disk is full: the audit uses its reserve");
            self.owes.notify_one();
        }
        if room < needed { Err(full()) } else { Ok(()) }
    }

    /// Goes on in a new part, and moves every part to the next number, the oldest one out. On a full disk the newest part
    /// is not left for one that has no room: it grows by what is left of its lead.
    fn rotate(&self, log: &mut Log, path: &Path, length: u64) -> io::Result<()> {
        // It goes in any case, and may be the room that the new one needs.
        if let Err(error) = fs::remove_file(self.home.audit_part(KEPT))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let new = temp_name(path)?;
        let next = match open(&new) {
            Ok(next) if next.last_room().is_none_or(|room| room > log.lead.left(length)) => next,
            opened => {
                drop(fs::remove_file(&new));
                let why = opened.err().unwrap_or_else(full);
                return if is_full(&why) && log.lead.left(length) > 0 { Ok(()) } else { Err(why) };
            }
        };
        let moved = (1..KEPT)
            .rev()
            .try_for_each(|number| rename_if_there(&self.home.audit_part(number), &self.home.audit_part(number + 1)))
            .and_then(|()| rename_if_there(path, &self.home.audit_part(1)))
            .and_then(|()| fs::rename(&new, path));
        if let Err(error) = moved {
            drop(fs::remove_file(&new));
            return Err(error);
        }
        // What is not written to any more needs no lead.
        if let Err(error) = log.file.set_len(length) {
            tracing::debug!(%error, "an older part of the audit keeps more room than it needs");
        }
        log.go_on_in(next);
        Ok(())
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
        self.go_on_in(open(path)?);
        Ok(())
    }

    fn go_on_in(&mut self, other: Self) {
        *self = Self { owed: std::mem::take(&mut self.owed), ..other };
    }

    /// Returns how much may still be written although the disk is full; `None` where it is not.
    fn last_room(&self) -> Option<u64> {
        self.lead.last_room(self.file.metadata().ok()?.len())
    }

    /// Takes half a line back, which would spoil the next one. If this fails too, it is ended before the next one.
    fn take_back(&mut self, before: &fs::Metadata) {
        let is_longer = self.file.metadata().map_or(true, |meta| meta.len() > before.len());
        if !before.is_file() || !is_longer {
            return;
        }
        if let Err(error) = self.file.set_len(before.len()) {
            tracing::warn!(%error, "cannot take back half an audit line");
            self.cut = true;
        }
        // What was allocated beyond the end went with it.
        if let Ok(lead) = Lead::open(&self.file, AUDIT_LEAD_BYTES) {
            self.lead = lead;
        }
    }
}

/// Returns for how many usual commands the reserve of this home's audit has room; `None` where it has none.
pub(crate) fn reserved_commands(home: &Home) -> Option<u64> {
    const USUAL_COMMAND_BYTES: u64 = 600;
    let left = lead::left_of(&home.audit())?.min(AUDIT_LEAD_BYTES);
    Some(left.saturating_sub(AUDIT_LEAD_FOR_ENDS_BYTES) / USUAL_COMMAND_BYTES)
}

/// Writes what the audit owes, and takes its reserve again, as soon as the disk has room. Until then there is an alarm.
pub(crate) async fn keep_paying(audit: Arc<Audit>, home: Home, alarm: impl Fn(Option<String>)) {
    loop {
        audit.owes.notified().await;
        let mut backoff = Backoff::new(OWED_RETRY_MIN_INTERVAL, OWED_RETRY_MAX_INTERVAL);
        loop {
            if audit.lock().last_room().is_some() {
                alarm(Some(full_disk(&home)));
            }
            sleep(backoff.pause()).await;
            let paying = Arc::clone(&audit);
            if blocking(move || paying.pay()).await.is_ok() {
                break;
            }
        }
        alarm(None);
    }
}

/// Returns what a full disk means here.
fn full_disk(home: &Home) -> String {
    let path = home.audit();
    // In steps, since each text is news.
    match reserved_commands(home).map(|number| number.div_ceil(50) * 50) {
        None | Some(0) => {
            format!(
                "the disk is full, and the reserve of {} is used up: no command starts until there is room",
                path.display()
            )
        }
        Some(number) => format!(
            "the disk is full: commands run on the reserve of {}, which is enough for at most {number} more",
            path.display()
        ),
    }
}

fn line_of(entry: &Entry) -> Result<Vec<u8>, Failure> {
    let mut entry = entry.clone();
    entry.bound();
    let text = serde_json::to_string(&entry)
        .map_err(|e| Failure::new(Kind::Internal, format!("an audit line does not encode: {e}")))?;
    // `cat` and `tail -f` show the file to terminals.
    let mut line = escape::json(&text).into_bytes();
    line.push(b'\n');
    Ok(line)
}

fn open(path: &Path) -> io::Result<Log> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let cut = match lines::end_last(&mut file) {
        // It is ended before the next line. Until then every line is refused, and what it is about; but there is a daemon.
        Err(e) if is_full(&e) => true,
        ended => ended.map(|()| false)?,
    };
    let lead = Lead::open(&file, AUDIT_LEAD_BYTES)?;
    Ok(Log { file, cut, lead, owed: Vec::new() })
}

#[cfg(test)]
mod tests;
