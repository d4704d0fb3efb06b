//! What all hops of a session share: the request, its input, its output, its record.
//!
//! The caller sends `Exec` or `Attach`, then `Stdin`, `StdinEof`, `Signal`, `Ack`, `StopOutput`, `Goodbye` in any order.
//! The target answers `Exec` by `Refused` and nothing else, or by `Started`; and `Attach`, or an `Exec` that was sent again,
//! by `Refused` or `Attached`. Then come `Stdout`, `Stderr`, `StdinAck`, `StdinClosed`, and last `Exit`; nothing follows it.
//! `Superseded` may come at any time, and nothing follows it either. So may `Refused`, to a caller that follows another
//! machine's session. The end of the stream without `Exit`, `Refused` or `Superseded` means that the attachment is lost: the
//! command goes on, and the caller may attach to it again.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::failure::{EXIT_NOT_BY_ITSELF, EXIT_TIMEOUT};
use crate::id::{FollowerId, Incarnation, MachineId, SessionId};

/// Bounds the standard input that may be sent before the first [`StdinAck`], in bytes.
pub const STDIN_CREDIT: u64 = 256 * 1024;
/// Bounds the output, both streams together, that the target keeps unacknowledged before it stops reading the
/// command's pipes, in bytes.
pub const OUTPUT_WINDOW: u64 = 1024 * 1024;
/// Bounds the window where it grows, in bytes: on a path whose round trip takes longer than the window lasts.
pub const OUTPUT_WINDOW_MAX: u64 = 8 * 1024 * 1024;

/// Bounds the reason of a request, in bytes: each line of the audit about it has it.
pub const MAX_REASON_BYTES: usize = 1024;

/// Says how long a session waits for its caller to come back where the config does not, in milliseconds.
pub const DEFAULT_GRACE_MS: u64 = 600_000;
/// Says how much longer an executor must have lived than a request was first sent ago, to be sure that it would know
/// the request, in milliseconds.
pub const RESEND_MARGIN_MS: u64 = 5_000;

/// Holds a command to run: what the caller typed, not interpreted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The session's id, chosen by the caller.
    pub id: SessionId,
    /// The words after the target, as bytes: an argv, or the name of a named command. With `shell`, exactly one.
    pub words: Vec<ByteBuf>,
    /// The words are an argv in any case (`--` was given): the first is never the name of a named command.
    #[serde(default)]
    pub literal: bool,
    /// The one word is run by the user's login shell with `-c`. Implies `literal`.
    #[serde(default)]
    pub shell: bool,
    /// Additions to the environment, name and value.
    #[serde(default)]
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// The working directory; absent = the user's home.
    #[serde(default)]
    pub cwd: Option<ByteBuf>,
    /// The user asked for; absent = what the config says.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether standard input is sent; otherwise the command has /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// The command is killed after this number of milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Wait until every holder of the output pipes has closed them, not only the main process.
    #[serde(default)]
    pub wait_output: bool,
    /// Why, in the caller's words, for the audit. It has at most [`MAX_REASON_BYTES`].
    #[serde(default)]
    pub reason: Option<String>,
    /// The process that follows; absent = one that never attaches again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follower: Option<FollowerId>,
    /// The request was sent before, and what became of it is not known. Absent = this is the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend: Option<Resend>,
    /// End the command as soon as its attachment is lost, instead of waiting for the caller to come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kill_on_lost: bool,
    /// It waits for no caller, and its output is kept for those that attach later: the caller leaves when it runs.
    /// Goes with [`crate::peer::DETACH`] in `needs`, and without standard input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// Features that must not be ignored; an unknown one is refused by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// Says that a request is sent again: it runs only where it certainly did not run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resend {
    /// The number of the attachment that this sending makes: the first sending made 1.
    pub number: u32,
    /// The life of the executor that the first sending met, as the target's greeting told it; absent = not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<Incarnation>,
    /// Milliseconds since the first sending, by a clock that goes on while the machine sleeps.
    pub since_ms: u64,
}

