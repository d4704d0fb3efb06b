//! Asking a machine about its sessions: which there are, how one ended, and to end one.
//!
//! `List`, `Wait` or `Kill` is the first frame of a stream, instead of `Exec` or `Attach`; its sender adds nothing but
//! `Goodbye`. The target answers `List` by `Listed`, once or more; `Wait` by `Exit` when the session is over; `Kill` by
//! `Killed` when the signal was sent, or, where none was named, by `Exit` when the session is over. Each may be answered
//! by `Refused` instead.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{MachineId, SessionId};
use crate::session::ExitRecord;

/// Bounds the command that a [`Summary`] shows, in bytes.
pub const MAX_COMMAND: usize = 512;
/// Bounds the sessions in one [`Listed`]: this number fits its frame in any case.
pub const MAX_LISTED: usize = 16;

/// Asks which sessions are there: all that the asking key owns, and those of others that it may attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct List {}

/// Answers [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// At most [`MAX_LISTED`], in the order in which they began.
    pub sessions: Vec<Summary>,
    /// Another `Listed` follows with the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Describes one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The machine that asked for it.
    pub owner: MachineId,
    /// Its id.
    pub id: SessionId,
    /// The words of the request, for people: printable, cut at [`MAX_COMMAND`] bytes.
    pub command: String,
    /// It was asked for with `--detach`: it waits for no caller, and its output is kept for those that attach later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// The user it runs as; absent = the daemon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When it was asked for, milliseconds since the epoch by the target's clock.
    pub since_ms: u64,
    /// Whether it runs, or how it ended.
    pub state: State,
}

/// Says what became of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The command runs.
    Running,
    /// It is over, and its output is kept.
    Ended(ExitRecord),
    /// There is no record, for this reason.
    Failed(Failure),
}

/// Waits until a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The machine that started the session; absent = the key that the connection proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MachineId>,
    /// Its id.
    pub id: SessionId,
}

/// Ends a session, or signals its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// The machine that started the session; absent = the key that the connection proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MachineId>,
    /// Its id.
    pub id: SessionId,
    /// Send this signal, by its number on Linux, to the command's process group, and nothing else; absent = end the
    /// session's whole tree, with TERM and then KILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
}
