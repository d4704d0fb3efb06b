//! What must be known after this executor has died: which sessions it had taken on, and how they ended.
//!
//! `sessions/journal` is a file of lines, JSON each, appended without fsync: it is for the death of a process, not for a
//! power cut, after which no command runs. A line is written before the spawn, at the end, and when the daemon has
//! confirmed the audit. The next executor reads it: it kills what is left of unfinished sessions, hands all that is not
//! audited to the daemon, and knows recent ids. `sessions/lock` is held for the executor's life, so there is one a home.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use malai_protocol::home::Home;
use malai_protocol::plan::{Ended, Live, SessionName};

use crate::store::lead::{Lead, full, is_full};
use crate::store::lines::{self, Lines};

/// A file that grew by this much beyond twice what it must hold is written anew.
const SLACK: u64 = 4 * 1024 * 1024;
/// The longest line that is read: the largest plan, each of its bytes as a number and a comma.
const MAX_JOURNAL_LINE_BYTES: usize = 16 * 1024 * 1024;
/// The room that the journal keeps for a full disk: for as many usual commands as the audit has room for then.
pub(crate) const JOURNAL_LEAD_BYTES: u64 = 1024 * 1024;
/// The last of it, into which no start is written: ends are.
const JOURNAL_LEAD_FOR_ENDS_BYTES: u64 = 128 * 1024;
/// How long ids are remembered after their end: twice as long as any caller sends its request again.
pub(crate) const REMEMBER: Duration = Duration::from_secs(1200);

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// Where cgroups of sessions were made.
    Base(PathBuf),
    /// About to be spawned.
    Started(Live),
    /// Over, or never spawned after all.
    Ended(Ended),
    /// Its end is in the audit.
    Audited {
        /// Which session.
        session: SessionName,
        /// Since when, milliseconds since the epoch.
        at_ms: u64,
    },
}

/// What an earlier executor left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Cgroups in which it kept its sessions.
    pub(crate) bases: Vec<PathBuf>,
    /// Started, and no end known.
    pub(crate) unfinished: HashMap<SessionName, Live>,
    /// Ended, and not confirmed.
    pub(crate) ended: HashMap<SessionName, Ended>,
    /// Confirmed, and for how long.
    pub(crate) audited: HashMap<SessionName, Duration>,
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Its last line has no end: its writer died over it, or the disk took half of it.
    cut: bool,
    length: u64,
    lead: Lead,
    /// Its length when it was last written anew.
    kept: u64,
    /// What was appended since another file is being written; absent = none is.
    since: Option<Vec<u8>>,
    _lock: Flock<File>,
}

impl Journal {
    /// Locks and reads it. Blocks.
    ///
    /// # Errors
    /// When it cannot be made, read or locked.
    pub(crate) fn open(home: &Home) -> io::Result<(Self, Left)> {
        let directory = home.sessions();
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let lock = private(OpenOptions::new().create(true).write(true).truncate(false), &directory.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| io::Error::other("another executor of this home still runs"))?;
        let path = directory.join("journal");
        let left = read(&path)?;
        let mut file = private(OpenOptions::new().create(true).read(true).append(true), &path)?;
        let cut = match lines::end_last(&mut file) {
            Err(error) if is_full(&error) => true,
            ended => ended.map(|()| false)?,
        };
        let (length, lead) = (file.metadata()?.len(), Lead::open(&file, JOURNAL_LEAD_BYTES)?);
        Ok((Self { path, file, cut, length, lead, kept: 0, since: None, _lock: lock }, left))
    }

    /// Appends one line. On a full disk it goes into the lead, whose last part is for other lines than starts.
    ///
    /// # Errors
    /// When it cannot be written whole; the file is then as it was.
    pub(crate) fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let leaves = if matches!(line, Line::Started(_)) { JOURNAL_LEAD_FOR_ENDS_BYTES } else { 0 };
        let needed = bytes.len() as u64 + leaves;
        if self.lead.room_for(&self.file, self.length, needed).is_some_and(|room| room < needed) {
            return Err(full());
        }
        if self.cut {
            lines::end_last(&mut self.file)?;
            (self.cut, self.length) = (false, self.file.metadata()?.len());
        }
        if let Err(error) = self.file.write_all(&bytes) {
            self.take_back();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        if let Some(since) = &mut self.since {
            since.extend_from_slice(&bytes);
        }
        Ok(())
    }

    /// Takes half a line back, which would spoil the next one. If this fails too, it is ended before the next one.
    fn take_back(&mut self) {
        if let Err(error) = self.file.set_len(self.length) {
            tracing::warn!(%error, "cannot take back half a line of the journal");
            self.cut = true;
        }
        // What was allocated beyond the end went with it.
        if let Ok(lead) = Lead::open(&self.file, JOURNAL_LEAD_BYTES) {
            self.lead = lead;
        }
    }

    /// Takes room for a full disk again. False while the disk has none.
    pub(crate) fn refill(&mut self) -> bool {
        self.lead.extend(&self.file, self.length);
        self.lead.last_room(self.length).is_none()
    }

