//! How a command ended, in words.

use std::time::Duration;

use malai_protocol::session::{EndedBy, ExitRecord, Status};

use crate::output::Output;

/// Says on standard error what the exit code alone does not.
pub(super) fn explain(out: Output, target: &str, record: &ExitRecord, timeout: Option<Duration>, verbose: bool) {
    let why = match record.ended_by {
        EndedBy::Itself => None,
        EndedBy::Timeout => {
            let after = timeout.map(|t| format!(" after {t:?}")).unwrap_or_default();
            Some(format!("the command on {target} was killed{after}, by its --timeout"))
        }
        EndedBy::Killed => Some(format!("the command on {target} was killed by `malai kill`")),
        EndedBy::CallerGone => Some(format!("the command on {target} was ended because its caller went away")),
        EndedBy::Grace => Some(format!("the command on {target} was ended because nobody followed it")),
        EndedBy::Revoked => Some(format!("the command on {target} was ended: access was withdrawn")),
        EndedBy::Shutdown => Some(format!("the command on {target} was ended: the daemon there was stopped")),
    };
    if let Some(why) = why {
        out.note(&record.reason.as_ref().map_or(why.clone(), |reason| format!("{why} ({reason})")));
    }
    if record.output_open {
        out.note(&format!(
            "other processes on {target} still hold the command's output, and what they write is not shown; \
             --wait-output waits for it"
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

/// How it ended, in a few words.
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
