//! The ends of sessions: into the audit, out of the table, and only then out of the executor's memory.
//!
//! Whatever ends a session, its start line is owed one end line. The table of live sessions says who writes it: an end
//! is begun once ([`LiveTable::claim`]). What the table does not have is known already, and is only confirmed. A line
//! that the disk does not take waits here, and is tried again for as long as the daemon lives; the next one learns of it
//! from the executor, or from the start line itself ([`crate::store::audit::unended`]).
//!
//! [`LiveTable::claim`]: crate::target::live::LiveTable::claim

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::plan::{AuditNames, Decided, Ended, Outcome, SessionName};
use malai_protocol::session::EndedBy;
use tokio::time::Instant;

use crate::clusters::Clusters;
use crate::runtime::alarms::AlarmCause;
use crate::runtime::backoff::Backoff;
use crate::runtime::clock::now_ms;
use crate::target::admit::line;

/// Between a line that the disk does not take and the next attempt, at first: it doubles.
const END_LINE_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// And at most.
const END_LINE_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(5);

/// Which session an end is of, where one is in a table or at an executor.
type Session = Option<(ClusterId, SessionName)>;

/// An end that is to be written down.
#[derive(Debug)]
pub(crate) enum Owed {
    /// An executor tells how this session ended. Its line may be there already.
    Told(Box<Ended>),
    /// This line is missing for certain.
    Line {
        /// The line.
        line: Box<Entry>,
        /// Of which session.
        session: Session,
    },
}

impl Owed {
    /// Returns the missing line of this end.
    pub(crate) fn end(ended: &Ended) -> Self {
        Self::Line { line: Box::new(end_line(ended)), session: Some((ended.cluster, ended.session)) }
    }

    /// Returns the missing line of a session that its executor lost without a word of it.
    pub(crate) fn lost(cluster: ClusterId, session: SessionName, request: Decided) -> Self {
        Self::end(&Ended { session, cluster, request, outcome: Outcome::Refused(lost()) })
    }

    /// Returns the missing line for a start line of which nobody knows the session.
    pub(crate) fn unknown(start: Entry) -> Self {
        let mut line = Entry { event: Event::End, ..start };
        fill(&mut line, &Outcome::Refused(lost()));
        Self::Line { line: Box::new(line), session: None }
    }
}

fn lost() -> Failure {
    Failure::new(
        Kind::Unknown,
        "the session was lost before the executor reported it: it is not known whether the command ran",
    )
}

/// Writes ends down, and keeps those for which the disk has no room.
#[derive(Debug)]
pub(crate) struct Ends {
    waiting: VecDeque<(Box<Entry>, Session)>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl Default for Ends {
    fn default() -> Self {
        let backoff = Backoff::new(END_LINE_RETRY_INTERVAL, END_LINE_RETRY_MAX_INTERVAL);
        Self { waiting: VecDeque::new(), retry_at: None, backoff }
    }
}

impl Ends {
    /// Writes the end line of a session, takes it out of the table, and lets the executor forget it.
    pub(crate) async fn write(&mut self, clusters: &Clusters, owed: Owed) {
        let (line, session) = match owed {
            Owed::Line { line, session } => (line, session),
            Owed::Told(ended) => {
                let session = Some((ended.cluster, ended.session));
                // It may be in no table yet, told by an executor that was met just now.
                clusters.host().executor.settled().await;
                let table = clusters.host().sessions.tables().find(ended.cluster);
                if !table.is_some_and(|table| table.claim(&ended.session)) {
                    if !self.waiting.iter().any(|(_, waiting)| *waiting == session) {
                        confirm(clusters, session);
                    }
                    return;
                }
                (Box::new(end_line(&ended)), session)
            }
        };
        if let Err(failure) = self.append(clusters, &line) {
            tracing::error!(session = %line.session, "the end is not in the audit yet: {failure}");
            self.waiting.push_back((line, session));
            self.postpone(clusters, &failure);
        } else {
            confirm(clusters, session);
        }
        if let Some((cluster, name)) = session
            && let Some(table) = clusters.host().sessions.tables().find(cluster)
        {
            table.finish(&name);
        }
    }

