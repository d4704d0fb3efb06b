//! Every file name under `MALAI_HOME`, as pure joins: nothing here touches the disk.

use std::path::{Path, PathBuf};

use crate::id::ClusterId;

/// Names the files of the directory that holds everything of one malai installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Makes the home at this path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory with one directory for each cluster.
    pub fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }

    /// Returns the directory of the cluster with this alias.
    pub fn cluster(&self, alias: &str) -> ClusterDir {
        ClusterDir { root: self.clusters().join(alias) }
    }

    /// Returns the directory where the executor keeps its journal.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// Returns the path of the audit log.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit.jsonl")
    }

    /// Returns the path of the `number`th older part of the audit log, from 1, the newest, to [`crate::audit::KEPT`].
    pub fn audit_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("audit.jsonl.{number}"))
    }

    /// Returns the path of this machine's own settings.
    pub fn settings(&self) -> PathBuf {
        self.root.join("malai.toml")
    }

    /// Returns the path of the log of what runs here in the background: daemon or agent, and the executor.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Returns the path of the `number`th older part of the log, from 1, the newest.
    pub fn log_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("daemon.log.{number}"))
    }

    /// Returns the path of the lock that a daemon holds for its life; its content is the holder's pid.
    pub fn lock(&self) -> PathBuf {
        self.root.join("malai.lock")
    }

    /// Returns the path of the lock that every process holds while it changes files of clusters, and never longer.
    pub fn changes_lock(&self) -> PathBuf {
        self.root.join("changes.lock")
    }

    /// Returns the path of the daemon's socket for the CLI.
    pub fn socket(&self) -> PathBuf {
        self.root.join("malai.sock")
    }

    /// Returns the path of the executor's socket for the daemon.
    pub fn executor_socket(&self) -> PathBuf {
        self.root.join("executor.sock")
    }

    /// Returns the directory of the relay that runs on this host, if one does.
    pub fn relay(&self) -> RelayDir {
        RelayDir { root: self.root.join("relay") }
    }
}

/// Names the files of a relay's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayDir {
    root: PathBuf,
}

impl RelayDir {
    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of its settings: where it is reached, and whose machines it serves.
    pub fn settings(&self) -> PathBuf {
        self.root.join("relay.toml")
    }

    /// Returns the path of the relay's own secret key.
    pub fn key(&self) -> PathBuf {
        self.root.join("relay.key")
    }

    /// Returns the path of the certificate that it made, PEM; absent where one was given.
    pub fn certificate(&self) -> PathBuf {
        self.root.join("certificate.pem")
    }

    /// Returns the path of that certificate's secret key, PEM.
    pub fn certificate_key(&self) -> PathBuf {
        self.root.join("certificate.key")
    }

    /// Returns the path of the last accepted signed snapshot of this cluster.
    pub fn snapshot(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot"))
    }

    /// Returns the path of room for a snapshot of this cluster that a full disk does not let into
    /// [`RelayDir::snapshot`].
    pub fn snapshot_reserve(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot.reserve"))
    }

    /// Returns the path of the lock that a running relay holds.
    pub fn lock(&self) -> PathBuf {
        self.root.join("relay.lock")
    }

    /// Returns the path of the socket where a running relay tells its state.
    pub fn socket(&self) -> PathBuf {
        self.root.join("relay.sock")
    }
}

/// Names the files of one cluster's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDir {
    root: PathBuf,
}

impl ClusterDir {
    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the config that the administrator edits; on managers only.
    pub fn config(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Returns the path of the cluster's secret key; on managers only.
    pub fn cluster_key(&self) -> PathBuf {
        self.root.join("cluster.key")
    }

    /// Returns the path of the invites' hashes, and of who redeemed them; on managers only.
    pub fn invites(&self) -> PathBuf {
        self.root.join("invites")
    }

    /// Returns the path of the text that the last `rescan` signed, from which the administrator's edits begin; on
    /// managers only.
    pub fn base(&self) -> PathBuf {
        self.root.join("cluster.base")
    }

    /// This machine's secret key in the cluster.
    pub fn machine_key(&self) -> PathBuf {
        self.root.join("machine.key")
    }

    /// Returns the path of the last accepted signed snapshot.
    pub fn snapshot(&self) -> PathBuf {
        self.root.join("snapshot")
    }

    /// Returns the path of room that was taken while there was some, for a snapshot that a full disk does not let into
    /// [`ClusterDir::snapshot`].
    pub fn snapshot_reserve(&self) -> PathBuf {
        self.root.join("snapshot.reserve")
    }

    /// Returns the path of a snapshot that this manager did not make but received, kept until an administrator
    /// decides; on managers only.
    pub fn foreign_snapshot(&self) -> PathBuf {
        self.root.join("snapshot.foreign")
    }

    /// Returns the path of what says which cluster this machine joins: its id, and, until it has a snapshot, where to
    /// knock.
    pub fn joining(&self) -> PathBuf {
        self.root.join("joining.toml")
    }

    /// Returns the path of the last known addresses of the other machines, a cache.
    pub fn peers(&self) -> PathBuf {
        self.root.join("peers")
    }

    /// Returns the path of the ports that were chosen at the first start.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }
}
