//! Sessions that are over: those whose output somebody may still come for, and the bare records after that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::plan::SessionName;
use malai_protocol::session::{Attached, ExitRecord, Resend};

use super::bounded::Bounded;
use super::{Command, Inner, Room, Table};

/// How long a record is kept.
const RECORD: Duration = Duration::from_secs(3600);
/// Records at once, and of one caller: about half a KiB each.
const MAX_RECORDS: (usize, usize) = (8192, 2048);
/// Ended sessions at once that nobody follows and whose output is kept, and those of one caller.
pub(super) const MAX_KEPT: (usize, usize) = (1024, 256);

/// How a session ended, for a caller that comes late.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "almost all are the large one")]
pub(crate) enum Record {
    /// It ran: what an attachment is told first, and then last. Of the output nothing is kept.
    Exit(Attached, ExitRecord),
    /// There is no record; why.
    Refused(Failure),
}

/// What there is for somebody who asks for a session.
#[derive(Debug)]
pub(crate) enum Found {
    /// It lives, or its output is kept.
    Session(mpsc::UnboundedSender<Command>),
    /// Only its record is kept.
    Over(Arc<Record>),
    /// It is not known, and may be run.
    Missing,
    /// Neither; why.
    Refused(Failure),
}

/// The records.
#[derive(Debug)]
pub(super) struct Records(Bounded<(Instant, Arc<Record>)>);

impl Records {
    pub(super) fn new() -> Self {
        let (most, each) = MAX_RECORDS;
        Self(Bounded::new(most, each))
    }

    pub(super) fn insert(&mut self, session: SessionName, record: Record) {
        self.forget_old();
        if let Some(oldest) = self.0.insert(session, (Instant::now(), Arc::new(record))) {
            tracing::debug!(id = oldest.id.short(), "too many records: the oldest is forgotten");
        }
    }

    pub(super) fn get(&mut self, session: &SessionName) -> Option<Arc<Record>> {
        self.forget_old();
        self.0.get(session).map(|(_, record)| record.clone())
    }

    fn forget_old(&mut self) {
        while let Some(oldest) = self.0.oldest()
            && self.0.get(&oldest).is_some_and(|(since, _)| since.elapsed() >= RECORD)
        {
            self.0.remove(&oldest);
        }
    }
}

/// A session that is over and whose output is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) grace: Duration,
}

/// What the task of a session that is over holds of the table.
#[derive(Debug)]
pub(crate) struct Keep {
    pub(super) session: SessionName,
    pub(super) table: Arc<Table>,
    /// Held as long as somebody follows as when it ended.
    pub(super) room: Option<Room>,
}

impl Keep {
    /// Nobody follows: it keeps no new session out any more, and the oldest of too many such has to go.
    pub(crate) fn unfollowed(&mut self) {
        if self.room.take().is_none() {
            return;
        }
        let mut inner = self.table.lock();
        if inner.kept.contains_key(&self.session)
            && let Some(oldest) = inner.unfollowed.insert(self.session, ())
        {
            // Its task sees that nobody can reach it any more.
            inner.kept.remove(&oldest);
        }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        inner.kept.remove(&self.session);
        inner.unfollowed.remove(&self.session);
        inner.slots.remove(&self.session);
        drop(inner);
        self.table.changed();
    }
}

impl Table {
    /// Nobody comes for sessions that are over any more.
    pub(crate) fn let_go(&self) {
        self.lock().kept.clear();
    }

    /// How a session ended that is over.
    pub(crate) fn record(&self, session: &SessionName) -> Option<Arc<Record>> {
        self.lock().over(*session)
    }

    /// Looks for a session that is there already; `resend`: its request was sent again, and is run if that is safe.
    pub(crate) fn find(&self, session: SessionName, resend: Option<Resend>) -> Found {
        let mut inner = self.lock();
        let commands = inner.live.get(&session).map(|entry| &entry.commands);
        if let Some(commands) = commands.or_else(|| inner.kept.get(&session).map(|kept| &kept.commands)) {
            return Found::Session(commands.clone());
        }
        match inner.over(session) {
            Some(record) => Found::Over(record),
            None => match inner.check_sent(session, resend.as_ref()) {
                Ok(()) => Found::Missing,
                Err(failure) => Found::Refused(failure),
            },
        }
    }
}

impl Inner {
    fn over(&mut self, session: SessionName) -> Option<Arc<Record>> {
        self.records.get(&session)
    }

    /// Whether this name, which is not that of a session, may still be used: it never was, or that is certain enough.
    pub(super) fn check_sent(&mut self, session: SessionName, resend: Option<&Resend>) -> Result<(), Failure> {
        self.forget_old();
        let known = self.ended.contains_key(&session) || self.audited.contains_key(&session);
        if known || self.records.get(&session).is_some() {
            return Err(Failure::new(
                Kind::Unknown,
                "this session was taken on before and is over: it was not run again, and its result is gone",
            ));
        }
        match resend {
            Some(resend) if !self.life.may_run(resend) => Err(Failure::new(
                Kind::Unknown,
                "this request was sent before, and what that machine knew of it then is gone: it may have run, and was \
                 not run again",
            )
            .hint("look at what it did on that machine: `malai audit` there tells what ran")),
            _ => Ok(()),
        }
    }
}
