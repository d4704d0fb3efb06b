//! The end of a session, as the executor tells it: into the audit, out of the table.

use malai_protocol::audit::{Entry, Event};
use malai_protocol::plan::{Ended, Outcome};
use malai_protocol::session::EndedBy;

use crate::clusters::Clusters;
use crate::machine::admit::entry;
use crate::supervisor::Executor;

/// Writes the end line of a session, takes it out of the table, and lets the executor forget it.
pub(crate) async fn ended(clusters: &Clusters, executor: Option<&Executor>, ended: Ended) {
    let name = ended.session;
    clusters.shared().executor.tables().of(ended.cluster).remove(&name);
    let membership = match clusters.by_id(&ended.cluster) {
        Some(membership) => Some(membership),
        None => {
            clusters.settled().await;
            clusters.by_id(&ended.cluster)
        }
    };
    if let Some(membership) = membership {
        let mut line = entry(&membership, name, &ended.request, Event::End);
        line.user = line.user.or_else(|| Some(membership.shared.user.clone()));
        fill(&mut line, &ended.outcome);
        tracing::info!(session = %name.id.short(), cluster = %membership.alias, code = line.code, "ended");
        if let Err(failure) = membership.shared.audit.append(&line) {
            // Not confirmed: the executor keeps it, and the next daemon writes the line.
            return tracing::error!(session = %name.id.short(), "the audit cannot be written: {failure}");
        }
    } else {
        tracing::warn!(session = %name.id.short(), "a session of a cluster that is not here any more ended");
    }
    if let Some(executor) = executor
        && let Err(failure) = executor.audited(name).await
    {
        tracing::warn!(session = %name.id.short(), "the executor was not told: {failure}");
    }
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
