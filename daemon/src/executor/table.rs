//! The table of sessions: live ones, ended ones that are not audited, and ids that must not run again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::plan::{Ended, Live, Outcome, Plan, SessionName};
use malai_protocol::session::EndedBy;

use super::journal::{Journal, Left, Line, REMEMBER, now_ms};
use super::link::Attachment;
use super::tree::Tree;

/// Sessions at once, those included whose last bytes are on their way: each needs six descriptors.
const MAX_SESSIONS: usize = 4096;
/// Ids remembered, about 20 MB: 400 commands a second for ten minutes.
const MAX_IDS: usize = 1 << 18;
/// What live and unconfirmed requests may hold in memory, in bytes.
const MAX_HELD: usize = 64 * 1024 * 1024;
/// Attachments that wait for their plans.
const MAX_EARLY: usize = 1024;

/// What a session is told from outside its attachment.
#[derive(Debug)]
pub(crate) enum Command {
    /// The caller of this attachment went away.
    CallerGone(u32),
    /// End.
    End(Cause),
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
    pub(crate) commands: mpsc::Receiver<Command>,
    /// From an attachment's connection.
    pub(crate) slot: oneshot::Receiver<Attachment>,
}

/// Why a plan is not followed.
#[derive(Debug)]
pub(crate) enum Rejected {
    /// The session lives: this is not told as its end.
    Lives,
    /// The end of this attempt, and where the caller may wait to hear it.
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
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    bases: Vec<PathBuf>,
    live: HashMap<SessionName, Entry>,
    ended: HashMap<SessionName, Ended>,
    /// Ended ones that the daemon was not told.
    unsent: VecDeque<SessionName>,
    /// Confirmed ones, with the time in milliseconds since the epoch.
    audited: HashMap<SessionName, u64>,
    forget: VecDeque<(Instant, SessionName)>,
    /// See [`MAX_HELD`].
    held: usize,
    slots: HashMap<SessionName, oneshot::Sender<Attachment>>,
    early: HashMap<SessionName, oneshot::Sender<oneshot::Sender<Attachment>>>,
    closing: bool,
}

/// About what a request holds in memory.
fn cost(live: &Live) -> usize {
    live.request.words.iter().map(|word| word.len() + 32).sum::<usize>() + 512
}

fn live_of(plan: &Plan) -> Live {
    Live { session: plan.session, cluster: plan.cluster, request: plan.request.clone() }
}

impl Table {
    /// A table that knows what an earlier executor left: its unfinished sessions have ended with it.
    pub(crate) fn new(journal: Journal, left: Left, bases: Vec<PathBuf>) -> io::Result<Arc<Self>> {
        let lost = left.unfinished.into_values().map(|Live { session, cluster, request }| {
            let outcome = Outcome::Refused(Failure::new(
                Kind::Unknown,
                "the executor died while the command ran: how it ended is not known, and its processes were killed",
            ));
            (session, Ended { session, cluster, request, outcome })
        });
        let mut inner = Inner {
            journal,
            bases,
            live: HashMap::new(),
            ended: left.ended.into_iter().chain(lost).collect(),
            unsent: VecDeque::new(),
            audited: HashMap::new(),
            forget: VecDeque::new(),
            held: 0,
            slots: HashMap::new(),
            early: HashMap::new(),
            closing: false,
        };
        let mut audited: Vec<_> = left.audited.into_iter().collect();
        audited.sort_by_key(|(_, since)| std::cmp::Reverse(*since));
        for (session, since) in audited {
            inner.audited.insert(session, now_ms().saturating_sub(since.as_millis().try_into().unwrap_or(0)));
            inner.forget.push_back((Instant::now() + REMEMBER.saturating_sub(since), session));
        }
        inner.rewrite()?;
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
        let room = match inner.check(session).and_then(|()| {
            self.room.clone().try_acquire_owned().map_err(|_| busy("too many sessions run on that machine"))
        }) {
            Ok(room) => room,
            Err(failure) => return Err(Rejected::Failed(failure, inner.slot(session))),
        };
        let live = live_of(plan);
        if let Err(error) = inner.journal.write(&Line::Started(live.clone())) {
            let failure = Failure::new(Kind::Internal, format!("cannot write the journal of sessions: {error}"))
                .hint("look at the disk of that machine: `df -h`, and MALAI_HOME/sessions");
            return Err(Rejected::Failed(failure, inner.slot(session)));
        }
        let Some(slot) = inner.slot(session) else {
            return Err(Rejected::Lives);
        };
        inner.held += cost(&live);
        let (sender, commands) = mpsc::channel(8);
        inner.live.insert(session, Entry { live, commands: sender });
        let registration = Registration { session, table: self.clone(), tree: None, finished: false, _room: room };
        Ok(Admitted { registration, commands, slot })
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
        let Ended { session, cluster, request, .. } = ended;
        inner.held = inner.held.saturating_sub(cost(&Live { session, cluster, request }));
        let at_ms = now_ms();
        inner.audited.insert(session, at_ms);
        inner.forget.push_back((Instant::now() + REMEMBER, session));
        inner.note(&Line::Audited { session, at_ms });
        drop(inner);
        self.changed();
    }

