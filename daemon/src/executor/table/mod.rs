//! The table of sessions: live ones, ended ones that are not audited or whose caller may still come, and ids that must
//! not run again.

mod bounded;
mod callers;
mod ended;
pub(crate) mod journal;
mod registration;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::FollowerId;
use malai_protocol::plan::{Ended, Live, Outcome, Plan, SessionName};
use malai_protocol::session::{DEFAULT_GRACE_MS, EndedBy};

use crate::runtime::backoff::Backoff;

use super::life::Life;
use crate::executor::session::link::Attachment;
use crate::store::lead::is_full;
use journal::{Journal, Left, Line, REMEMBER, now_ms};

use bounded::Bounded;
use callers::{Callers, Usage};
pub(crate) use ended::{Found, Keep, Record};
use ended::{Kept, MAX_KEPT, Records};
pub(crate) use registration::Registration;
use registration::Room;

/// Sessions at once, those included whose last bytes are on their way: each needs six descriptors.
const MAX_SESSIONS: usize = 4096;
/// Ids remembered, about 30 MB: 200 commands a second for twenty minutes.
const MAX_IDS: usize = 1 << 18;
/// Of each of these bounds, one caller may take this part.
const SHARE: usize = 2;
/// What live and unconfirmed requests may hold in memory, in bytes.
const MAX_HELD: usize = 64 * 1024 * 1024;
/// Attachments that wait for their plans.
const MAX_EARLY: usize = 1024;
/// The first pause before a full disk is offered the journal again; it doubles.
const JOURNAL_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such pause.
const JOURNAL_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(10);

/// What a session is told from outside its attachment. The queue is not bounded: a session takes from it at once, and
/// attachments are bounded by their permits.
#[derive(Debug)]
pub(crate) enum Command {
    /// Somebody wants to follow.
    Attach(Box<Arrival>),
    /// The caller of this attachment went away.
    CallerGone {
        /// Whose attachment.
        follower: Option<FollowerId>,
        /// Its number.
        number: u32,
    },
    /// Signal the command.
    Signal(Signal),
    /// End.
    End(Cause),
}

/// An attachment to a session that is there already.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Its connection.
    pub(crate) attachment: Attachment,
    /// Output up to there was written out.
    pub(crate) out_offset: u64,
    /// Only output that comes from now on is wanted.
    pub(crate) from_end: bool,
    /// It may take the place of another follower.
    pub(crate) take_over: bool,
    /// Bounds how many are on their way to their sessions.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Why a session is ended.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    /// For the record.
    pub(crate) by: EndedBy,
    /// For the record, in words.
    pub(crate) reason: Option<String>,
    /// How long between TERM and KILL.
    pub(crate) grace: Duration,
}

/// A session that may start.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Its entry in the table.
    pub(crate) registration: Registration,
    /// From the control connection.
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    /// From an attachment's connection.
    pub(crate) slot: oneshot::Receiver<Attachment>,
}

/// Why a plan is not followed.
#[derive(Debug)]
pub(crate) enum Rejected {
    /// The session lives: this is not told as its end.
    Lives,
    /// The end of this attempt, and where the caller may wait to hear it; none where another attempt has that place.
    Failed(Failure, Option<oneshot::Receiver<Attachment>>),
}

/// Where an attachment goes.
#[derive(Debug)]
pub(crate) enum Attach {
    /// To the session that waits for it.
    Now(oneshot::Sender<Attachment>),
    /// To the session whose plan is not here yet.
    Later(oneshot::Receiver<oneshot::Sender<Attachment>>),
    /// Nowhere.
    Refused(Failure),
}

/// All sessions of this executor.
#[derive(Debug)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    room: Arc<Semaphore>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct Entry {
    live: Live,
    commands: mpsc::UnboundedSender<Command>,
    grace: Duration,
}

