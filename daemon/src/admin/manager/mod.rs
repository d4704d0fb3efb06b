//! A cluster that this machine manages, as it is on the disk: the cluster key, and the config that it signs.
//!
//! A [`Manager`] is short-lived: it is loaded under [`Changes`], does one thing, and is dropped. What it signs is on the
//! disk before any machine hears of it. The cluster key only signs here; nothing is ever executed by it.

use std::time::Duration;

use malai_protocol::config::{Config, Name, Problem};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::ClusterDir;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::local::{CameBy, Changed, Publication, Response};
use malai_protocol::snapshot::{MAX_TEXT, Snapshot, next_generation};

use super::Done;
use crate::store::clusters::{self, Cluster};
use crate::store::keys::ClusterKey;
use crate::store::lock::Changes;
use crate::store::{self, snapshot};

/// Names a machine whose host name gives no name.
pub(crate) const NAMELESS: &str = "host";
/// Bounds a difference, which a person reads: more is cut off.
const MAX_DIFF_BYTES: usize = 256 * 1024;
/// Bounds how long the finest difference is looked for; after that a coarser one is shown.
const DIFF_TIMEOUT: Duration = Duration::from_secs(2);

/// Manages one cluster: its key, and the config that it signed last.
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

    /// Returns the cluster's public key.
    pub fn id(&self) -> ClusterId {
        self.key.id()
    }

    /// Returns what the text that was checked last has in order and yet hardly means, each with its place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the last signed snapshot; absent only when its file was lost.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.signed.as_ref()
    }

    /// Returns the last signed snapshot, for what needs one.
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

    /// Reads the last signed config.
    ///
    /// # Errors
    /// As [`Manager::signed`], or [`Kind::BadConfig`] when this version cannot read it.
    pub fn config(&self) -> Result<Config, Failure> {
        Config::read(self.signed()?.text()).map_err(|problems| Problem::failure(&problems, "the signed config"))
    }

    /// Reads the text of `cluster.toml`.
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

    /// Ends a request whose answer says what is signed now.
    pub(super) fn done(&self, answer: Response) -> Result<Done, Failure> {
        Ok(Done { answer, signed: vec![(self.alias.clone(), self.signed()?.clone())] })
    }

    /// Says that a machine is in the signed config, or not any more, which only this machine is known to hold yet.
    pub(super) fn changed(
        &self,
        (name, id): (&Name, MachineId),
        warning: Option<String>,
        invites: Vec<CameBy>,
    ) -> Result<Changed, Failure> {
        let publication = unpublished(self.signed()?, &self.config()?);
        Ok(Changed { machine: name.to_string(), id, publication, warning, invites })
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
            let message = format!("another process changed the snapshot of {} in the meantime", self.alias);
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

/// Says of a snapshot that is signed and stored, and that no daemon publishes: this machine has it, and no other is known
/// to.
pub(super) fn unpublished(snapshot: &Snapshot, config: &Config) -> Publication {
    let manager = &config.cluster.manager;
    let missing = config.machines.keys().filter(|name| *name != manager).map(Name::to_string).collect();
    let generation = snapshot.header().generation;
    Publication { generation, published: false, holding: vec![manager.to_string()], missing }
}

/// Returns a unified difference between two texts; empty when they are equal.
pub fn diff(from: (&str, &str), to: (&str, &str)) -> String {
    let changes = similar::TextDiff::configure().timeout(DIFF_TIMEOUT).diff_lines(from.1, to.1);
    let mut text = changes.unified_diff().context_radius(3).header(from.0, to.0).to_string();
    if text.len() > MAX_DIFF_BYTES {
        text.truncate(text.floor_char_boundary(MAX_DIFF_BYTES));
        text.push_str("\n… (more was cut off)\n");
    }
    text
}

#[cfg(test)]
pub(super) mod tests;