    /// Tells one session.
    pub(crate) fn tell(&self, session: SessionName, command: Command) {
        if let Some(entry) = self.lock().live.get(&session)
            && entry.commands.try_send(command).is_err()
        {
            // Eight wait already, of which the first ends it.
            tracing::debug!(session = session.id.short(), "a session that is told to end already is told once more");
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

    /// Whether no new session is taken on.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// How many live, and how many have ended unconfirmed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.live.len(), inner.ended.len())
    }
}

fn busy(message: &str) -> Failure {
    Failure::new(Kind::Busy, message).hint("try again in a while")
}

impl Inner {
    /// Whether one more session may start, and under this id.
    fn check(&mut self, session: SessionName) -> Result<(), Failure> {
        self.forget_old();
        if self.ended.contains_key(&session) || self.audited.contains_key(&session) {
            return Err(Failure::new(
                Kind::Unknown,
                "this session was taken on before and is over: it was not run again, and its result is gone",
            ));
        }
        if self.closing {
            return Err(busy("that machine's daemon is being stopped"));
        }
        if self.live.len() + self.ended.len() + self.audited.len() >= MAX_IDS || self.held >= MAX_HELD {
            return Err(busy("that machine has taken on too many sessions in the last ten minutes"));
        }
        Ok(())
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        while let Some((_, session)) = self.forget.pop_front_if(|(at, _)| *at <= now) {
            self.audited.remove(&session);
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

    /// Writes a line without which work goes on: at worst a later daemon writes an audit line twice, or none.
    fn note(&mut self, line: &Line) {
        if let Err(error) = self.journal.write(line) {
            tracing::warn!(%error, "the journal of sessions cannot be written");
        }
        if self.journal.is_bloated()
            && let Err(error) = self.rewrite()
        {
            tracing::warn!(%error, "the journal of sessions cannot be written anew");
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let bases = self.bases.iter().map(|base| Line::Base(base.clone()));
        let live = self.live.values().map(|entry| Line::Started(entry.live.clone()));
        let ended = self.ended.values().map(|ended| Line::Ended(ended.clone()));
        let audited = self.audited.iter().map(|(session, at_ms)| Line::Audited { session: *session, at_ms: *at_ms });
        self.journal.rewrite(bases.chain(live).chain(ended).chain(audited))
    }
}

/// What a session's task holds of the table. Dropped unfinished, the session's processes are killed: its task panicked,
/// which ends the session, or the executor ends, and then the journal still has it as unfinished.
#[derive(Debug)]
pub(crate) struct Registration {
    session: SessionName,
    table: Arc<Table>,
    tree: Option<Arc<Tree>>,
    finished: bool,
    _room: OwnedSemaphorePermit,
}

impl Registration {
    /// The processes that must not outlive the session.
    pub(crate) fn guard(&mut self, tree: Arc<Tree>) {
        self.tree = Some(tree);
    }

    /// The session is over.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        self.finished = true;
        self.tree = None;
        let mut inner = self.table.lock();
        if let Some(Entry { live: Live { session, cluster, request }, .. }) = inner.live.remove(&self.session) {
            let ended = Ended { session, cluster, request, outcome };
            inner.note(&Line::Ended(ended.clone()));
            inner.ended.insert(session, ended);
            inner.unsent.push_back(session);
        }
        drop(inner);
        self.table.changed();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.take() {
            tree.kill_now();
        }
        if !self.finished && std::thread::panicking() {
            let why = "a fault in the executor ended it";
            self.finish(Outcome::Refused(Failure::new(Kind::Unknown, why)));
        }
        self.table.close_slot(self.session);
    }
}
