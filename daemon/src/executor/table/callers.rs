//! What each caller holds of the table, so that none fills it for all.

use std::collections::HashMap;

use malai_protocol::id::MachineId;

/// What one caller holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Sessions that hold a place.
    pub(crate) live: usize,
    /// Ids that are remembered.
    pub(crate) ids: usize,
    /// Bytes of requests.
    pub(crate) held: usize,
}

/// All callers that hold something.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    each: HashMap<MachineId, Usage>,
    ids: usize,
    held: usize,
}

impl Callers {
    /// What this one holds.
    pub(crate) fn of(&self, caller: &MachineId) -> &Usage {
        const NOTHING: &Usage = &Usage { live: 0, ids: 0, held: 0 };
        self.each.get(caller).unwrap_or(NOTHING)
    }

    /// Ids that are remembered of all.
    pub(crate) fn ids(&self) -> usize {
        self.ids
    }

    /// Bytes of all requests.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// It holds this more.
    pub(crate) fn add(&mut self, caller: MachineId, more: &Usage) {
        let usage = self.each.entry(caller).or_default();
        usage.live += more.live;
        usage.ids += more.ids;
        usage.held += more.held;
        self.ids += more.ids;
        self.held += more.held;
    }

    /// It gives this back.
    pub(crate) fn sub(&mut self, caller: MachineId, less: &Usage) {
        let Some(usage) = self.each.get_mut(&caller) else {
            return;
        };
        usage.live = usage.live.saturating_sub(less.live);
        usage.ids = usage.ids.saturating_sub(less.ids);
        usage.held = usage.held.saturating_sub(less.held);
        if *usage == Usage::default() {
            self.each.remove(&caller);
        }
        self.ids = self.ids.saturating_sub(less.ids);
        self.held = self.held.saturating_sub(less.held);
    }
}