impl Resend {
    /// Tells whether an executor of this life, which has lived for `alive_ms`, may run the request when it does not
    /// know its id: the first sending met this very life, or could only have met it.
    pub fn may_run(&self, incarnation: Incarnation, alive_ms: u64) -> bool {
        match self.met {
            Some(met) => met == incarnation,
            None => alive_ms > self.since_ms.saturating_add(RESEND_MARGIN_MS),
        }
    }
}

/// Follows a session that exists: first frame of its stream instead of `Exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The machine that started the session; absent = the key that the connection proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MachineId>,
    /// Its id.
    pub id: SessionId,
    /// The process that follows.
    pub follower: FollowerId,
    /// Counts the attachments of this follower to this session, `Exec` included, from 1. One with a number that is not
    /// higher than the last one's changes nothing.
    pub number: u32,
    /// Output up to here was written out: the rest is wanted.
    #[serde(default)]
    pub out_offset: u64,
    /// Only output that comes from now on is wanted, wherever that is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_end: bool,
    /// The caller's going away ends the command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub binding: bool,
    /// Take the place of another follower.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// Watch the session instead of being refused, where the caller may not control it and so cannot take it over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub or_watch: bool,
}

/// Says that the session is followed from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The life of the executor that has it.
    pub incarnation: Incarnation,
    /// What `Started` said; absent = the command does not run yet, and `Started` or `Refused` follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Started>,
    /// Where the output that follows begins; later than asked for where it is not kept any more.
    pub out_offset: u64,
    /// How many bytes of standard input arrived: the sender goes on there.
    pub stdin_offset: u64,
    /// Bytes of standard input that may have been sent in all, from the start of the session.
    pub credit: u64,
    /// No more standard input is taken: it has ended, or the command closed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin_closed: bool,
    /// The caller only watches: any frame from it but `Ack` and `Goodbye` is refused, and ends the attachment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watches: bool,
}

/// Says that another attachment follows the session now. Nothing comes after it on the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// The key of the machine from which it is followed now.
    pub by: MachineId,
    /// The process that follows now.
    pub follower: FollowerId,
}

/// Says that the request is on its way: from the caller's daemon to its own CLI, before the target's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The life of the target's executor, as the target's daemon told in its greeting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<Incarnation>,
    /// Which way the request takes; absent on this very machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Reached>,
}

/// Describes the way to a machine over the connection that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The path in use: `direct IP:PORT` or `relay URL`.
    pub path: String,
    /// Round-trip time of that path, in microseconds.
    pub rtt_us: u64,
    /// The source of the path's address, for people: `mdns`, `directory (by web02)`, `fixed address`, …; absent = not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
}

impl Reached {
    /// Stands in `found_by` where the peer dialled, so that nothing was looked for.
    pub const BY_THE_PEER: &str = "it dialled";
    /// Stands in `found_by` where the peer told this address over the connection, which had begun by another one.
    pub const TOLD: &str = "the connection itself";

    /// Writes all of it, for people.
    pub fn words(&self) -> String {
        let Self { path, rtt_us, found_by } = self;
        let ms = *rtt_us as f64 / 1000.0;
        let found = match found_by.as_deref() {
            None => String::new(),
            Some(itself @ Self::BY_THE_PEER) => format!(", {itself}"),
            Some(way) => format!(", found by {way}"),
        };
        format!("{path}, {ms:.1} ms{found}")
    }
}

/// Sends a signal to the command's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number on Linux: 1 HUP, 2 INT, 3 QUIT, 15 TERM, …
    pub number: u8,
    /// Counts the signals of this follower, from 1 on. The follower sends a signal again after a loss, since it may have been
    /// lost too, and the target delivers each once. 0 = it is not counted, and delivered each time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub order: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Says that the caller wrote out the output up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Bytes of both streams together, in the order they were sent.
    pub out_offset: u64,
}

/// Names one of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Says that the reader of one output stream is gone: the target closes that pipe, and the command gets its SIGPIPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOutput {
    /// The stream whose reader is gone.
    pub stream: Output,
}

