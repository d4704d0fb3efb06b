//! The output of detached sessions, on the disk: while they run, and for a while after their end, so that whoever
//! attaches gets it replayed.
//!
//! `sessions/spool` has a directory for each session, with `about.json`, what it is; `started.json`, once it runs; segments of its output, files that
//! are named by the offset of their first byte; and, once it is over, `end.json`. Nothing is synced: as the journal, it is
//! for the death of a process, not for a power cut. All of this blocks, but for [`Spools::find`] and [`Spools::kept`].
//!
//! # Layout
//! `ledger` how much is kept, and of whom; `writer` and `reader` of one session; `segments` where its output is, which
//! both share; `record` one stretch in a file; `recover` what an earlier executor left.
//!
//! # How much is kept
//! A session begins with room for two segments. It takes more where there is enough, up to its own limit; then, or when
//! there is not enough, it drops its oldest segment for each new one. When it is over it counts with what its files have.

mod ledger;
mod reader;
mod record;
mod recover;
mod segments;
mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::plan::{Decided, Live, Outcome, SessionName};
use malai_protocol::session::Started;
use malai_protocol::sessions::MAX_COMMAND;

use crate::executor::table::journal::now_ms;
use ledger::Ledger;
pub(crate) use reader::{Piece, Reader};
use segments::Segments;
pub(crate) use writer::Spool;

/// How long output is kept after the end.
pub(crate) const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// What a session is.
const ABOUT: &str = "about.json";
/// What its caller was told when it ran: for the case that its end is not written down any more.
const STARTED: &str = "started.json";
/// How it ended.
const END: &str = "end.json";
/// Segments for which every session has room, budget or not: one to write, and one that is full.
const FLOOR: usize = 2;

/// How much is kept.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The size of a segment's file, in bytes: what is dropped at once.
    pub(crate) segment: u64,
    /// All segments of one session, in bytes.
    pub(crate) session: u64,
    /// All that is kept, in bytes. A caller has three quarters of it.
    pub(crate) budget: u64,
    /// Sessions in all, running ones and kept ones.
    pub(crate) sessions: usize,
    /// Sessions of one caller.
    pub(crate) each: usize,
    /// How long they are kept after their end.
    pub(crate) retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment: 128 * 1024,
            session: 64 * 1024 * 1024,
            budget: 2 * 1024 * 1024 * 1024,
            sessions: 4096,
            each: 2048,
            retention: RETENTION,
        }
    }
}

impl Limits {
    /// The most segments of one session.
    fn segments(&self) -> usize {
        let most = self.session.checked_div(self.segment).unwrap_or_default();
        usize::try_from(most).unwrap_or(usize::MAX).max(FLOOR)
    }

    /// So many segments in bytes.
    fn bytes(&self, segments: usize) -> u64 {
        self.segment.saturating_mul(segments as u64)
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// What its caller was told when it ran; absent where it never did, or where that is not known any more.
    pub(crate) started: Option<Started>,
    /// How.
    pub(crate) outcome: Outcome,
    /// Bytes of output in all, lost and dropped ones too: the offset after the last.
    pub(crate) total: u64,
    /// When, milliseconds since the epoch.
    pub(crate) at_ms: u64,
}

/// A session that is over, and whose output is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    /// What it was.
    pub(crate) about: Live,
    /// How it ended.
    pub(crate) end: End,
    segments: Arc<Segments>,
    /// Its files in bytes, as they are counted.
    size: u64,
}

impl Kept {
    /// Reads its output.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.segments.clone())
    }
}

/// The spools of one executor.
#[derive(Debug)]
pub(crate) struct Spools {
    directory: PathBuf,
    limits: Limits,
    state: Mutex<State>,
    /// An end is not written.
    owes: Notify,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// Those that are over, by their end.
    kept: BTreeMap<(u64, SessionName), Arc<Kept>>,
    /// Since when each is over.
    ends: HashMap<SessionName, u64>,
    /// Names whose directories are written to, or being removed.
    taken: HashSet<SessionName>,
    /// Those of `kept` whose ends the disk did not take.
    unwritten: Vec<SessionName>,
}

impl Spools {
    /// Opens `spool` in the directory of the sessions, and takes in what an earlier executor left there: sessions without
    /// an end are given one, [`Kind::Unknown`]. What is expired, or does not read, is removed.
    ///
    /// # Errors
    /// When the directory cannot be made or listed.
    pub(crate) fn open(home: &Home) -> io::Result<Arc<Self>> {
        Self::open_with(home, Limits::default())
    }

    /// The same with other limits.
    pub(crate) fn open_with(home: &Home, limits: Limits) -> io::Result<Arc<Self>> {
        let directory = home.sessions().join("spool");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut state = State {
            ledger: Ledger::new(&limits),
            kept: BTreeMap::new(),
            ends: HashMap::new(),
            taken: HashSet::new(),
            unwritten: Vec::new(),
        };
        for kept in recover::all(&directory)? {
            state.ledger.add(kept.about.session.caller, kept.size);
            state.keep(kept);
        }
        let this = Arc::new(Self { directory, limits, state: Mutex::new(state), owes: Notify::new() });
        this.expire();
        Ok(this)
    }

