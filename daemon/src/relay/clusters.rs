//! The clusters of a relay: the snapshot that it holds of each, and whom that admits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::Connection;
use malai_protocol::failure::Failure;
use malai_protocol::home::RelayDir;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::snapshot::{Header, Order, SignedHeader, Snapshot, order};
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings::{Entry, Settings};
use crate::net::pull::pull;
use crate::runtime::alarms::{AlarmCause, Alarms};
use crate::store::held::Held;
use crate::store::keeper::Keeper;
use crate::store::snapshot::Place;

/// Bounds how long a fetch waits for an earlier one: a slow peer does not hold up the next.
const FETCH_TURN_TIMEOUT: Duration = Duration::from_millis(250);

/// Holds all clusters of a relay.
#[derive(Debug)]
pub(crate) struct Clusters {
    all: Vec<Cluster>,
    changes: watch::Sender<u64>,
}

/// Is one cluster of a relay.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Is its key.
    pub(crate) id: ClusterId,
    /// Is its name, for people.
    pub(crate) name: String,
    place: Place,
    /// Is the header of what was in its own file when the relay started.
    filed: Option<Header>,
    state: RwLock<State>,
    alarms: Alarms,
    fetching: tokio::sync::Mutex<()>,
}

/// Holds what a relay knows of a cluster.
#[derive(Debug, Default)]
struct State {
    held: Option<Arc<Held>>,
    machines: HashSet<MachineId>,
    /// Holds those that were removed from the config while this relay ran: a ticket does not bring them back.
    removed: HashSet<MachineId>,
}

impl State {
    fn take(&mut self, held: Held) {
        let machines: HashSet<MachineId> = held.config.machines.values().map(|machine| machine.id).collect();
        self.removed.extend(self.machines.difference(&machines).copied());
        self.removed.retain(|id| !machines.contains(id));
        self.machines = machines;
        self.held = Some(Arc::new(held));
    }
}