/// Says that the command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The life of the executor that runs it.
    pub incarnation: Incarnation,
    /// The target's own host name: shows where it really ran.
    pub hostname: String,
    /// The process id on the target.
    pub pid: u32,
    /// The user it runs as.
    pub user: String,
    /// How long the target waits for the caller to come back when the attachment is lost, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Says that the command took standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinAck {
    /// Bytes that the command's pipe has taken.
    pub offset: u64,
    /// Bytes that may have been sent in all, from the start of the session.
    pub credit: u64,
}

/// Says how the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The process called exit.
    Exited {
        /// The status that it gave.
        code: u8,
    },
    /// A signal killed it.
    Signalled {
        /// The signal's number on the target.
        signal: u8,
        /// Whether it dumped core.
        core: bool,
    },
}

/// Says what ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBy {
    /// The command itself.
    #[serde(rename = "self")]
    Itself,
    /// Its `--timeout`.
    Timeout,
    /// `malai kill`.
    Killed,
    /// The caller went away.
    CallerGone,
    /// No process followed it for the grace time.
    Grace,
    /// The config does not allow it any more.
    Revoked,
    /// The target's daemon was stopped.
    Shutdown,
}

/// Records the end of a session: the only source of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Says how the main process ended.
    pub status: Status,
    /// What ended the session.
    pub ended_by: EndedBy,
    /// Bytes of standard output that were sent.
    pub stdout_bytes: u64,
    /// Bytes of standard error that were sent.
    pub stderr_bytes: u64,
    /// From start to end, in milliseconds.
    pub duration_ms: u64,
    /// Other processes still held the output pipes when the record was made.
    #[serde(default)]
    pub output_open: bool,
    /// Why, where `ended_by` is not the command itself: a sentence for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Processes of it that could not be ended; `reason` names them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left: u32,
}

impl ExitRecord {
    /// Returns the exit code that the CLI ends with.
    pub fn exit_code(&self) -> u8 {
        match (self.ended_by, self.status) {
            (EndedBy::Itself, Status::Exited { code }) => code,
            (EndedBy::Itself, Status::Signalled { signal, .. }) => 128u8.saturating_add(signal),
            (EndedBy::Timeout, _) => EXIT_TIMEOUT,
            _ => EXIT_NOT_BY_ITSELF,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: Status, ended_by: EndedBy) -> ExitRecord {
        ExitRecord {
            status,
            ended_by,
            stdout_bytes: 0,
            stderr_bytes: 0,
            duration_ms: 0,
            output_open: false,
            reason: None,
            left: 0,
        }
    }

    #[test]
    fn a_resend_runs_only_where_the_first_sending_would_be_known() {
        let [this, other] = [1, 2].map(|byte| Incarnation::from_bytes([byte; 16]));
        let resend = |met| Resend { number: 2, met, since_ms: 1000 };
        assert!(resend(Some(this)).may_run(this, 0));
        assert!(!resend(Some(other)).may_run(this, u64::MAX));
        assert!(resend(None).may_run(this, 6001));
        assert!(!resend(None).may_run(this, 6000));
        let forever = Resend { since_ms: u64::MAX, ..resend(None) };
        assert!(!forever.may_run(this, u64::MAX));
    }

    #[test]
    fn only_a_command_that_ended_by_itself_passes_its_own_status_on() {
        let zero = Status::Exited { code: 0 };
        let term = Status::Signalled { signal: 15, core: false };
        assert_eq!(record(zero, EndedBy::Itself).exit_code(), 0);
        assert_eq!(record(Status::Exited { code: 255 }, EndedBy::Itself).exit_code(), 255);
        assert_eq!(record(term, EndedBy::Itself).exit_code(), 143);
        assert_eq!(record(zero, EndedBy::Timeout).exit_code(), 252);
        for by in [EndedBy::Killed, EndedBy::CallerGone, EndedBy::Grace, EndedBy::Revoked, EndedBy::Shutdown] {
            assert_eq!(record(zero, by).exit_code(), 253);
            assert_eq!(record(term, by).exit_code(), 253);
        }
    }
}
