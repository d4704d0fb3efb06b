//! Why a session has no result, in words.

use std::io;
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{ExitRecord, Output, Superseded};

use super::output::stream_name;
use super::request::FollowerRole;
use crate::client::RESTART_HINT;
use crate::duration;

const WAIT_LONGER_HINT: &str = "wait longer: --connect-timeout 30s";

fn unknown(message: String) -> Failure {
    Failure::new(Kind::Unknown, message)
}

/// Reports that the target did not answer in time, or that the connection was lost before it did: whether the command was
/// started is not known. `why` ends the sentence.
pub(super) fn unanswered(target: &str, role: FollowerRole, is_lost: bool, why: &str) -> Failure {
    if role == FollowerRole::Watcher {
        let message = format!("{target} did not answer in time{why}");
        return Failure::new(Kind::Unreachable, message).hint(WAIT_LONGER_HINT);
    }
    let what = if is_lost {
        format!("connection to {target} lost before it answered")
    } else {
        format!("{target} did not answer in time")
    };
    unknown(format!("{what}; whether the command started is not known{why}")).hint(WAIT_LONGER_HINT)
}

/// Reports a loss that was too long for a command that ends with its connection.
pub(super) fn killed_by_loss(target: &str, why: &str) -> Failure {
    unknown(format!(
        "connection to {target} lost, which ends the command (--kill-on-lost); how it ended is not known{why}"
    ))
}

/// Reports a loss that lasted as long as malai waits.
pub(super) fn lost(target: &str, waited: Duration, grace: Duration, why: &str) -> Failure {
    let (waited, grace) = (duration::words(waited), duration::words(grace));
    unknown(format!(
        "connection to {target} lost for {waited}; whether the command ended is not known, and it may still run there until \
         {grace} after the loss{why}"
    ))
    .hint("wait longer: --lost-after 1h; whether the machine is there: malai status")
}

/// Reports a loss that was too long for a process that looks on at `subject`: a command, or a session by its name.
pub(super) fn lost_from_view(target: &str, subject: &str, waited: Option<Duration>, why: &str) -> Failure {
    let waited = waited.map_or_else(String::new, |span| format!(" for {}", duration::words(span)));
    unknown(format!("connection to {target} lost{waited}; whether {subject} ended is not known{why}"))
        .hint(format!("wait longer: --lost-after 1h; what runs there: malai sessions {target}"))
}

/// Reports that the command was started, and that the target has nothing more to say of it.
pub(super) fn not_followed(target: &str, refusal: Failure) -> Failure {
    let message = format!(
        "connection to {target} lost, and the command cannot be followed again; whether it ended is not known: {}",
        refusal.message
    );
    Failure { kind: Kind::Unknown, message, ..refusal }
}

/// Reports that another incarnation of the executor answers, which cannot have the command.
pub(super) fn another_incarnation(target: &str) -> Failure {
    unknown(format!(
        "connection to {target} lost, and what answers there now did not start the command; whether it ended is not known"
    ))
}

/// Reports what is against the rules. `what` says what is not known of the command: that it *started*, or *ended*.
pub(super) fn broken(target: &str, what: &str, why: &str) -> Failure {
    unknown(format!(
        "connection to {target} lost, because the answer of the daemon here is not understood: {why}; whether the command \
         {what} is not known"
    ))
    .hint(RESTART_HINT)
}

/// Reports a signal that came before there was a command.
pub(super) fn interrupted_early(target: &str, is_asked: bool) -> Failure {
    unknown(match is_asked {
        false => format!("interrupted before {target} was asked; the command was not started"),
        true => format!("interrupted before {target} answered; whether the command started is not known"),
    })
}

/// Reports that the caller leaves a command that runs.
pub(super) fn left(target: &str, why: &str, is_lost: bool) -> Failure {
    unknown(match is_lost {
        true => format!(
            "{why}, and the connection to {target} is lost; the command there ends as soon as the target hears of it"
        ),
        false => format!("{why}; the command on {target} is being ended"),
    })
}

/// Reports that another process took the session over. It did so on purpose, and taking the session back would never end.
/// `machine` is the name, or the key, of that process's machine.
pub(super) fn followed_elsewhere(target: &str, by: Superseded, machine: &str) -> Failure {
    unknown(format!(
        "the command on {target} goes on and is followed from elsewhere now, by process {} of machine {machine}; that process \
         will say how it ends",
        by.follower.short()
    ))
}

/// Reports that output of a session that goes on cannot be written here.
pub(super) fn not_shown(target: &str, stream: Output, error: &io::Error) -> Failure {
    let message =
        format!("standard {} could not be written: {error}; the command on {target} goes on", stream_name(stream));
    Failure::new(Kind::Internal, message)
}

/// Reports that the command ended, and that something of its session was lost on the way.
pub(super) fn incomplete(target: &str, record: &ExitRecord, lost: &str) -> Failure {
    let code = record.exit_code();
    unknown(format!("the command on {target} ended with {code}, but not everything got through: {lost}"))
}
