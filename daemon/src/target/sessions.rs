//! The sessions of all clusters of one daemon: the tables of those that live, and the ends that have to be written down.

use std::collections::HashSet;

use malai_protocol::audit::Entry;
use malai_protocol::plan::{Ended, Live, SessionName};
use tokio::sync::mpsc;

use super::ended::Owed;
use super::live::Tables;
use crate::supervisor::slot::Ledger;

/// Holds the tables of live sessions, and takes the ends that no control connection reports: those of an earlier daemon, of
/// an executor that was lost, and of requests that were given up. There are never more than the tables hold.
#[derive(Debug)]
pub(crate) struct Sessions {
    tables: Tables,
    owed: mpsc::UnboundedSender<Owed>,
}

impl Sessions {
    /// Makes empty tables. `owed` takes the ends.
    pub(crate) fn new(owed: mpsc::UnboundedSender<Owed>) -> Self {
        Self { tables: Tables::default(), owed }
    }

    /// Returns the tables of live sessions.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Has an end written down.
    pub(crate) fn owe(&self, owed: Owed) {
        if self.owed.send(owed).is_err() {
            tracing::debug!("the daemon stops before an end was written down; the next one sees that it is missing");
        }
    }
}

impl Ledger for Sessions {
    fn adopt(&self, live: &Live) {
        self.tables.of(live.cluster).adopt(live);
    }

    fn report(&self, ended: &Ended, is_written: Option<bool>) {
        // An earlier daemon may have been killed after it wrote the line, and before it confirmed that.
        self.owe(if is_written == Some(false) { Owed::end(ended) } else { Owed::Told(Box::new(ended.clone())) });
    }

    fn lose(&self, start: Entry) {
        self.owe(Owed::unknown(start));
    }

    fn lose_others(&self, known: &HashSet<SessionName>) {
        for table in self.tables.all() {
            for (name, request) in table.claim_others(known) {
                tracing::error!(session = %name.id.short(), cluster = %table.cluster().short(), "lost with its executor");
                self.owe(Owed::lost(table.cluster(), name, request));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.tables.all().iter().all(|table| table.len() == 0)
    }
}