#[derive(Debug)]
struct Inner {
    life: Life,
    journal: Journal,
    /// The journal lacks something that is known here: it is rewritten before anything else.
    behind: bool,
    bases: Vec<PathBuf>,
    live: HashMap<SessionName, Entry>,
    kept: HashMap<SessionName, Kept>,
    /// Those of `kept` that nobody follows.
    unfollowed: Bounded<()>,
    records: Records,
    ended: HashMap<SessionName, Ended>,
    /// Ended ones that the daemon was not told.
    unsent: VecDeque<SessionName>,
    /// Confirmed ones, with the time in milliseconds since the epoch.
    audited: HashMap<SessionName, u64>,
    forget: VecDeque<(Instant, SessionName)>,
    callers: Callers,
    slots: HashMap<SessionName, oneshot::Sender<Attachment>>,
    early: HashMap<SessionName, oneshot::Sender<oneshot::Sender<Attachment>>>,
    closing: bool,
}

/// What a session that was taken on holds until it is forgotten, and until it is audited.
fn cost(words: &[serde_bytes::ByteBuf]) -> Usage {
    Usage { live: 0, ids: 0, held: words.iter().map(|word| word.len() + 32).sum::<usize>() + 512 }
}

const ID: &Usage = &Usage { live: 0, ids: 1, held: 0 };
const PLACE: &Usage = &Usage { live: 1, ids: 0, held: 0 };

/// How long a session waits for its caller; longer than any machine stays up is for ever, and more than timers hold.
pub(crate) fn grace(plan: &Plan) -> Duration {
    // A detached one waits for nobody.
    let waits = if plan.request.detached { u64::MAX } else { plan.grace_ms };
    Duration::from_millis(waits).min(Duration::from_secs(10 * 365 * 24 * 3600))
}

/// What is told of a session while it lives.
pub(crate) fn live_of(plan: &Plan) -> Live {
    Live { session: plan.session, cluster: plan.cluster, request: plan.request.clone() }
}

