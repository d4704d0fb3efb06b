//! What a session holds of the table while it lives.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::plan::{Ended, Live, Outcome, SessionName};

use super::ended::{Keep, Kept, Record};
use super::{Entry, PLACE, Table};
use crate::executor::process::tree::Tree;
use crate::executor::table::journal::Line;

/// One of the places for sessions.
#[derive(Debug)]
pub(super) struct Room {
    caller: MachineId,
    table: Arc<Table>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.table.lock().callers.sub(self.caller, PLACE);
    }
}

/// What a session's task holds of the table. Dropped unfinished, the session's processes are killed: its task panicked,
/// which ends the session, or the executor ends, and then the journal still has it as unfinished.
#[derive(Debug)]
pub(crate) struct Registration {
    session: SessionName,
    table: Arc<Table>,
    tree: Option<Arc<Tree>>,
    /// Until it is finished.
    room: Option<Room>,
}

impl Registration {
    /// Of a session that was taken on, and has its place.
    pub(super) fn new(session: SessionName, table: Arc<Table>, permit: OwnedSemaphorePermit) -> Self {
        let room = Room { caller: session.caller, table: table.clone(), _permit: permit };
        Self { session, table, tree: None, room: Some(room) }
    }

    /// Which session.
    #[cfg(test)]
    pub(super) fn session(&self) -> SessionName {
        self.session
    }

    /// The processes that must not outlive the session.
    pub(crate) fn guard(&mut self, tree: Arc<Tree>) {
        self.tree = Some(tree);
    }

    /// The session is over; as long as what this returns is there, its output is kept, or its refusal may be heard.
    pub(crate) fn finish(mut self, outcome: Outcome, record: Record) -> Keep {
        self.tree = None;
        let room = self.room.take();
        let keep = matches!(record, Record::Exit(..));
        self.over(outcome, record, keep);
        Keep { session: self.session, table: self.table.clone(), room }
    }

    fn over(&self, outcome: Outcome, record: Record, keep: bool) {
        let mut inner = self.table.lock();
        if let Some(Entry { live: Live { session, cluster, request }, commands, grace }) =
            inner.live.remove(&self.session)
        {
            let ended = Ended { session, cluster, request, outcome };
            inner.ended.insert(session, ended.clone());
            inner.note(&Line::Ended(ended));
            inner.unsent.push_back(session);
            inner.records.insert(session, record);
            if keep {
                inner.kept.insert(session, Kept { commands, grace });
            }
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
        if self.room.is_none() {
            return;
        }
        if std::thread::panicking() {
            let failure = Failure::new(Kind::Unknown, "a fault in the executor ended it");
            self.over(Outcome::Refused(failure.clone()), Record::Refused(failure), false);
        }
        self.table.close_slot(self.session);
    }
}
