//! The table of live sessions of one cluster on this machine: what is decided anew when the config changes.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use malai_protocol::access::decide_anew;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::plan::{Decided, End, Live, Plan, SessionName};
use malai_protocol::session::EndedBy;
use tokio::sync::{Notify, watch};

use crate::clusters::host::Host;
use crate::store::held::Held;
use crate::supervisor::Executor;

/// Sessions of one cluster at once on this machine.
const MOST: usize = 4096;
/// Requests that were sent again and refused, whose first sending may still be on its way: the oldest is forgotten.
const MOST_SPENT: usize = 4096;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being decided. The comparison of generations under the table's lock sees a change of the config.
    Deciding,
    /// Its plan was sent: from here on a change of the config has to end it, and its start line is owed an end line.
    Planned,
    /// It is over, and its end line is being written.
    Ending,
}

/// One session in the table.
#[derive(Debug, Clone)]
struct Entry {
    request: Decided,
    stage: Stage,
    /// Attachments that are there.
    followers: usize,
}

/// Ids that must not run any more: the oldest is forgotten.
#[derive(Debug, Default)]
struct Spent {
    order: VecDeque<SessionName>,
    names: HashSet<SessionName>,
}

impl Spent {
    fn insert(&mut self, name: SessionName) {
        if !self.names.insert(name) {
            return;
        }
        if self.order.len() >= MOST_SPENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.order.push_back(name);
    }
}

/// What is under one lock: whether an id is spent, and whether it is taken, is one question.
#[derive(Debug, Default)]
struct State {
    entries: HashMap<SessionName, Entry>,
    spent: Spent,
    /// The cluster was left: no plan is sent any more.
    left: bool,
}

/// Live sessions, and those on their way to be.
#[derive(Debug)]
pub(crate) struct LiveTable {
    cluster: ClusterId,
    state: Arc<Mutex<State>>,
    /// Sessions of an earlier daemon came in.
    adopted: Notify,
    /// Held while a plan is sent and while the table is reviewed, so that either the plan is decided by the new
    /// snapshot, or its session is in the table and its `End` follows it.
    barrier: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
}

/// One attachment to a session; it is lost when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the following"]
pub(crate) struct Following {
    live: Arc<LiveTable>,
    name: SessionName,
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.live.state).entries.get_mut(&self.name) {
            entry.followers = entry.followers.saturating_sub(1);
        }
        self.live.changed.send_replace(());
    }
}

/// Takes a session out of the table again, unless its plan was sent: then its end does.
#[derive(Debug)]
#[must_use = "dropping the guard takes the session out again"]
pub(crate) struct Registered {
    state: Arc<Mutex<State>>,
    name: SessionName,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if state.stage(&self.name) == Some(Stage::Deciding) {
            state.entries.remove(&self.name);
        }
    }
}

fn waits(entry: &Entry) -> bool {
    entry.stage == Stage::Planned && entry.followers == 0 && !entry.request.detached
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn stage(&self, name: &SessionName) -> Option<Stage> {
        self.entries.get(name).map(|entry| entry.stage)
    }

    fn planned(&self) -> impl Iterator<Item = (&SessionName, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.stage == Stage::Planned)
    }

    /// Begins the end of a session. Returns `true` to the first of its callers, which writes the end line.
    fn claim(&mut self, name: &SessionName) -> bool {
        match self.entries.get_mut(name) {
            Some(entry) if entry.stage == Stage::Planned => {
                entry.stage = Stage::Ending;
                true
            }
            _ => false,
        }
    }
}

/// What became of an attempt to send a plan.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// Another snapshot is held than the one that was decided by: decide again.
    Outdated,
}

/// Says why a plan was not sent.
#[derive(Debug)]
pub(crate) struct NotSent {
    /// For the caller.
    pub(crate) failure: Failure,
    /// The session was taken for lost with its executor meanwhile: its end line is written there.
    pub(crate) is_over: bool,
}

impl LiveTable {
    /// The cluster whose sessions these are.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// An empty table.
    pub(crate) fn new(cluster: ClusterId) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            state: Arc::default(),
            adopted: Notify::new(),
            barrier: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Takes plans again: the cluster is served, perhaps after it was left and joined once more.
    pub(crate) fn open(&self) {
        lock(&self.state).left = false;
    }