impl Table {
    /// A table that knows what an earlier executor left: its unfinished sessions have ended with it.
    pub(crate) fn new(journal: Journal, left: Left, bases: Vec<PathBuf>, life: Life) -> io::Result<Arc<Self>> {
        let (most, each) = MAX_KEPT;
        let mut inner = Inner {
            life,
            journal,
            behind: false,
            bases,
            live: HashMap::new(),
            kept: HashMap::new(),
            unfollowed: Bounded::new(most, each),
            records: Records::new(),
            ended: left.ended,
            unsent: VecDeque::new(),
            audited: HashMap::new(),
            forget: VecDeque::new(),
            callers: Callers::default(),
            slots: HashMap::new(),
            early: HashMap::new(),
            closing: false,
        };
        for Live { session, cluster, request } in left.unfinished.into_values() {
            let failure = Failure::new(
                Kind::Unknown,
                "the executor died while the command ran: how it ended is not known, and its processes were killed",
            );
            inner.records.insert(session, Record::Refused(failure.clone()));
            let outcome = Outcome::Refused(failure);
            inner.ended.insert(session, Ended { session, cluster, request, outcome });
        }
        for (session, ended) in &inner.ended {
            inner.callers.add(session.caller, ID);
            inner.callers.add(session.caller, &cost(&ended.request.words));
        }
        let mut audited: Vec<_> = left.audited.into_iter().collect();
        audited.sort_by_key(|(_, since)| std::cmp::Reverse(*since));
        for (session, since) in audited {
            inner.callers.add(session.caller, ID);
            inner.audited.insert(session, now_ms().saturating_sub(since.as_millis().try_into().unwrap_or(0)));
            inner.forget.push_back((Instant::now() + REMEMBER.saturating_sub(since), session));
        }
        match inner.rewrite() {
            // The old file goes on: what it says is true, and it has room of its own for this.
            Err(error) if is_full(&error) => {
                tracing::error!(%error, "the journal of sessions cannot be rewritten");
                let mut bases = inner.bases.iter().map(|base| Line::Base(base.clone()));
                // Otherwise nothing new is taken on until it can be written; what there is can still be told, and ended.
                inner.behind = bases.try_for_each(|base| inner.journal.write(&base)).is_err();
            }
            written => written?,
        }
        let room = Arc::new(Semaphore::new(MAX_SESSIONS));
        Ok(Arc::new(Self { inner: Mutex::new(inner), room, changes: watch::Sender::new(()) }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes up whenever sessions ended or were confirmed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Takes a session on: from here its id is used up, and the journal knows it.
    pub(crate) fn admit(self: &Arc<Self>, plan: &Plan) -> Result<Admitted, Rejected> {
        let mut inner = self.lock();
        let session = plan.session;
        if inner.live.contains_key(&session) {
            return Err(Rejected::Lives);
        }
        let permit = match inner.check(plan).and_then(|()| {
            self.room.clone().try_acquire_owned().map_err(|_| busy("too many sessions run on that machine"))
        }) {
            Ok(permit) => permit,
            Err(failure) => return Err(Rejected::Failed(failure, inner.slot(session))),
        };
        // First the place, then the line: what the journal has as started is either run, or told as ended.
        let Some(slot) = inner.slot(session) else {
            let failure = busy("an earlier attempt of this request was refused, and its caller is still being told");
            return Err(Rejected::Failed(failure, None));
        };
        let live = live_of(plan);
        if let Err(error) = inner.catch_up().and_then(|()| inner.journal.write(&Line::Started(live.clone()))) {
            self.changed();
            let failure = Failure::new(Kind::Internal, format!("cannot write the journal of sessions: {error}"))
                .hint("look at the disk of that machine: `df -h`, and MALAI_HOME/sessions");
            return Err(Rejected::Failed(failure, Some(slot)));
        }
        for usage in [ID, PLACE, &cost(&live.request.words)] {
            inner.callers.add(session.caller, usage);
        }
        let (sender, commands) = mpsc::unbounded_channel();
        inner.live.insert(session, Entry { live, commands: sender, grace: grace(plan) });
        let registration = Registration::new(session, self.clone(), permit);
        Ok(Admitted { registration, commands, slot })
    }

    /// Writes what the journal lacks, and takes room for a full disk again. False when it still lacks that.
    pub(crate) fn catch_up(&self) -> bool {
        let mut inner = self.lock();
        inner.catch_up().is_ok() && inner.journal.refill()
    }

    /// Rewrites the journal when it holds much that is not needed: beside it, on a thread that may block, while lines
    /// go on being appended. False when that failed.
    async fn compact(&self) -> bool {
        let Some((path, lines)) = self.begin_compaction() else { return true };
        let written = tokio::task::spawn_blocking(move || journal::write_lines(&path, lines.into_iter())).await;
        let compacted = self.end_compaction(written.map_err(io::Error::other).flatten());
        if let Err(error) = &compacted {
            tracing::warn!(%error, "the journal of sessions cannot be rewritten");
        }
        compacted.is_ok()
    }

    fn begin_compaction(&self) -> Option<(PathBuf, Vec<Line>)> {
        let mut inner = self.lock();
        inner.journal.is_bloated().then(|| (inner.journal.begin_beside(), inner.lines()))
    }

    fn end_compaction(&self, written: io::Result<journal::Written>) -> io::Result<()> {
        let mut inner = self.lock();
        // A line that could not be appended is in neither file.
        let written = if inner.behind { Err(io::Error::other("lines are missing")) } else { written };
        inner.journal.take_beside(written)
    }

    /// Where an attachment to this session goes.
    pub(crate) fn attach(&self, session: SessionName) -> Attach {
        let mut inner = self.lock();
        if let Some(slot) = inner.slots.remove(&session) {
            return Attach::Now(slot);
        }
        if inner.live.contains_key(&session) || inner.early.contains_key(&session) {
            return Attach::Refused(Failure::new(Kind::Conflict, "another attachment follows this session already"));
        }
        if inner.early.len() >= MAX_EARLY {
            return Attach::Refused(busy("too many requests wait on that machine"));
        }
        let (sender, receiver) = oneshot::channel();
        inner.early.insert(session, sender);
        Attach::Later(receiver)
    }

    /// Nobody waits for this session's plan any more.
    pub(crate) fn detach(&self, session: SessionName) {
        self.lock().early.remove(&session);
    }

    /// No attachment is waited for any more.
    pub(crate) fn close_slot(&self, session: SessionName) {
        self.lock().slots.remove(&session);
    }

    /// Everything, for a daemon that connects; what has ended so far counts as told.
    pub(crate) fn sessions(&self) -> (Vec<Live>, Vec<Ended>) {
        let mut inner = self.lock();
        inner.unsent.clear();
        let live = inner.live.values().map(|entry| entry.live.clone()).collect();
        (live, inner.ended.values().cloned().collect())
    }

    /// What `of` makes of those that live.
    pub(crate) fn all_live<T>(&self, of: impl FnMut(&Live) -> Option<T>) -> Vec<T> {
        self.lock().live.values().map(|entry| &entry.live).filter_map(of).collect()
    }

    /// Whether this one lives.
    pub(crate) fn lives(&self, session: &SessionName) -> bool {
        self.lock().live.contains_key(session)
    }

    /// The next end that the daemon was not told.
    pub(crate) fn next_unsent(&self) -> Option<Ended> {
        let mut inner = self.lock();
        loop {
            let session = inner.unsent.pop_front()?;
            if let Some(ended) = inner.ended.get(&session) {
                return Some(ended.clone());
            }
        }
    }

    /// The daemon has written the end of this session.
    pub(crate) fn audited(&self, session: SessionName) {
        let mut inner = self.lock();
        let Some(ended) = inner.ended.remove(&session) else {
            return;
        };
        let Ended { session, request, .. } = ended;
        inner.callers.sub(session.caller, &cost(&request.words));
        let at_ms = now_ms();
        inner.audited.insert(session, at_ms);
        inner.forget.push_back((Instant::now() + REMEMBER, session));
        inner.note(&Line::Audited { session, at_ms });
        drop(inner);
        self.changed();
    }

    /// Tells one session.
    pub(crate) fn tell(&self, session: SessionName, command: Command) {
        let inner = self.lock();
        let commands = inner.live.get(&session).map(|entry| &entry.commands);
        if let Some(commands) = commands.or_else(|| inner.kept.get(&session).map(|kept| &kept.commands))
            && commands.send(command).is_err()
        {
            tracing::debug!(session = session.id.short(), "a session that is over is told something");
        }
    }

    /// Ends all sessions. With `close`, no new one is taken on.
    pub(crate) fn end_all(&self, cause: &Cause, close: bool) {
        let mut inner = self.lock();
        inner.closing |= close;
        let sessions: Vec<_> = inner.live.keys().copied().collect();
        drop(inner);
        for session in sessions {
            self.tell(session, Command::End(cause.clone()));
        }
        self.changed();
    }

    /// Takes no new session on, if there is none now, none whose output or refusal somebody may come for, and no end that
    /// is not confirmed. False, and nothing changes, when there is.
    pub(crate) fn close_if_idle(&self) -> bool {
        let mut inner = self.lock();
        let is_idle =
            inner.live.is_empty() && inner.kept.is_empty() && inner.ended.is_empty() && inner.slots.is_empty();
        inner.closing |= is_idle;
        drop(inner);
        self.changed();
        is_idle
    }

    /// Whether no new session is taken on.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// How many live, and how many have ended unconfirmed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.live.len(), inner.ended.len())
    }

    /// How long a daemon is waited for that went: as long as any session waits for its caller, and not at all when there
    /// is nothing to come back for.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let inner = self.lock();
        let graces = inner.live.values().map(|entry| entry.grace).chain(inner.kept.values().map(|kept| kept.grace));
        let longest = graces.max();
        if longest.is_none() && inner.ended.is_empty() {
            return None;
        }
        Some(longest.unwrap_or_default().max(Duration::from_millis(DEFAULT_GRACE_MS)))
    }
}

fn busy(message: &str) -> Failure {
    Failure::new(Kind::Busy, message).hint("try again in a while")
}

/// Writes what the journal lacks as soon as the disk takes it, and rewrites it when it holds much that is not needed.
pub(super) async fn keep_journal(table: Arc<Table>) {
    let mut changes = table.changes();
    let mut backoff = Backoff::new(JOURNAL_RETRY_MIN_INTERVAL, JOURNAL_RETRY_MAX_INTERVAL);
    loop {
        if table.catch_up() && table.compact().await {
            backoff.reset();
            if changes.changed().await.is_err() {
                return;
            }
        } else {
            sleep(backoff.pause()).await;
        }
    }
}

impl Inner {
    /// Whether one more session may start, and under this id.
    fn check(&mut self, plan: &Plan) -> Result<(), Failure> {
        self.check_sent(plan.session, plan.resend.as_ref())?;
        if self.kept.contains_key(&plan.session) {
            return Err(Failure::new(
                Kind::Unknown,
                "this session was taken on before and is over: it was not run again",
            ));
        }
        if self.closing {
            return Err(busy("that machine's daemon is being stopped"));
        }
        let Usage { live, ids, held } = *self.callers.of(&plan.session.caller);
        if live >= MAX_SESSIONS / SHARE {
            return Err(busy("this caller has too many sessions on that machine"));
        }
        if ids >= MAX_IDS / SHARE || held >= MAX_HELD / SHARE {
            return Err(busy("that machine has taken on too many sessions of this caller in the last twenty minutes"));
        }
        if self.callers.ids() >= MAX_IDS || self.callers.held() >= MAX_HELD {
            return Err(busy("that machine has taken on too many sessions in the last twenty minutes"));
        }
        Ok(())
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        while let Some((_, session)) = self.forget.pop_front_if(|(at, _)| *at <= now) {
            if self.audited.remove(&session).is_some() {
                self.callers.sub(session.caller, ID);
            }
        }
    }

