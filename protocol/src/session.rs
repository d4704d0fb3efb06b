//! What all hops of a session share: the request, its input, its output, its record.
//!
//! The caller sends `Exec`, then `Stdin`, `StdinEof`, `Signal`, `Ack`, `StopOutput`, `Goodbye` in any order. The target
//! answers `Refused` and nothing else, or `Started`, then `Stdout`, `Stderr`, `StdinAck`, `StdinClosed`, and last
//! `Exit`; nothing follows it. The end of the stream without `Exit` or `Refused` means that the outcome is unknown.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::failure::{EXIT_NOT_BY_ITSELF, EXIT_TIMEOUT};
use crate::id::{Incarnation, SessionId};

/// How many bytes of standard input may be sent before the first [`StdinAck`].
pub const STDIN_CREDIT: u64 = 256 * 1024;
/// How many bytes of output, both streams together, the target keeps unacknowledged before it stops reading the
/// command's pipes.
pub const OUTPUT_WINDOW: u64 = 1024 * 1024;
/// The most to which the window grows on a path whose round trip leaves it empty-handed.
pub const OUTPUT_WINDOW_MAX: u64 = 8 * 1024 * 1024;

/// A command to run: what the caller typed, not interpreted.
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
    /// The command is killed after so many milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Wait until every holder of the output pipes has closed them, not only the main process.
    #[serde(default)]
    pub wait_output: bool,
    /// Why, in the caller's words: goes to the audit.
    #[serde(default)]
    pub reason: Option<String>,
    /// Features that must not be ignored; an unknown one is refused by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// Sends a signal to the command's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number on Linux: 1 HUP, 2 INT, 3 QUIT, 15 TERM, …
    pub number: u8,
}

/// Output up to here was written out by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Bytes of both streams together, in the order they were sent.
    pub out_offset: u64,
}

/// One of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The reader of one output stream is gone: the target closes that pipe, and the command gets its SIGPIPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOutput {
    /// Which.
    pub stream: Output,
}

/// The command runs.
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
}

/// Standard input was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinAck {
    /// Bytes that the command's pipe has taken.
    pub offset: u64,
    /// Bytes that may have been sent in all, from the start of the session.
    pub credit: u64,
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It called exit.
    Exited {
        /// With this status.
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

/// Who ended a session.
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
    /// Nobody followed it for the grace time.
    Grace,
    /// The config does not allow it any more.
    Revoked,
    /// The target's daemon was stopped.
    Shutdown,
}

/// The end of a session: the only source of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How the main process ended.
    pub status: Status,
    /// Who ended it.
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
}

impl ExitRecord {
    /// The exit code that the CLI ends with.
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
        }
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