    /// Takes in a session that an earlier daemon planned. It has to be decided anew.
    pub(crate) fn adopt(&self, live: &Live) {
        let entry = Entry { request: live.request.clone(), stage: Stage::Planned, followers: 0 };
        lock(&self.state).entries.entry(live.session).or_insert(entry);
        self.changed.send_replace(());
        self.adopted.notify_one();
    }

    /// Returns when sessions were taken in since the last call.
    pub(crate) async fn adopted(&self) {
        self.adopted.notified().await;
    }

    /// Whether this session is a live one of this cluster.
    pub(crate) fn has(&self, name: &SessionName) -> bool {
        lock(&self.state).stage(name).is_some_and(|stage| stage != Stage::Deciding)
    }

    /// Whether a request of this name is being decided: whether it will be a session is not known yet.
    pub(crate) fn is_undecided(&self, name: &SessionName) -> bool {
        lock(&self.state).stage(name) == Some(Stage::Deciding)
    }

    /// This id was sent again, and its caller is told that it never ran: so it never shall, although the first sending
    /// may still arrive.
    pub(crate) fn spend(&self, name: SessionName) {
        lock(&self.state).spent.insert(name);
    }

    /// Does the same to an id that did not come, in one step with the look whether it did. False while it is being decided.
    pub(crate) fn spend_unless_here(&self, name: SessionName) -> bool {
        let mut state = lock(&self.state);
        let stage = state.stage(&name);
        if stage.is_none() {
            state.spent.insert(name);
        }
        stage != Some(Stage::Deciding)
    }

    /// Registers a session before it is decided. `None` when the table is full, `Some(Err)` when the name is taken or
    /// spent: both is asked under one lock, since what spends a name holds it until then.
    pub(crate) fn register(&self, name: SessionName, request: Decided) -> Option<Result<Registered, ()>> {
        let mut state = lock(&self.state);
        if state.spent.names.contains(&name) || state.entries.contains_key(&name) {
            return Some(Err(()));
        }
        if state.entries.len() >= MOST {
            return None;
        }
        state.entries.insert(name, Entry { request, stage: Stage::Deciding, followers: 0 });
        Some(Ok(Registered { state: Arc::clone(&self.state), name }))
    }

    /// Sends the plan if the decision was made by the snapshot that is held now.
    ///
    /// # Errors
    /// [`NotSent`] when the executor takes no plan, or the cluster was left.
    pub(crate) async fn send(
        &self,
        plan: Plan,
        decided_by: u64,
        held_now: impl Fn() -> u64,
        executor: &Executor,
    ) -> Result<Sent, NotSent> {
        let _barrier = self.barrier.lock().await;
        if held_now() != decided_by {
            return Ok(Sent::Outdated);
        }
        let name = plan.session;
        {
            let mut state = lock(&self.state);
            if state.left {
                return Err(NotSent { failure: left(), is_over: false });
            }
            let entry = Entry { request: plan.request.clone(), stage: Stage::Planned, followers: 0 };
            state.entries.insert(name, entry);
        }
        match executor.plan(plan).await {
            Ok(()) => Ok(Sent::Yes),
            Err(failure) => Err(NotSent { failure, is_over: !self.give_up(&name) }),
        }
    }

    /// Takes a session back whose plan was not sent. False when it is over already, and its end line is another's to write.
    pub(crate) fn give_up(&self, name: &SessionName) -> bool {
        let mut state = lock(&self.state);
        let stage = state.stage(name);
        if stage == Some(Stage::Planned) {
            state.entries.remove(name);
            drop(state);
            self.changed.send_replace(());
        }
        matches!(stage, Some(Stage::Planned | Stage::Deciding))
    }

    /// Begins the end of a planned session; true for the one that has to write its end line, and then calls
    /// [`LiveTable::finish`].
    pub(crate) fn claim(&self, name: &SessionName) -> bool {
        lock(&self.state).claim(name)
    }

    /// Begins the end of every planned session but these.
    pub(crate) fn claim_others(&self, known: &HashSet<SessionName>) -> Vec<(SessionName, Decided)> {
        let mut state = lock(&self.state);
        let lost: Vec<_> = state.planned().filter(|(name, _)| !known.contains(name)).map(|(name, _)| *name).collect();
        let mut claimed = Vec::with_capacity(lost.len());
        for name in lost {
            state.claim(&name);
            claimed.extend(state.entries.get(&name).map(|entry| (name, entry.request.clone())));
        }
        claimed
    }