    /// Makes the place where the attachment of this session arrives; none when there is one.
    fn slot(&mut self, session: SessionName) -> Option<oneshot::Receiver<Attachment>> {
        if self.slots.contains_key(&session) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        match self.early.remove(&session) {
            Some(waiting) => {
                if let Err(sender) = waiting.send(sender) {
                    self.slots.insert(session, sender);
                }
            }
            None => {
                self.slots.insert(session, sender);
            }
        }
        Some(receiver)
    }

    /// Writes a line about what is in this table already. What cannot be written now is written with the next line, and
    /// tried again meanwhile; a later executor would take a session for cut off that had ended.
    fn note(&mut self, line: &Line) {
        let written = if self.behind { self.catch_up() } else { self.journal.write(line) };
        if let Err(error) = written {
            tracing::error!(%error, "the journal of sessions cannot be written");
            self.behind = true;
        }
    }

    /// Rewrites the journal if it lacks something.
    fn catch_up(&mut self) -> io::Result<()> {
        if self.behind {
            self.rewrite()?;
            self.behind = false;
        }
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let lines = self.lines();
        self.journal.rewrite(lines.into_iter())
    }

    /// Returns all that the journal must hold.
    fn lines(&self) -> Vec<Line> {
        let bases = self.bases.iter().map(|base| Line::Base(base.clone()));
        let live = self.live.values().map(|entry| Line::Started(entry.live.clone()));
        let ended = self.ended.values().map(|ended| Line::Ended(ended.clone()));
        let audited = self.audited.iter().map(|(session, at_ms)| Line::Audited { session: *session, at_ms: *at_ms });
        bases.chain(live).chain(ended).chain(audited).collect()
    }
}

#[cfg(test)]
mod tests;