    /// Makes the place for a session's output, and writes what it is about.
    ///
    /// # Errors
    /// [`Kind::Busy`] when as much is kept as may be; [`Kind::Conflict`] when there is one of this name;
    /// [`Kind::Internal`] when the disk refuses.
    pub(crate) fn create(self: &Arc<Self>, about: &Live) -> Result<Spool, Failure> {
        let session = about.session;
        let path = self.directory.join(directory_name(&session));
        let json = serde_json::to_vec(about).map_err(|error| refused(&path, &error.into()))?;
        let fixed = json.len() as u64;
        let reserved = fixed.saturating_add(self.limits.bytes(FLOOR));
        if self.take(session, reserved).is_err() {
            // What is expired may take a while to be removed: only when it is in the way.
            self.expire();
            self.take(session, reserved)?;
        }
        let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| write_whole(&path, ABOUT, &json));
        match made {
            Ok(()) => Ok(Spool::new(self.clone(), about.clone(), Arc::new(Segments::new(path)), fixed)),
            Err(error) => {
                self.forget(&session, &path, reserved);
                Err(refused(&path, &error))
            }
        }
    }

    /// Takes a name and room for it.
    fn take(&self, session: SessionName, reserved: u64) -> Result<(), Failure> {
        let mut state = self.state();
        if state.ends.contains_key(&session) || state.taken.contains(&session) {
            let message = format!("output of a session {} of this caller is kept already", session.id);
            return Err(Failure::new(Kind::Conflict, message).hint("choose another id"));
        }
        state.ledger.begin(session.caller, reserved)?;
        state.taken.insert(session);
        Ok(())
    }

    /// One that is over and kept. What is expired is not found, whether or not it is removed already.
    pub(crate) fn find(&self, session: &SessionName) -> Option<Arc<Kept>> {
        let state = self.state();
        let at_ms = *state.ends.get(session)?;
        if self.is_expired(at_ms, now_ms()) {
            return None;
        }
        state.kept.get(&(at_ms, *session)).cloned()
    }

    /// All that are over and kept, those that ended first first.
    pub(crate) fn kept(&self) -> Vec<Arc<Kept>> {
        let now = now_ms();
        let state = self.state();
        let kept = state.kept.iter().filter(|((at_ms, _), _)| !self.is_expired(*at_ms, now));
        kept.map(|(_, kept)| kept.clone()).collect()
    }

    fn is_expired(&self, ended_ms: u64, now_ms: u64) -> bool {
        let retention = u64::try_from(self.limits.retention.as_millis()).unwrap_or(u64::MAX);
        ended_ms.saturating_add(retention) <= now_ms
    }

    /// Returns when there is an end that is not written.
    pub(crate) async fn owe(&self) {
        self.owes.notified().await;
    }

    /// Writes the ends that the disk did not take. False when it still does not.
    pub(crate) fn write_ends(&self) -> bool {
        let unwritten = std::mem::take(&mut self.state().unwritten);
        let mut left = Vec::new();
        for session in unwritten {
            // One that is not kept any more needs no end.
            let Some(kept) = self.find(&session) else { continue };
            let written = serde_json::to_vec(&kept.end)
                .map_err(io::Error::from)
                .and_then(|json| write_whole(kept.segments.path(), END, &json));
            if let Err(error) = written {
                tracing::debug!(%error, "the end of a detached session is still not written down");
                left.push(session);
            }
        }
        let all = left.is_empty();
        self.state().unwritten.extend(left);
        all
    }

    /// Removes those that were kept for long enough.
    pub(crate) fn expire(&self) {
        let now = now_ms();
        let mut expired = Vec::new();
        {
            let mut state = self.state();
            while let Some(oldest) = state.kept.first_entry() {
                if !self.is_expired(oldest.key().0, now) {
                    break;
                }
                let kept = oldest.remove();
                state.ends.remove(&kept.about.session);
                state.taken.insert(kept.about.session);
                expired.push(kept);
            }
        }
        for kept in expired {
            tracing::debug!(id = %kept.about.session.id.short(), peer = %kept.about.session.caller.short(), "kept output expired");
            kept.segments.clear();
            self.forget(&kept.about.session, kept.segments.path(), kept.size);
        }
    }

    /// Removes a directory that counts with `size`.
    fn forget(&self, session: &SessionName, path: &Path, size: u64) {
        remove(path);
        let mut state = self.state();
        state.taken.remove(session);
        state.ledger.remove(session.caller, size);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes one in that counts already.
    fn keep(&mut self, mut kept: Kept) {
        shorten(&mut kept.about.request);
        let (session, at_ms) = (kept.about.session, kept.end.at_ms);
        self.ends.insert(session, at_ms);
        self.kept.insert((at_ms, session), Arc::new(kept));
    }
}

/// Keeps of a request that is over what is shown of it: thousands are kept, and one may have a megabyte of words.
fn shorten(request: &mut Decided) {
    let (mut left, mut shown) = (MAX_COMMAND + 1, Vec::new());
    for mut word in std::mem::take(&mut request.words).into_iter().take(MAX_COMMAND) {
        word.truncate(left);
        word.shrink_to_fit();
        left -= word.len();
        shown.push(word);
        if left == 0 {
            break;
        }
    }
    request.words = shown;
    (request.env_names, request.reason) = (Vec::new(), None);
}

/// The name of a session's directory.
fn directory_name(session: &SessionName) -> String {
    format!("{}-{}", session.id, session.caller)
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let message = format!("that machine cannot keep output in {}: {error}", path.display());
    Failure::new(Kind::Internal, message).hint("look at the disk of that machine: `df -h`, and MALAI_HOME/sessions")
}

/// Writes a file that is there whole or not at all.
fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = directory.join(name);
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        remove(&new);
    }
    written
}

/// Removes a file, or a directory with all that is in it; a warning says when that fails.
fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "kept output cannot be removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
