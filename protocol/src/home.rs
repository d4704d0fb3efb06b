//! Every file name under `MALAI_HOME`, as pure joins: nothing here touches the disk.

use std::path::{Path, PathBuf};

use crate::id::ClusterId;

/// The directory that holds everything of one malai installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home at this path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory with one directory for each cluster.
    pub fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }

    /// The directory of the cluster with this alias.
    pub fn cluster(&self, alias: &str) -> ClusterDir {
        ClusterDir { root: self.clusters().join(alias) }
    }

    /// Where the executor keeps its journal.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// The audit log.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit.jsonl")
    }

    /// The `number`th older part of the audit log, from 1, the newest, to [`crate::audit::KEPT`].
    pub fn audit_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("audit.jsonl.{number}"))
    }

    /// Local settings.
    pub fn settings(&self) -> PathBuf {
        self.root.join("malai.toml")
    }

    /// The log of what runs here in the background: daemon or agent, and the executor.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The `number`th older part of the log, from 1, the newest.
    pub fn log_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("daemon.log.{number}"))
    }

    /// The lock that a daemon holds for its life; its content is the holder's pid.
    pub fn lock(&self) -> PathBuf {
        self.root.join("malai.lock")
    }

    /// The lock that is held while files of clusters are being changed, by whomever, and never longer.
    pub fn changes_lock(&self) -> PathBuf {
        self.root.join("changes.lock")
    }

    /// The daemon's socket for the CLI.
    pub fn socket(&self) -> PathBuf {
        self.root.join("malai.sock")
    }

    /// The executor's socket for the daemon.
    pub fn executor_socket(&self) -> PathBuf {
        self.root.join("executor.sock")
    }

    /// The directory of the relay that runs on this host, if one does.
    pub fn relay(&self) -> RelayDir {
        RelayDir { root: self.root.join("relay") }
    }
}

/// The directory of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayDir {
    root: PathBuf,
}

impl RelayDir {
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it is reached, and whose machines it serves.
    pub fn settings(&self) -> PathBuf {
        self.root.join("relay.toml")
    }

    /// The relay's own secret key.
    pub fn key(&self) -> PathBuf {
        self.root.join("relay.key")
    }

    /// The certificate that it made, PEM; absent where one was given.
    pub fn certificate(&self) -> PathBuf {
        self.root.join("certificate.pem")
    }

    /// That certificate's secret key, PEM.
    pub fn certificate_key(&self) -> PathBuf {
        self.root.join("certificate.key")
    }

    /// The last accepted signed snapshot of this cluster.
    pub fn snapshot(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot"))
    }

    /// Room for a snapshot of this cluster that a full disk does not let into [`RelayDir::snapshot`].
    pub fn snapshot_reserve(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot.reserve"))
    }

    /// The lock that a running relay holds.
    pub fn lock(&self) -> PathBuf {
        self.root.join("relay.lock")
    }

    /// Where a running relay tells its state.
    pub fn socket(&self) -> PathBuf {
        self.root.join("relay.sock")
    }
}

/// The directory of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDir {
    root: PathBuf,
}

impl ClusterDir {
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Manager only: the config that the administrator edits.
    pub fn config(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Manager only: the cluster's secret key.
    pub fn cluster_key(&self) -> PathBuf {
        self.root.join("cluster.key")
    }

    /// Manager only: hashes of the invites, and who redeemed them.
    pub fn invites(&self) -> PathBuf {
        self.root.join("invites")
    }

    /// Manager only: the text that the last `rescan` signed, from which the administrator's edits begin.
    pub fn base(&self) -> PathBuf {
        self.root.join("cluster.base")
    }

    /// This machine's secret key in the cluster.
    pub fn machine_key(&self) -> PathBuf {
        self.root.join("machine.key")
    }

    /// The last accepted signed snapshot.
    pub fn snapshot(&self) -> PathBuf {
        self.root.join("snapshot")
    }

    /// Room that was taken while there was some, for a snapshot that a full disk does not let into
    /// [`ClusterDir::snapshot`].
    pub fn snapshot_reserve(&self) -> PathBuf {
        self.root.join("snapshot.reserve")
    }

    /// Manager only: a snapshot that this manager did not make but was shown, kept until an administrator decides.
    pub fn foreign_snapshot(&self) -> PathBuf {
        self.root.join("snapshot.foreign")
    }

    /// The cluster that this machine was told to join: its id, and, until it has a snapshot, where to knock.
    pub fn joining(&self) -> PathBuf {
        self.root.join("joining.toml")
    }

    /// Last known addresses of the other machines, a cache.
    pub fn peers(&self) -> PathBuf {
        self.root.join("peers")
    }

    /// The ports that were chosen at the first start.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }
}
