//! The cluster manager's part on the disk: the cluster key, the config that it signs, invites, knocks. No network.
//!
//! A [`Manager`] is short-lived: it is loaded under [`Changes`], does one thing, and is dropped. What it signs is on the
//! disk before anybody hears of it. The cluster key only signs here; nothing is ever executed by it.
//!
//! # Layout
//! `publish` signs an edited `cluster.toml`, and stops at snapshots made elsewhere; `enrol` puts machines in and takes
//! them out; [`invites`] what was promised to whom, and `shown` what strangers show of it; [`pending`] who knocks.

use std::time::Duration;

use malai_protocol::config::{Config, Problem};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::ClusterDir;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::snapshot::{MAX_TEXT, Snapshot, next_generation};

use crate::store::clusters::{self, Cluster};
use crate::store::keys::ClusterKey;
use crate::store::lock::Changes;
use crate::store::{self, snapshot};

pub use crate::admin::enrol::{Enrolled, Removed};
pub use crate::admin::publish::Rescan;

/// The name of a machine whose host name gives none.
pub(crate) const NAMELESS: &str = "host";
/// A difference is for a person to read: more is cut off.
const MAX_DIFF: usize = 256 * 1024;
/// After so long a difference is shown coarser than it could be.
const DIFF_TIME: Duration = Duration::from_secs(2);

/// The cluster manager of one cluster, as it is on the disk.
#[derive(Debug)]
pub struct Manager<'c> {
    pub(super) _changes: &'c Changes,
    pub(super) alias: String,
    pub(super) dir: ClusterDir,
    pub(super) key: ClusterKey,
    pub(super) machine: MachineId,
    pub(super) signed: Option<Snapshot>,
    pub(super) foreign: Option<Snapshot>,
    pub(super) warnings: Vec<String>,
}

impl<'c> Manager<'c> {
    /// Loads key and snapshots of a cluster that this machine manages.
    ///
    /// # Errors
    /// [`Kind::NotConfigured`] when there is no such cluster, [`Kind::Conflict`] when it is managed elsewhere,
    /// [`Kind::BadConfig`] when a file is missing or broken.
    pub fn load(changes: &'c Changes, alias: &str) -> Result<Self, Failure> {
        let mut cluster = clusters::load(changes.home(), alias)?;
        let Some(key) = cluster.cluster_key.take() else { return Err(managed_elsewhere(&cluster)) };
        let Cluster { alias, dir, machine_key, snapshot: signed, .. } = cluster;
        let held = signed.as_ref().map_or(0, |s| s.header().generation);
        // One below the own number was published over, by a manager that crashed before it removed the file.
        let foreign = snapshot::load(&dir.foreign_snapshot(), &key.id())?.filter(|f| f.header().generation >= held);
        Ok(Self {
            _changes: changes,
            alias,
            dir,
            key,
            machine: machine_key.id(),
            signed,
            foreign,
            warnings: Vec::new(),
        })
    }

    /// The cluster's key.
    pub fn id(&self) -> ClusterId {
        self.key.id()
    }

    /// Returns what the text that was checked last has in order and yet hardly means, each with its place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The last signed snapshot; absent only when its file was lost.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.signed.as_ref()
    }

    /// The last signed snapshot, for what needs one.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] when its file was lost.
    pub fn signed(&self) -> Result<&Snapshot, Failure> {
        self.signed.as_ref().ok_or_else(|| {
            let message = format!(
                "the cluster {} has no signed config: {} is missing",
                self.alias,
                self.dir.snapshot().display()
            );
            Failure::new(Kind::BadConfig, message)
                .hint(format!("check cluster.toml, then sign it: malai rescan {}", self.alias))
        })
    }

    /// The last signed config.
    ///
    /// # Errors
    /// As [`Manager::signed`], or [`Kind::BadConfig`] when this version cannot read it.
    pub fn config(&self) -> Result<Config, Failure> {
        Config::read(self.signed()?.text()).map_err(|problems| Problem::failure(&problems, "the signed config"))
    }

    /// The text of `cluster.toml`.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] when it is missing, too large or not UTF-8.
    pub fn edited(&self) -> Result<String, Failure> {
        let path = self.dir.config();
        store::read_edited(&path, MAX_TEXT)?.ok_or_else(|| {
            Failure::new(Kind::BadConfig, format!("{} is missing", path.display())).hint(format!(
                "write the signed text there: malai config show {} > {}",
                self.alias,
                path.display()
            ))
        })
    }

    /// Signs a checked text as the next generation and stores it. Disk before memory: on an error nothing has changed.
    pub(super) fn sign(&mut self, text: String, now_ms: u64) -> Result<Snapshot, Failure> {
        let generation = |snapshot: &Option<Snapshot>| snapshot.as_ref().map_or(0, |s| s.header().generation);
        let highest = generation(&self.signed).max(generation(&self.foreign));
        if highest == u64::MAX {
            let message = "the highest possible generation is signed: this cluster can never be changed again";
            return Err(Failure::new(Kind::Conflict, message).hint("make a new cluster, and find out who signed that"));
        }
        let held = clusters::place(&self.dir).load(&self.id())?.newest;
        if held.as_ref().map(Snapshot::header) != self.signed.as_ref().map(Snapshot::header) {
            let message = format!("the snapshot of {} was changed by somebody else meanwhile", self.alias);
            return Err(Failure::new(Kind::Conflict, message).hint("repeat the command"));
        }
        if self.signed.is_some() {
            self.note_redeemed(now_ms)?;
        }
        let next = self.key.sign(next_generation(highest, now_ms), now_ms, text)?;
        snapshot::save(&self.dir.snapshot(), &next)?;
        self.signed = Some(next.clone());
        Ok(next)
    }
}

fn managed_elsewhere(cluster: &Cluster) -> Failure {
    let config = cluster.snapshot.as_ref().and_then(|s| Config::read(s.text()).ok());
    let at = config.map_or_else(|| "its cluster manager".to_owned(), |config| config.cluster.manager.to_string());
    Failure::new(
        Kind::Conflict,
        format!("this machine does not manage {}: it does not hold the cluster key", cluster.alias),
    )
    .hint(format!("do it on {at}"))
}

/// A unified difference between two texts; empty when they are equal.
pub fn diff(from: (&str, &str), to: (&str, &str)) -> String {
    let changes = similar::TextDiff::configure().timeout(DIFF_TIME).diff_lines(from.1, to.1);
    let mut text = changes.unified_diff().context_radius(3).header(from.0, to.0).to_string();
    if text.len() > MAX_DIFF {
        text.truncate(text.floor_char_boundary(MAX_DIFF));
        text.push_str("\n… (more was cut off)\n");
    }
    text
}

#[cfg(test)]
pub(super) mod tests;
