//! How a command ended, and why there is no result, for the user of `exec`, `attach`, `wait`, `kill` and `sessions`.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{EndedBy, ExitRecord, Status};

use crate::output::Output;
use crate::session::SessionEvent;

/// Says on standard error what the exit code alone does not.
pub(super) fn explain(out: Output, target: &str, record: &ExitRecord, timeout: Option<Duration>, verbose: bool) {
    let ended = match record.ended_by {
        EndedBy::Itself => None,
        EndedBy::Timeout => {
            let after = timeout.map(|t| format!(" after {t:?}")).unwrap_or_default();
            Some(format!("was killed{after}, by its --timeout"))
        }
        EndedBy::Killed => Some("was killed by `malai kill`".into()),
        EndedBy::CallerGone => Some("was ended because its caller went away".into()),
        EndedBy::Grace => Some("was ended because no caller followed it any more".into()),
        EndedBy::Revoked => Some("was ended: access was withdrawn".into()),
        EndedBy::Shutdown => Some("was ended: the daemon there was stopped".into()),
    };
    if let Some(ended) = ended {
        let reason = record.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        out.note(&format!("the command on {target} {ended}{reason}"));
    }
    if record.output_open {
        out.note(&format!(
            "other processes on {target} still have the command's output open; what they write is not shown \
             (--wait-output waits for it)"
        ));
    }
    if verbose {
        let ExitRecord { stdout_bytes, stderr_bytes, duration_ms, .. } = record;
        out.note(&format!(
            "{target}: exit {} after {duration_ms} ms, {stdout_bytes} bytes of output, {stderr_bytes} of error output",
            record.exit_code()
        ));
    }
}

/// Describes in a few words how a command ended.
pub(super) fn state_of(record: &ExitRecord) -> String {
    let by = match record.ended_by {
        EndedBy::Itself => {
            return match record.status {
                Status::Exited { code } => format!("exited {code}"),
                Status::Signalled { signal, .. } => format!("killed by signal {signal}"),
            };
        }
        EndedBy::Timeout => "timeout",
        EndedBy::Killed => "malai kill",
        EndedBy::CallerGone => "caller gone",
        EndedBy::Grace => "grace",
        EndedBy::Revoked => "access withdrawn",
        EndedBy::Shutdown => "daemon stopped",
    };
    match record.left {
        0 => format!("ended: {by}"),
        left => format!("ended: {by} ({left} left)"),
    }
}

/// Reports a failure from before the session, in the form that the stream of objects would have. Returns the exit code.
pub(super) fn refuse(out: Output, target: &str, error: &Failure) -> u8 {
    let code = error.kind.exit_code();
    out.explain(error);
    if out.json {
        // Standard error has the failure. A standard output that fails too changes nothing about it.
        drop(out.document(&SessionEvent::Error { target, code, error }));
    }
    code
}

/// Returns the failure for a session that ended in a way that was not asked for.
pub(super) fn unasked() -> Failure {
    Failure::new(Kind::Unknown, "the daemon followed the command in another way than was asked for")
}