    /// Forgets a session whose end was begun: its end line is written, or will be.
    pub(crate) fn finish(&self, name: &SessionName) {
        let mut state = lock(&self.state);
        if state.stage(name) == Some(Stage::Ending) {
            state.entries.remove(name);
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// Waits until no session is planned or ending, but no longer than this; says whether there is none.
    pub(crate) async fn all_over(&self, limit: Duration) -> bool {
        let mut changes = self.watch();
        let is_over = || lock(&self.state).entries.values().all(|entry| entry.stage == Stage::Deciding);
        let over = async {
            // The sender lives as long as this table.
            while !is_over() && changes.changed().await.is_ok() {}
        };
        tokio::time::timeout(limit, over).await.is_ok()
    }

    /// Whether any of its sessions came by a cluster with this alias.
    pub(crate) fn is_of(&self, alias: &str) -> bool {
        let state = lock(&self.state);
        state.planned().any(|(_, entry)| entry.request.audit.as_ref().is_some_and(|names| names.cluster == alias))
    }

    /// An attachment follows this session, for as long as the guard lives.
    pub(crate) fn follow(self: &Arc<Self>, name: SessionName) -> Following {
        if let Some(entry) = lock(&self.state).entries.get_mut(&name) {
            entry.followers += 1;
        }
        Following { live: Arc::clone(self), name }
    }

    /// Wakes whenever an attachment is lost, and whenever a session is over.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The callers of running sessions that nobody follows and that wait for somebody.
    pub(crate) fn unfollowed(&self) -> BTreeSet<MachineId> {
        let state = lock(&self.state);
        let alone = state.entries.iter().filter(|(_, entry)| waits(entry));
        alone.map(|(name, _)| name.caller).collect()
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).entries.len()
    }

    /// Decides every planned session anew, and ends those that are not allowed any more.
    pub(crate) async fn review(&self, held: &Held, me: &MachineId, host: &Host) {
        let refused = {
            let _barrier = self.barrier.lock().await;
            self.refused(held, me, host)
        };
        self.revoke(refused, host).await;
    }

    /// Ends every planned session, and lets none in any more: there is no config any more that could allow them.
    pub(crate) async fn revoke_all(&self, host: &Host) {
        let planned = {
            let _barrier = self.barrier.lock().await;
            let mut state = lock(&self.state);
            state.left = true;
            state.planned().map(|(name, _)| (*name, left())).collect()
        };
        self.revoke(planned, host).await;
    }

    async fn revoke(&self, refused: Vec<(SessionName, Failure)>, host: &Host) {
        if refused.is_empty() {
            return;
        }
        let Some(executor) = host.executor.running().await else { return };
        for (session, failure) in refused {
            tracing::info!(session = %session.id.short(), cluster = %self.cluster.short(), "access withdrawn: {failure}");
            let end = End { session, cause: EndedBy::Revoked, reason: Some(failure.message) };
            if let Err(failure) = executor.end(end).await {
                tracing::error!(session = %session.id.short(), "cannot end the session: {failure}");
            }
        }
    }

    fn refused(&self, held: &Held, me: &MachineId, host: &Host) -> Vec<(SessionName, Failure)> {
        let me = host.me(me);
        let state = lock(&self.state);
        state
            .planned()
            .filter_map(|(name, entry)| {
                decide_anew(&held.config, &me, &name.caller, &entry.request).map(|failure| (*name, failure))
            })
            .collect()
    }
}

/// The end of what runs, and the refusal of what would.
pub(crate) fn left() -> Failure {
    Failure::new(Kind::Denied, "the target left the cluster")
}

/// The tables of all clusters. They outlive what is served of a cluster: it may be taken in anew under its sessions, and
/// an executor tells of its sessions before their cluster is taken in.
#[derive(Debug, Default)]
pub(crate) struct Tables(Mutex<HashMap<ClusterId, Arc<LiveTable>>>);

impl Tables {
    /// The table of this cluster.
    pub(crate) fn of(&self, cluster: ClusterId) -> Arc<LiveTable> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tables.entry(cluster).or_insert_with(|| LiveTable::new(cluster)))
    }

    /// The table of this cluster, if it ever had a session or was served.
    pub(crate) fn find(&self, cluster: ClusterId) -> Option<Arc<LiveTable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&cluster).cloned()
    }

    /// All that there are.
    pub(crate) fn all(&self) -> Vec<Arc<LiveTable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
