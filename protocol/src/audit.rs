//! A line of the audit: one before the start of every attempt, refused ones too, and one at its end; and one before whatever
//! a caller does with a session of another machine.

use serde::{Deserialize, Serialize};

/// How many older parts of the audit log are kept, besides the one being written.
pub const KEPT: u32 = 5;

/// One line of `audit.jsonl`. Standard input and environment values are never in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When the line was written, milliseconds since the epoch.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
    /// The alias of the cluster here.
    pub cluster: String,
    /// The session's id, 32 hexadecimal digits; empty for `left-out`.
    pub session: String,
    /// The caller's name in the config at that time; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The caller's id52.
    pub id52: String,
    /// The id52 of the session's owner, where that is not the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The owner's name in the config at that time; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    /// The words as given; bytes that are not UTF-8 as `\xNN`.
    pub words: Vec<String>,
    /// The named command, when the words named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// The user it runs as; absent when nothing was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Names of environment additions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The caller's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The signal that was sent, by its number on Linux, for `signal` and `kill`; absent = the session was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// The exit code that the caller gets, for `end`, `refused` and `left-out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// Who ended it, or why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// How many refused attempts a line stands for, for `left-out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_bytes: Option<u64>,
    /// Bytes of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_bytes: Option<u64>,
    /// From start to end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// What an audit line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It was allowed and is about to start.
    Start,
    /// It ended, or could not be started after all.
    End,
    /// It was refused.
    Refused,
    /// So many attempts of one caller were refused in a short time that not each has a line: this one counts those that
    /// have none. It belongs to no session.
    #[serde(rename = "left-out")]
    LeftOut,
    /// Somebody else's session may be followed, and is about to be.
    Attach,
    /// Somebody else's session may be taken over, and is about to be.
    #[serde(rename = "take-over")]
    TakeOver,
    /// The first input to somebody else's session, or the first closing of its input or output, over one attachment.
    Control,
    /// A signal to the command of somebody else's session.
    Signal,
    /// Somebody else's session is about to be ended, or sent TERM or KILL.
    Kill,
}

/// Bytes as text: UTF-8 as it is, other bytes as `\xNN`, a backslash doubled so that no two words look alike.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                out.push_str("\\\\");
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_are_told_from_those_that_spell_an_escape() {
        assert_eq!(printable(b"a\xffb"), "a\\xffb");
        assert_eq!(printable(b"a\\xffb"), "a\\\\xffb");
        assert_eq!(printable("grün".as_bytes()), "grün");
    }
}
