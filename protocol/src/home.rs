//! Every file name under `MALAI_HOME`, as pure joins: nothing here touches the disk.

use std::path::{Path, PathBuf};

use crate::id::ClusterId;

/// Makes the functions of a directory: each returns the path of a file in it.
macro_rules! files {
    ($directory:ident: $($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        impl $directory {
            /// Returns the directory itself.
            pub fn root(&self) -> &Path {
                &self.root
            }

            $($(#[$doc])*
            pub fn $name(&self) -> PathBuf {
                self.root.join($file)
            })*
        }
    };
}

/// Names the files of the directory that holds everything of one malai installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

files! { Home:
    /// Returns the directory with one directory for each cluster.
    clusters = "clusters";
    /// Returns the directory where the executor keeps its journal.
    sessions = "sessions";
    /// Returns the path of the audit log.
    audit = "audit.jsonl";
    /// Returns the path of this machine's own settings.
    settings = "malai.toml";
    /// Returns the path of the log of what runs here in the background: daemon or agent, and the executor.
    log = "daemon.log";
    /// Returns the path of the lock that a daemon holds for its life; its content is the holder's pid.
    lock = "malai.lock";
    /// Returns the path of the lock that every process holds while it changes files of clusters, and never longer.
    changes_lock = "changes.lock";
    /// Returns the path of the daemon's socket for the CLI.
    socket = "malai.sock";
    /// Returns the path of the executor's socket for the daemon.
    executor_socket = "executor.sock";
}

impl Home {
    /// Makes the home at this path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the directory of the cluster with this alias.
    pub fn cluster(&self, alias: &str) -> ClusterDir {
        ClusterDir { root: self.clusters().join(alias) }
    }

    /// Returns the path of the `number`th older part of the audit log, from 1, the newest, to [`crate::audit::KEPT`].
    pub fn audit_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("audit.jsonl.{number}"))
    }

    /// Returns the path of the `number`th older part of the log, from 1, the newest.
    pub fn log_part(&self, number: u32) -> PathBuf {
        self.root.join(format!("daemon.log.{number}"))
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

files! { RelayDir:
    /// Returns the path of its settings: where it is reached, and whose machines it serves.
    settings = "relay.toml";
    /// Returns the path of the relay's own secret key.
    key = "relay.key";
    /// Returns the path of the certificate that it made, PEM; absent where one was given.
    certificate = "certificate.pem";
    /// Returns the path of that certificate's secret key, PEM.
    certificate_key = "certificate.key";
    /// Returns the path of the lock that a running relay holds.
    lock = "relay.lock";
    /// Returns the path of the socket where a running relay tells its state.
    socket = "relay.sock";
}

impl RelayDir {
    /// Returns the path of the last accepted signed snapshot of this cluster.
    pub fn snapshot(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot"))
    }

    /// Returns the path of room for a snapshot of this cluster that a full disk does not let into
    /// [`RelayDir::snapshot`].
    pub fn snapshot_reserve(&self, cluster: &ClusterId) -> PathBuf {
        self.root.join(format!("{cluster}.snapshot.reserve"))
    }
}

/// Names the files of one cluster's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDir {
    root: PathBuf,
}

files! { ClusterDir:
    /// Returns the path of the config that the administrator edits; on managers only.
    config = "cluster.toml";
    /// Returns the path of the cluster's secret key; on managers only.
    cluster_key = "cluster.key";
    /// Returns the path of the invites' hashes, and of who redeemed them; on managers only.
    invites = "invites";
    /// Returns the path of the text that the last `rescan` signed, from which the administrator's edits begin; on
    /// managers only.
    base = "cluster.base";
    /// Returns the path of this machine's secret key in the cluster.
    machine_key = "machine.key";
    /// Returns the path of the last accepted signed snapshot.
    snapshot = "snapshot";
    /// Returns the path of room that was taken while there was some, for a snapshot that a full disk does not let into
    /// [`ClusterDir::snapshot`].
    snapshot_reserve = "snapshot.reserve";
    /// Returns the path of a snapshot that this manager did not make but received, kept until an administrator
    /// decides; on managers only.
    foreign_snapshot = "snapshot.foreign";
    /// Returns the path of what says which cluster this machine joins: its id, and, until it has a snapshot, where to
    /// knock.
    joining = "joining.toml";
    /// Returns the path of the last known addresses of the other machines, a cache.
    peers = "peers";
    /// Returns the path of the ports that were chosen at the first start.
    ports = "ports";
}
