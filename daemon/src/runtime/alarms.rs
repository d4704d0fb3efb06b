//! What an administrator must look at, kept by cause: clearing one alarm does not clear another.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::{Mutex, MutexGuard};
/// Says what an alarm is about. Of each cause there is at most one alarm at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AlarmCause {
    /// Two snapshots were signed with one generation.
    Fork,
    /// A newer snapshot is signed correctly, but this version cannot read it, so that an earlier one is still in force.
    Unusable,
    /// This manager was shown a snapshot that it did not make.
    Foreign,
    /// A machine joined by an invite, and the config gives it less than the invite promised.
    Joined,
    /// The audit cannot be written: ends of sessions are not in it yet.
    Audit,
    /// The disk takes no more: commands run on the reserve of the audit.
    FullDisk,
    /// The snapshot in force is not stored in its own file.
    Unstored,
    /// There is no reserve for a snapshot that a full disk has no room for.
    Unreserved,
    /// The cluster manager does not have this machine in its config.
    Removed,
    /// Another machine holds this one's key.
    TwoMachines,
}

impl AlarmCause {
    /// Returns the command that mends this, for the cluster with this alias whose files are in `dir`.
    pub(crate) fn mend(self, alias: &str, dir: &Path) -> String {
        match self {
            Self::Fork | Self::Unusable | Self::Foreign | Self::Joined => {
                format!("on the cluster manager: malai rescan {alias}")
            }
            Self::Removed => {
                format!("malai machine leave {alias}; or on the cluster manager: malai cluster invite {alias}")
            }
            Self::FullDisk => {
                format!("df -h {}; make room there: the reserve is complete again within 10 s", dir.display())
            }
            Self::Audit => format!("df -h {}; make room there: the lines are written then", dir.display()),
            Self::Unstored | Self::Unreserved => {
                format!("df -h {}; make room there: it is stored within 10 s then", dir.display())
            }
            Self::TwoMachines => {
                format!("on the machine that is the copy: malai machine leave {alias}, then join it by a new invite")
            }
        }
    }
}

/// Holds the alarms of one cluster, and logs each that is news.
#[derive(Debug)]
pub(crate) struct Alarms {
    /// Names the cluster in the log.
    cluster: String,
    raised: Mutex<BTreeMap<AlarmCause, String>>,
}

impl Alarms {
    /// Makes an empty list for the cluster of this name.
    pub(crate) fn new(cluster: String) -> Self {
        Self { cluster, raised: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AlarmCause, String>> {
        self.raised.lock()
    }

    /// Raises this alarm, in place of an earlier one of the same cause.
    pub(crate) fn raise(&self, cause: AlarmCause, text: String) {
        if self.lock().insert(cause, text.clone()).as_ref() != Some(&text) {
            tracing::error!(cluster = %self.cluster, "{text}");
        }
    }

    /// Clears the alarm of this cause.
    pub(crate) fn clear(&self, cause: AlarmCause) {
        if self.lock().remove(&cause).is_some() {
            tracing::info!(cluster = %self.cluster, ?cause, "the alarm is over");
        }
    }

    /// Raises this alarm, or clears it where there is no text.
    pub(crate) fn set(&self, cause: AlarmCause, text: Option<String>) {
        match text {
            Some(text) => self.raise(cause, text),
            None => self.clear(cause),
        }
    }

    /// Returns whether there is an alarm of this cause.
    pub(crate) fn has(&self, cause: AlarmCause) -> bool {
        self.lock().contains_key(&cause)
    }

    /// Returns every alarm, in the order of causes.
    pub(crate) fn all(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    /// Returns every alarm with its cause, in the order of causes.
    pub(crate) fn by_cause(&self) -> Vec<(AlarmCause, String)> {
        self.lock().iter().map(|(cause, text)| (*cause, text.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_one_alarm_leaves_the_others() {
        let alarms = Alarms::new("company".into());
        alarms.raise(AlarmCause::Joined, "joined".into());
        alarms.set(AlarmCause::Fork, Some("fork".into()));
        alarms.raise(AlarmCause::Fork, "another fork".into());
        assert_eq!(alarms.all(), ["another fork", "joined"]);
        alarms.clear(AlarmCause::Fork);
        alarms.set(AlarmCause::Fork, None);
        assert_eq!(alarms.all(), ["joined"]);
        assert!(alarms.has(AlarmCause::Joined) && !alarms.has(AlarmCause::Fork));
    }
}
