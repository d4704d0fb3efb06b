//! The process that serves the clusters of a home: who it runs as, its audit, its executor.

use std::sync::Arc;

use malai_protocol::access::Me;
use malai_protocol::home::Home;
use malai_protocol::id::{Incarnation, MachineId};
use malai_protocol::local::LostLines;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::peers::recover::Rebuilds;
use crate::net::counters::Registry;
use crate::runtime::logging::Log;
use crate::store::audit::Audit;
use crate::supervisor::slot::ExecutorSlot;
use crate::target::sessions::Sessions;

/// Holds what the clusters of one daemon have in common: the process that serves them.
#[derive(Debug)]
pub(crate) struct Host {
    /// Is the home of this daemon.
    pub(crate) home: Home,
    /// This process is an agent: it only calls, and runs commands for its own user alone.
    pub(crate) agent: bool,
    /// Is the random name of this process.
    pub(crate) boot: Incarnation,
    /// Names the user that the daemon runs as.
    pub(crate) user: String,
    /// That user is root.
    pub(crate) root: bool,
    /// Writes the audit.
    pub(crate) audit: Arc<Audit>,
    /// Holds the executor.
    pub(crate) executor: ExecutorSlot,
    /// Holds the sessions of all clusters.
    pub(crate) sessions: Arc<Sessions>,
    /// Holds the counters.
    pub(crate) metrics: Registry,
    /// Is where this process logs.
    pub(crate) log: Option<Log>,
    /// Is cancelled when the sessions of an earlier daemon were taken over. Before that no stream of a session is served.
    pub(crate) open: CancellationToken,
    /// Takes aliases of clusters that have to be loaded again from the disk.
    pub(crate) reload: mpsc::UnboundedSender<String>,
    /// Remembers how often endpoints that heard no peer were rebuilt.
    pub(crate) rebuilds: Rebuilds,
}

impl Host {
    /// Has the daemon load a cluster again: it got its first config, or its `[network]` changed.
    pub(crate) fn reload(&self, alias: &str) {
        if self.reload.send(alias.to_owned()).is_err() {
            tracing::debug!(cluster = alias, "not loaded again: the daemon stops");
        }
    }

    /// Returns how many lines the logs of this process and of the executor lack.
    pub(crate) async fn lost_log(&self) -> Option<LostLines> {
        let own = self.log.as_ref().and_then(Log::lost).filter(|lost| lost.lines > 0);
        let executors = match self.executor.current() {
            Some(executor) => executor.lost_log().await.filter(|lost| lost.lines > 0),
            None => None,
        };
        match (own, executors) {
            (Some(own), Some(other)) => Some(LostLines { lines: own.lines.saturating_add(other.lines), why: own.why }),
            (own, other) => own.or(other),
        }
    }

    /// Returns this machine as the access rules see it.
    pub(crate) fn me<'a>(&'a self, id: &'a MachineId) -> Me<'a> {
        Me { id, daemon_user: &self.user, root: self.root }
    }
}
