//! The config of a cluster as it is served: held, fetched, stored, announced, and given to the network.

pub(crate) mod network;
pub(crate) mod sync;
pub(crate) mod tell;

use std::sync::Arc;

use malai_protocol::config::{Machine, Name};
use malai_protocol::id::MachineId;
use malai_protocol::snapshot::{Header, Order, Snapshot, order};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::runtime::alarms::Alarms;
use crate::store::held::Held;

/// Holds the config of one cluster that is in force here. It is only ever replaced by a newer one.
#[derive(Debug)]
pub(crate) struct ConfigState {
    held: watch::Sender<Arc<Held>>,
    /// Is the header of what was in its own file when the cluster was loaded.
    pub(super) filed: Option<Header>,
    /// Is held while a snapshot is fetched, so that one that many peers announce comes once. No fetch waits long for it.
    fetching: tokio::sync::Mutex<()>,
    /// Is held while a fetched snapshot is installed.
    installing: tokio::sync::Mutex<()>,
    /// Is the newest snapshot made elsewhere that could not be stored yet.
    unnoted: Mutex<Option<Snapshot>>,
    /// Holds what an administrator must look at.
    pub(crate) alarms: Alarms,
}

impl ConfigState {
    /// Holds this snapshot, of which `filed` is in its own file.
    pub(crate) fn new(held: Arc<Held>, filed: Option<Header>, alarms: Alarms) -> Self {
        Self {
            held: watch::Sender::new(held),
            filed,
            fetching: tokio::sync::Mutex::default(),
            installing: tokio::sync::Mutex::default(),
            unnoted: Mutex::default(),
            alarms,
        }
    }

    /// Returns the snapshot that is held now.
    pub(crate) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.borrow())
    }

    /// Returns what wakes whenever another snapshot is held.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Held>> {
        self.held.subscribe()
    }

    /// Returns how this header compares with that of the snapshot that is held.
    pub(crate) fn order(&self, header: &Header) -> Order {
        order(header, Some(self.held.borrow().snapshot.header()))
    }

    /// Holds a snapshot that is newer than the one that is held, and says whether it was. The comparison and the exchange
    /// are one step: of two that come at once, the older one never replaces the newer one.
    fn hold(&self, next: Held) -> bool {
        self.held.send_if_modified(|held| {
            let is_newer = order(next.snapshot.header(), Some(held.snapshot.header())) == Order::Newer;
            if is_newer {
                *held = Arc::new(next);
            }
            is_newer
        })
    }

    /// Returns whether the config has a machine with this key.
    pub(crate) fn is_member(&self, id: &MachineId) -> bool {
        self.held.borrow().config.machine_by_id(id).is_some()
    }

    /// Returns the name that the config has for this key.
    pub(crate) fn name_of(&self, id: &MachineId) -> Option<String> {
        self.held.borrow().config.machine_by_id(id).map(|(name, _)| name.to_string())
    }

    /// Returns the machine with this name.
    pub(crate) fn machine(&self, name: &str) -> Option<(MachineId, Machine)> {
        let name: Name = name.parse().ok()?;
        self.held.borrow().config.machines.get(&name).map(|machine| (machine.id, machine.clone()))
    }

    /// Returns the key of the cluster manager.
    pub(crate) fn manager(&self) -> Option<MachineId> {
        let held = self.held.borrow();
        held.config.machines.get(&held.config.cluster.manager).map(|machine| machine.id)
    }

    /// Returns whether the config names relays, or leaves that to iroh's public ones.
    pub(crate) fn has_relays(&self) -> bool {
        self.held.borrow().config.network.relays.as_ref().is_none_or(|relays| !relays.is_empty())
    }
}
