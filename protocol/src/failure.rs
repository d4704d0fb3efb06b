//! The one error that travels: what failed, in words for a person, and the exit code it means.

use serde::{Deserialize, Serialize};

/// Says which kind of failure it is. It decides the exit code, and programs may match on it.
///
/// Kinds travel as text; one that a version does not know reads as [`Kind::Internal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong.
    Usage,
    /// The cluster's config does not allow it.
    Denied,
    /// The other side does not know us as a member of the cluster.
    NotAMember,
    /// The target knows no machine, group or cluster of this name.
    UnknownTarget,
    /// The name fits machines of more than one cluster.
    AmbiguousTarget,
    /// This machine is in no cluster, or the cluster has no config here yet.
    NotConfigured,
    /// The machine could not be reached.
    Unreachable,
    /// The cluster's config or a local file is broken.
    BadConfig,
    /// The working directory does not exist on the target.
    NoDirectory,
    /// The user does not exist on the target, or cannot be taken on.
    NoUser,
    /// The program was not found on the target.
    NotFound,
    /// The program was found but cannot be executed.
    NotExecutable,
    /// A limit is reached; later it may work.
    Busy,
    /// Something this version does not support.
    Unsupported,
    /// What was asked for contradicts what is there (a name that is taken, a daemon that runs already).
    Conflict,
    /// It was sent, and whether it ran cannot be known.
    Unknown,
    /// Anything else that went wrong inside malai.
    Internal,
}

/// Decides the name of every kind on the wire and in `--json`, and its exit code. Nothing else does.
const KINDS: &[(Kind, &str, u8)] = &[
    (Kind::Usage, "usage", 2),
    (Kind::NotExecutable, "not-executable", 126),
    (Kind::NotFound, "not-found", 127),
    (Kind::Unknown, "unknown", 253),
    (Kind::Denied, "denied", 254),
    (Kind::NotAMember, "not-a-member", 254),
    (Kind::UnknownTarget, "unknown-target", 255),
    (Kind::AmbiguousTarget, "ambiguous-target", 255),
    (Kind::NotConfigured, "not-configured", 255),
    (Kind::Unreachable, "unreachable", 255),
    (Kind::BadConfig, "bad-config", 255),
    (Kind::NoDirectory, "no-directory", 255),
    (Kind::NoUser, "no-user", 255),
    (Kind::Busy, "busy", 255),
    (Kind::Unsupported, "unsupported", 255),
    (Kind::Conflict, "conflict", 255),
    (Kind::Internal, "internal", 255),
];

/// Is the exit code when `--timeout` passed and the command was killed.
pub const EXIT_TIMEOUT: u8 = 252;
/// Is the exit code when the command did not end by itself, or its outcome is unknown.
pub const EXIT_NOT_BY_ITSELF: u8 = 253;

impl Kind {
    /// Returns the exit code of a command that failed so.
    pub fn exit_code(self) -> u8 {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or(255, |(_, _, code)| *code)
    }

    /// Returns the name on the wire and in `--json`.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or("internal", |(_, name, _)| name)
    }

    fn from_name(name: &str) -> Self {
        KINDS.iter().find(|(_, n, _)| *n == name).map_or(Kind::Internal, |(kind, ..)| *kind)
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&String::deserialize(d)?))
    }
}

/// Holds a failure as it travels and as it is shown. It never carries an internal chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides the exit code, and what programs do.
    pub kind: Kind,
    /// What failed and why, in one sentence for a person, without a final full stop.
    pub message: String,
    /// The command to type next, or what to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Of a machine that could not be reached: when it was last seen from here, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
}

impl Failure {
    /// Makes a failure without a hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, seen: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds when the machine was last seen.
    #[must_use]
    pub fn seen(mut self, seen: impl Into<String>) -> Self {
        self.seen = Some(seen.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name_and_the_documented_exit_code() {
        for (kind, name, code) in KINDS {
            assert_eq!(Kind::from_name(name), *kind);
            assert_eq!(kind.name(), *name);
            assert_eq!(kind.exit_code(), *code);
        }
    }

    #[test]
    fn an_unknown_kind_reads_as_internal() {
        assert_eq!(Kind::from_name("from-the-future"), Kind::Internal);
    }

    #[test]
    fn the_documentation_has_every_kind_with_its_exit_code_and_no_other() {
        let text = include_str!("../../docs/exit-codes.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let documented: Vec<(&str, u8)> =
            rows.filter_map(|(name, rest)| Some((name, rest.split_once(" |")?.0.parse().ok()?))).collect();
        let decided: Vec<(&str, u8)> = KINDS.iter().map(|(_, name, code)| (*name, *code)).collect();
        assert_eq!(documented, decided);
        for code in [EXIT_TIMEOUT, EXIT_NOT_BY_ITSELF] {
            assert!(text.contains(&format!("\n| {code} | ")), "{code}");
        }
    }
}