    fn append(&self, clusters: &Clusters, line: &Entry) -> Result<(), Failure> {
        let line = Entry { at_ms: now_ms(), ..line.clone() };
        clusters.host().audit.append(&line)?;
        tracing::debug!(session = %line.session, cluster = %line.cluster, code = line.code, "ended");
        Ok(())
    }

    /// Returns when the next attempt is due; absent = nothing waits.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries the lines again that wait, until one fails.
    pub(crate) async fn retry(&mut self, clusters: &Clusters) {
        while let Some((line, session)) = self.waiting.pop_front() {
            if let Err(failure) = self.append(clusters, &line) {
                self.waiting.push_front((line, session));
                return self.postpone(clusters, &failure);
            }
            confirm(clusters, session);
        }
        if self.retry_at.take().is_some() {
            self.backoff.reset();
            clusters.host().audit.set_waiting_ends(0);
            for membership in clusters.ready() {
                membership.clear(AlarmCause::Audit);
            }
        }
    }

    fn postpone(&mut self, clusters: &Clusters, failure: &Failure) {
        self.retry_at = Some(Instant::now() + self.backoff.pause());
        let number = self.waiting.len();
        clusters.host().audit.set_waiting_ends(number);
        let ends = if number == 1 { "1 end of a session waits" } else { &format!("{number} ends of sessions wait") };
        for membership in clusters.ready() {
            membership.raise(AlarmCause::Audit, format!("{ends} to be written into the audit: {}", failure.message));
        }
    }
}

/// Lets the executor forget an end that is in the audit.
fn confirm(clusters: &Clusters, session: Session) {
    let Some((_, name)) = session else { return };
    let host = Arc::clone(clusters.host());
    let mut telling = Box::pin(async move {
        // One that is met just now tells of its ends before it is the one that runs.
        if let Some(executor) = host.executor.running().await
            && let Err(failure) = executor.audited(name).await
        {
            tracing::debug!(session = %name.id.short(), "the executor was not told: {failure}");
        }
    });
    // One that starts, or takes no orders now, hears of it when it does: nothing here waits for that.
    if (&mut telling).now_or_never().is_none() {
        tokio::spawn(telling);
    }
}

/// Returns the end line of a session. It needs nothing of the session's cluster, which may be gone.
pub(crate) fn end_line(ended: &Ended) -> Entry {
    let names = ended.request.audit.clone().unwrap_or_else(|| AuditNames {
        cluster: ended.cluster.to_string(),
        who: None,
        user: ended.request.run_as.clone().unwrap_or_default(),
    });
    let mut line = line(&names, ended.session, &ended.request, Event::End);
    line.user = line.user.or(Some(names.user));
    fill(&mut line, &ended.outcome);
    line
}

fn fill(line: &mut Entry, outcome: &Outcome) {
    match outcome {
        Outcome::Exit(record) => {
            line.code = Some(record.exit_code());
            line.outcome = Some(who_ended(record.ended_by, record.reason.as_deref()));
            line.stdout_bytes = Some(record.stdout_bytes);
            line.stderr_bytes = Some(record.stderr_bytes);
            line.duration_ms = Some(record.duration_ms);
        }
        Outcome::Refused(failure) => {
            line.code = Some(failure.kind.exit_code());
            line.outcome = Some(format!("{}: {}", failure.kind.name(), failure.message));
        }
    }
}

fn who_ended(by: EndedBy, reason: Option<&str>) -> String {
    let name = match by {
        EndedBy::Itself => "self",
        EndedBy::Timeout => "timeout",
        EndedBy::Killed => "killed",
        EndedBy::CallerGone => "caller-gone",
        EndedBy::Grace => "grace",
        EndedBy::Revoked => "revoked",
        EndedBy::Shutdown => "shutdown",
    };
    reason.map_or_else(|| name.to_owned(), |reason| format!("{name}: {reason}"))
}
