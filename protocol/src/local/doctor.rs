//! What `malai doctor` finds.

use serde::{Deserialize, Serialize};

/// Answers [`super::Request::Doctor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// All of them, in the order in which they are shown.
    pub findings: Vec<Finding>,
}

/// Says how bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Makes a finding that all is as it should be.
    Ok,
    /// Worth knowing, but everything works.
    Note,
    /// Something does not work.
    Broken,
}

/// Describes one thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The cluster's name here; absent where it is about this machine as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// What was looked at: `files`, `udp`, `relay https://…`, …
    pub area: String,
    /// How bad it is.
    pub level: Level,
    /// What was found, in words.
    pub what: String,
    /// The command or the setting that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// Makes a finding that all is as it should be.
    pub fn ok(area: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, area, what)
    }

    /// Makes a finding that is worth knowing.
    pub fn note(area: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Note, area, what)
    }

    /// Makes a finding of something that does not work, with what mends it.
    pub fn broken(area: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Level::Broken, area, what).mend(mend)
    }

    fn new(level: Level, area: impl Into<String>, what: impl Into<String>) -> Self {
        Self { cluster: None, area: area.into(), level, what: what.into(), mend: None }
    }

    /// Adds what mends it.
    #[must_use]
    pub fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..self }
    }

    /// Says which cluster it is about.
    #[must_use]
    pub fn of(self, cluster: &str) -> Self {
        Self { cluster: Some(cluster.to_owned()), ..self }
    }
}