impl Clusters {
    /// Loads the clusters of these settings, with the snapshots that are stored.
    ///
    /// # Errors
    /// [`malai_protocol::failure::Kind::BadConfig`] for a stored snapshot that is broken, or that this version cannot
    /// read: whom it admits is then not known.
    pub(crate) fn load(dir: &RelayDir, settings: &Settings) -> Result<Arc<Self>, Failure> {
        let all: Result<Vec<_>, _> = settings.cluster.iter().map(|entry| Cluster::load(dir, entry)).collect();
        Ok(Arc::new(Self { all: all?, changes: watch::Sender::new(0) }))
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> &[Cluster] {
        &self.all
    }

    /// Returns what wakes whenever another snapshot is held.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns the cluster with this key.
    pub(crate) fn get(&self, id: &ClusterId) -> Option<&Cluster> {
        self.all.iter().find(|cluster| cluster.id == *id)
    }

    /// Returns whether this is the key of a machine of one of them, or of one of them itself.
    pub(crate) fn has(&self, key: &MachineId) -> bool {
        self.all.iter().any(|cluster| cluster.has(key))
    }

    /// Returns the cluster that signed this header; `None` when it is no cluster's of this relay, or not validly signed.
    pub(crate) fn signer(&self, header: &SignedHeader) -> Option<(&Cluster, Header)> {
        self.all.iter().find_map(|cluster| Some((cluster, header.verify(&cluster.id).ok()?)))
    }

    /// Fetches the snapshot with this verified header over the connection that it was announced on, and holds it, when
    /// it is newer than what is held by then.
    ///
    /// # Errors
    /// Whatever the stream, the snapshot or the disk say.
    pub(crate) async fn fetch(&self, cluster: &Cluster, conn: &Connection, header: &Header) -> anyhow::Result<()> {
        let _turn = tokio::time::timeout(FETCH_TURN_TIMEOUT, cluster.fetching.lock()).await;
        match cluster.order(header) {
            Order::Newer => {}
            Order::Fork => {
                cluster.fork(header);
                return Ok(());
            }
            Order::Same | Order::Older => return Ok(()),
        }
        let snapshot = pull(conn, &cluster.id, header).await?;
        if cluster.install(snapshot)? {
            self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
        Ok(())
    }

    /// Keeps on the disk what is held of all of them, until `cancel`.
    pub(crate) async fn keep(self: Arc<Self>, cancel: CancellationToken) {
        let keeping = self.all.iter().map(|cluster| cluster.keep(self.watch(), cancel.clone()));
        futures_util::future::join_all(keeping).await;
    }
}

impl Cluster {
    fn load(dir: &RelayDir, entry: &Entry) -> Result<Self, Failure> {
        let place = Place { file: dir.snapshot(&entry.id52), reserve: dir.snapshot_reserve(&entry.id52) };
        let mut state = State::default();
        let found = place.load(&entry.id52)?;
        if let Some(snapshot) = found.newest {
            state.take(Held::new(snapshot)?);
        }
        Ok(Self {
            id: entry.id52,
            name: entry.name.clone(),
            place,
            filed: found.filed,
            state: RwLock::new(state),
            alarms: Alarms::new(entry.name.clone()),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Returns the snapshot that is held.
    pub(crate) fn held(&self) -> Option<Arc<Held>> {
        self.read().held.clone()
    }

    /// Returns what an administrator must look at.
    pub(crate) fn alarm(&self) -> Option<String> {
        let all = self.alarms.all();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Returns whether this machine was removed from the config while the relay ran.
    pub(crate) fn removed(&self, key: &MachineId) -> bool {
        self.read().removed.contains(key)
    }

    /// Returns whether this is the key of a machine of the cluster, or the cluster's own.
    pub(crate) fn has(&self, key: &MachineId) -> bool {
        self.id.as_bytes() == key.as_bytes() || self.read().machines.contains(key)
    }

    /// Returns whether this key speaks for the cluster manager: the cluster's own, or that of the machine that holds it.
    pub(crate) fn is_manager(&self, key: &MachineId) -> bool {
        let manager = |held: &Held| held.config.machines.get(&held.config.cluster.manager).map(|machine| machine.id);
        key.as_bytes() == self.id.as_bytes() || self.held().and_then(|held| manager(&held)).as_ref() == Some(key)
    }

    /// Returns how this header compares with what is held.
    pub(crate) fn order(&self, header: &Header) -> Order {
        order(header, self.read().held.as_ref().map(|held| held.snapshot.header()))
    }

    fn fork(&self, header: &Header) {
        let text = format!(
            "two snapshots have generation {}: the second is refused. On the cluster manager run `malai \
             rescan`: a new generation replaces both",
            header.generation
        );
        self.alarms.raise(AlarmCause::Fork, text);
    }

    /// Holds a verified snapshot, so that who was removed goes; [`Cluster::keep`] stores it. True when it
    /// was newer.
    fn install(&self, snapshot: Snapshot) -> Result<bool, Failure> {
        let generation = snapshot.header().generation;
        let held = Held::new(snapshot).inspect_err(|failure| {
            let text = format!("cannot use the config of generation {generation}: {failure}");
            self.alarms.raise(AlarmCause::Unusable, text);
        })?;
        let header = *held.snapshot.header();
        let mut state = self.state.write();
        match order(&header, state.held.as_ref().map(|held| held.snapshot.header())) {
            Order::Newer => state.take(held),
            Order::Fork => {
                drop(state);
                self.fork(&header);
                return Ok(false);
            }
            Order::Same | Order::Older => return Ok(false),
        }
        drop(state);
        tracing::info!(cluster = %self.name, generation, "snapshot accepted");
        self.alarms.clear(AlarmCause::Fork);
        self.alarms.clear(AlarmCause::Unusable);
        Ok(true)
    }

    async fn keep(&self, changes: watch::Receiver<u64>, cancel: CancellationToken) {
        Keeper::new(self.place.clone(), None, self.filed).run(changes, || self.held(), &self.alarms, cancel).await;
    }
}