    /// Whether it is time to write it anew.
    pub(crate) fn is_bloated(&self) -> bool {
        self.length > 2 * self.kept + SLACK
    }

    /// Writes it anew with only these lines.
    ///
    /// # Errors
    /// When the new file cannot be written; the old one is then still in use.
    pub(crate) fn rewrite<'a>(&mut self, lines: impl Iterator<Item = Line> + 'a) -> io::Result<()> {
        // It has all that there is: what is written beside it is not wanted any more.
        self.since = None;
        let new = self.path.with_extension("new");
        let rewritten = self.rewrite_by(&new, lines);
        if rewritten.is_err() {
            // Half of it would only take the last of the room.
            if let Err(error) = fs::remove_file(&new) {
                tracing::debug!(%error, "half a journal stays behind");
            }
            // Not with every line again.
            self.kept = self.length;
        }
        rewritten
    }

    fn rewrite_by(&mut self, new: &Path, lines: impl Iterator<Item = Line>) -> io::Result<()> {
        self.go_on_in(write_lines(new, lines)?, new)?;
        self.kept = self.length;
        Ok(())
    }

    /// Has a written file take the place of the one in use.
    fn go_on_in(&mut self, written: Written, path: &Path) -> io::Result<()> {
        let Written { file, length } = written;
        let lead = Lead::open(&file, JOURNAL_LEAD_BYTES)?;
        if lead.last_room(length).is_some_and(|room| room < self.lead.left(self.length)) {
            // The file that is in use has more room for a full disk.
            return Err(full());
        }
        fs::rename(path, &self.path)?;
        (self.file, self.cut, self.lead) = (file, false, lead);
        self.length = length;
        Ok(())
    }

    /// From now on notes what is appended, for a file that is written beside this one. Returns where that is written to.
    pub(crate) fn begin_beside(&mut self) -> PathBuf {
        self.since = Some(Vec::new());
        self.path.with_extension("beside")
    }

    /// Has the file that was written beside this one take its place, with what was appended meanwhile.
    ///
    /// # Errors
    /// When it was not written, or what came since cannot be; the old one is then still in use.
    pub(crate) fn take_beside(&mut self, written: io::Result<Written>) -> io::Result<()> {
        let path = self.path.with_extension("beside");
        let taken = match self.since.take() {
            Some(since) => self.take_by(&path, &since, written),
            // It was rewritten meanwhile.
            None => Err(io::Error::from(io::ErrorKind::Interrupted)),
        };
        if taken.is_err()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, "half a journal stays behind");
        }
        taken
    }

    fn take_by(&mut self, path: &Path, since: &[u8], written: io::Result<Written>) -> io::Result<()> {
        let Written { mut file, length } = written?;
        file.write_all(since)?;
        self.go_on_in(Written { file, length: length + since.len() as u64 }, path)?;
        self.kept = length;
        Ok(())
    }
}

/// A file of lines that was written.
#[derive(Debug)]
pub(crate) struct Written {
    file: File,
    length: u64,
}

/// Writes a file of these lines. Blocks.
///
/// # Errors
/// When it cannot be written whole.
pub(crate) fn write_lines(path: &Path, lines: impl Iterator<Item = Line>) -> io::Result<Written> {
    // What an executor left here that died over it has no lines that count.
    drop(private(OpenOptions::new().create(true).write(true).truncate(true), path)?);
    let file = private(OpenOptions::new().read(true).append(true), path)?;
    let mut out = io::BufWriter::new(file);
    let mut length = 0;
    for line in lines {
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        out.write_all(&bytes)?;
        length += bytes.len() as u64;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Written { file, length })
}

#[cfg(test)]
impl Journal {
    /// From this length on an append fails as on a full disk, until the file is rewritten.
    pub(crate) fn fill(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").expect("is there");
    }
}

fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

/// Now, in milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn read(path: &Path) -> io::Result<Left> {
    let mut left = Left::default();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
        file => file?,
    };
    let mut lines = Lines::new(BufReader::new(file), MAX_JOURNAL_LINE_BYTES);
    let mut buffer = Vec::new();
    while let Some(line) = lines.next(&mut buffer)? {
        match serde_json::from_slice(line.bytes) {
            Ok(line) => left.take(line),
            // The last line may be half: its writer died over it, so nothing was done about it yet.
            Err(error) => {
                tracing::warn!(%error, line = line.number, path = %path.display(), "a line of the journal does not read");
            }
        }
    }
    Ok(left)
}

