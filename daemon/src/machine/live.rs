//! The table of live sessions of one cluster on this machine: what is decided anew when the config changes.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use malai_protocol::access::decide_anew;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::plan::{Decided, End, Live, Plan, SessionName};
use malai_protocol::session::EndedBy;
use tokio::sync::{Notify, watch};

use crate::membership::Held;
use crate::shared::Shared;
use crate::supervisor::Executor;

/// Sessions of one cluster at once on this machine.
const MOST: usize = 4096;
/// Requests that were sent again and refused, whose first sending may still be on its way: the oldest is forgotten.
const MOST_SPENT: usize = 4096;

/// One session in the table.
#[derive(Debug, Clone)]
struct Entry {
    request: Decided,
    /// Its plan was sent: from here on a change of the config has to end it. Before, the comparison of generations
    /// under the table's lock sees the change.
    planned: bool,
    /// Attachments that are there.
    followers: usize,
}

/// Live sessions, and those on their way to be.
#[derive(Debug)]
pub(crate) struct LiveTable {
    cluster: ClusterId,
    entries: Arc<Mutex<HashMap<SessionName, Entry>>>,
    spent: Mutex<VecDeque<SessionName>>,
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
        if let Some(entry) = lock(&self.live.entries).get_mut(&self.name) {
            entry.followers = entry.followers.saturating_sub(1);
        }
        self.live.changed.send_replace(());
    }
}

/// Takes a session out of the table again, unless its plan was sent: then its end does.
#[derive(Debug)]
#[must_use = "dropping the guard takes the session out again"]
pub(crate) struct Registered {
    entries: Arc<Mutex<HashMap<SessionName, Entry>>>,
    name: SessionName,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        if entries.get(&self.name).is_some_and(|entry| !entry.planned) {
            entries.remove(&self.name);
        }
    }
}

fn waits(entry: &Entry) -> bool {
    entry.planned && entry.followers == 0 && !entry.request.detached
}

fn lock(entries: &Mutex<HashMap<SessionName, Entry>>) -> MutexGuard<'_, HashMap<SessionName, Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of an attempt to send a plan.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// Another snapshot is held than the one that was decided by: decide again.
    Outdated,
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
            entries: Arc::default(),
            spent: Mutex::default(),
            adopted: Notify::new(),
            barrier: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Takes in a session that an earlier daemon planned. It has to be decided anew.
    pub(crate) fn adopt(&self, live: &Live) {
        let entry = Entry { request: live.request.clone(), planned: true, followers: 0 };
        lock(&self.entries).entry(live.session).or_insert(entry);
        self.changed.send_replace(());
        self.adopted.notify_one();
    }

    /// Returns when sessions were taken in since the last call.
    pub(crate) async fn adopted(&self) {
        self.adopted.notified().await;
    }

    /// Whether this session is a live one of this cluster.
    pub(crate) fn has(&self, name: &SessionName) -> bool {
        lock(&self.entries).get(name).is_some_and(|entry| entry.planned)
    }

    /// Whether a request of this name is being decided: whether it will be a session is not known yet.
    pub(crate) fn is_undecided(&self, name: &SessionName) -> bool {
        lock(&self.entries).get(name).is_some_and(|entry| !entry.planned)
    }

    /// This id was sent again, and its caller is told that it never ran: so it never shall, although the first sending
    /// may still arrive.
    pub(crate) fn spend(&self, name: SessionName) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= MOST_SPENT {
            spent.pop_front();
        }
        spent.push_back(name);
    }

    fn is_spent(&self, name: &SessionName) -> bool {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Registers a session before it is decided. `None` when the table is full, `Some(Err)` when the name is taken.
    pub(crate) fn register(&self, name: SessionName, request: Decided) -> Option<Result<Registered, ()>> {
        if self.is_spent(&name) {
            return Some(Err(()));
        }
        let mut entries = lock(&self.entries);
        if entries.contains_key(&name) {
            return Some(Err(()));
        }
        if entries.len() >= MOST {
            return None;
        }
        entries.insert(name, Entry { request, planned: false, followers: 0 });
        Some(Ok(Registered { entries: Arc::clone(&self.entries), name }))
    }

    /// Sends the plan if the decision was made by the snapshot that is held now.
    ///
    /// # Errors
    /// [`Failure`] when the executor takes no plan.
    pub(crate) async fn send(
        &self,
        plan: Plan,
        decided_by: u64,
        held_now: impl Fn() -> u64,
        executor: &Executor,
    ) -> Result<Sent, Failure> {
        let _barrier = self.barrier.lock().await;
        if held_now() != decided_by {
            return Ok(Sent::Outdated);
        }
        let name = plan.session;
        lock(&self.entries).insert(name, Entry { request: plan.request.clone(), planned: true, followers: 0 });
        let sent = executor.plan(plan).await;
        if sent.is_err() {
            lock(&self.entries).remove(&name);
        }
        sent.map(|()| Sent::Yes)
    }

    /// The session ended.
    pub(crate) fn remove(&self, name: &SessionName) {
        lock(&self.entries).remove(name);
    }

    /// An attachment follows this session, for as long as the guard lives.
    pub(crate) fn follow(self: &Arc<Self>, name: SessionName) -> Following {
        if let Some(entry) = lock(&self.entries).get_mut(&name) {
            entry.followers += 1;
        }
        Following { live: Arc::clone(self), name }
    }

    /// Wakes whenever an attachment is lost.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The callers of running sessions that nobody follows and that wait for somebody.
    pub(crate) fn unfollowed(&self) -> BTreeSet<MachineId> {
        let entries = lock(&self.entries);
        let alone = entries.iter().filter(|(_, entry)| waits(entry));
        alone.map(|(name, _)| name.caller).collect()
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Decides every planned session anew, and ends those that are not allowed any more.
    pub(crate) async fn review(&self, held: &Held, me: &MachineId, shared: &Shared) {
        let refused = {
            let _barrier = self.barrier.lock().await;
            self.refused(held, me, shared)
        };
        self.revoke(refused, shared).await;
    }

    /// Ends every planned session: there is no config any more that could allow them.
    pub(crate) async fn revoke_all(&self, shared: &Shared) {
        let gone = || Failure::new(Kind::Denied, "the target left the cluster");
        let planned = {
            let _barrier = self.barrier.lock().await;
            let entries = lock(&self.entries);
            entries.iter().filter(|(_, entry)| entry.planned).map(|(name, _)| (*name, gone())).collect()
        };
        self.revoke(planned, shared).await;
    }

    async fn revoke(&self, refused: Vec<(SessionName, Failure)>, shared: &Shared) {
        if refused.is_empty() {
            return;
        }
        let Some(executor) = shared.executor.running().await else { return };
        for (session, failure) in refused {
            tracing::info!(session = %session.id.short(), cluster = %self.cluster.short(), "access withdrawn: {failure}");
            let end = End { session, cause: EndedBy::Revoked, reason: Some(failure.message) };
            if let Err(failure) = executor.end(end).await {
                tracing::error!(session = %session.id.short(), "cannot end the session: {failure}");
            }
        }
    }

    fn refused(&self, held: &Held, me: &MachineId, shared: &Shared) -> Vec<(SessionName, Failure)> {
        let me = shared.me(me);
        let entries = lock(&self.entries);
        let planned = entries.iter().filter(|(_, entry)| entry.planned);
        planned
            .filter_map(|(name, entry)| {
                decide_anew(&held.config, &me, &name.caller, &entry.request).map(|failure| (*name, failure))
            })
            .collect()
    }
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

    /// All that there are.
    pub(crate) fn all(&self) -> Vec<Arc<LiveTable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