impl Left {
    fn take(&mut self, line: Line) {
        match line {
            Line::Base(path) => self.bases.push(path),
            Line::Started(live) => {
                self.unfinished.insert(live.session, live);
            }
            Line::Ended(ended) => {
                self.unfinished.remove(&ended.session);
                self.ended.insert(ended.session, ended);
            }
            Line::Audited { session, at_ms } => {
                // One that an executor left unfinished has no end here where that was told, and no new file was made.
                self.unfinished.remove(&session);
                self.ended.remove(&session);
                let since = Duration::from_millis(now_ms().saturating_sub(at_ms));
                if since < REMEMBER {
                    self.audited.insert(session, since);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::{live, session};
    use malai_protocol::failure::{Failure, Kind};
    use malai_protocol::plan::Outcome;

    fn ended(number: u8) -> Ended {
        let Live { session, cluster, request } = live(number);
        Ended { session, cluster, request, outcome: Outcome::Refused(Failure::new(Kind::Busy, "x")) }
    }

    /// Returns a new home with its journal.
    fn opened() -> (tempfile::TempDir, Home, Journal) {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let (journal, _) = Journal::open(&home).expect("opens");
        (dir, home, journal)
    }

    #[test]
    fn what_was_started_ended_and_confirmed_is_read_back() {
        let (_dir, home, mut journal) = opened();
        for number in 1..=3 {
            journal.write(&Line::Started(live(number))).expect("writes");
        }
        journal.write(&Line::Ended(ended(2))).expect("writes");
        journal.write(&Line::Ended(ended(3))).expect("writes");
        journal.write(&Line::Audited { session: session(3), at_ms: now_ms() }).expect("writes");
        drop(journal);

        let (_journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!(left.unfinished.into_values().collect::<Vec<_>>(), [live(1)]);
        assert_eq!(left.ended.into_values().collect::<Vec<_>>(), [ended(2)]);
        assert_eq!(left.audited.into_keys().collect::<Vec<_>>(), [session(3)]);
    }

    #[test]
    fn half_a_line_at_the_end_loses_no_other_line() {
        let (_dir, home, mut journal) = opened();
        journal.write(&Line::Started(live(1))).expect("writes");
        drop(journal);
        let path = home.sessions().join("journal");
        let mut bytes = fs::read(&path).expect("reads");
        bytes.extend_from_within(..bytes.len() / 2);
        fs::write(&path, bytes).expect("writes");

        let (_journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!(left.unfinished.len(), 1);
    }

    #[test]
    fn half_a_line_that_was_left_does_not_swallow_the_next() {
        let (_dir, home, mut journal) = opened();
        journal.write(&Line::Started(live(1))).expect("writes");
        drop(journal);
        let path = home.sessions().join("journal");
        let length = fs::metadata(&path).expect("is there").len();
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.set_len(length - 20).expect("cut");

        let (mut journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!(left.unfinished.len(), 0);
        journal.write(&Line::Started(live(2))).expect("writes");
        drop(journal);
        let (_journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!(left.unfinished.into_values().collect::<Vec<_>>(), [live(2)]);
    }

    #[test]
    fn after_a_rename_that_failed_lines_go_into_the_file_that_is_read() {
        let (_dir, home, mut journal) = opened();
        journal.write(&Line::Started(live(1))).expect("writes");
        let (path, aside) = (home.sessions().join("journal"), home.sessions().join("aside"));
        fs::rename(&path, &aside).expect("renamed");
        fs::create_dir(&path).expect("in the way");
        journal.rewrite([Line::Started(live(1))].into_iter()).expect_err("a directory is in the way");
        journal.write(&Line::Started(live(2))).expect("writes");
        drop(journal);
        fs::remove_dir(&path).expect("removed");
        fs::rename(&aside, &path).expect("renamed back");
        let (_journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!(left.unfinished.len(), 2);
        assert!(!path.with_extension("new").exists(), "it takes the last of the room");
    }

    #[test]
    fn what_was_unfinished_and_is_audited_is_not_told_again_from_a_file_that_was_never_written_anew() {
        let (_dir, home, mut journal) = opened();
        journal.write(&Line::Started(live(1))).expect("writes");
        journal.write(&Line::Audited { session: session(1), at_ms: now_ms() }).expect("writes");
        drop(journal);
        let (_journal, left) = Journal::open(&home).expect("opens again");
        assert_eq!((left.unfinished.len(), left.audited.len()), (0, 1));
    }

    #[test]
    fn the_journal_has_room_beyond_its_end_for_as_many_commands_as_the_audit() {
        let (_dir, home, mut journal) = opened();
        let before = journal.length;
        journal.write(&Line::Started(live(1))).expect("writes");
        journal.write(&Line::Ended(ended(1))).expect("writes");
        journal.write(&Line::Audited { session: session(1), at_ms: now_ms() }).expect("writes");
        let command = journal.length - before;
        assert!(command * 350 + JOURNAL_LEAD_FOR_ENDS_BYTES < JOURNAL_LEAD_BYTES, "{command}");
        journal.rewrite(std::iter::empty()).expect("is written");
        let path = home.sessions().join("journal");
        let left = crate::store::lead::left_of(&path).unwrap_or(JOURNAL_LEAD_BYTES);
        assert!(left >= JOURNAL_LEAD_BYTES / 2, "{left}");
    }

    #[test]
    fn a_home_has_one_executor() {
        let (_dir, home, _journal) = opened();
        assert!(Journal::open(&home).is_err());
    }
}
