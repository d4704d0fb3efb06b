//! What the CLI asks of its daemon, except sessions: the dispatch, and a module for each kind of question.

mod administer;
pub(crate) mod connect;
pub(crate) mod doctor;
mod joining;
pub(crate) mod metrics;
pub mod offline;
pub(crate) mod ping;
pub(crate) mod socket;
pub(crate) mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Request, Response};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::clusters::{Cluster, Clusters, Served};

/// Bounds how long a stop waits, when all sessions have ended, for their end lines.
const END_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// Holds what the handlers of requests work with.
#[derive(Debug)]
pub(crate) struct Context {
    clusters: Arc<Clusters>,
    caller: Arc<Caller>,
    stop: CancellationToken,
    connections: AtomicUsize,
    last: watch::Sender<Instant>,
}

/// Counts a CLI that is connected; when dropped, it notes the time.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Context);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.last.send_replace(Instant::now());
    }
}

impl Context {
    /// Makes the context of a daemon that `stop` ends.
    pub(crate) fn new(clusters: Arc<Clusters>, caller: Arc<Caller>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            clusters,
            caller,
            stop,
            connections: AtomicUsize::new(0),
            last: watch::Sender::new(Instant::now()),
        })
    }

    /// Returns the clusters of the home.
    pub(crate) fn clusters(&self) -> &Arc<Clusters> {
        &self.clusters
    }

    /// Returns what makes requests to other machines.
    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Says whether this process is an agent.
    pub(crate) fn agent(&self) -> bool {
        self.clusters.host().agent
    }

    /// Counts a CLI for as long as the guard lives.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }

    /// Returns when no CLI was connected and nothing ran for this long; never without a limit.
    pub(crate) async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let mut last = self.last.subscribe();
        loop {
            let deadline = *last.borrow_and_update() + limit;
            tokio::select! {
                _ = last.changed() => continue,
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            let running = self.clusters.ready().iter().any(|membership| membership.live.len() > 0);
            if self.connections.load(Ordering::Relaxed) == 0 && !running && self.caller.is_idle() {
                return;
            }
            self.last.send_replace(Instant::now());
        }
    }

    fn served(&self, alias: &str) -> Option<Served> {
        match self.clusters.get(alias) {
            Some(Cluster::Ready(served)) => Some(served),
            _ => None,
        }
    }
}

/// Carries out one request. `more` takes the answers before the last one.
pub(crate) async fn answer(context: &Arc<Context>, request: Request, more: mpsc::Sender<Response>) -> Response {
    carry_out(context, request, more).await.unwrap_or_else(Response::Failed)
}

async fn carry_out(
    context: &Arc<Context>,
    request: Request,
    more: mpsc::Sender<Response>,
) -> Result<Response, Failure> {
    let clusters = &context.clusters;
    match request {
        Request::Session(_) => Err(Failure::new(Kind::Internal, "a session request has no response")),
        Request::Status => Ok(Response::Status(status::status(clusters, false).await)),
        Request::Probe => Ok(Response::Status(status::status(clusters, true).await)),
        Request::Metrics => Ok(Response::Metrics(metrics::metrics(clusters).await)),
        Request::Doctor => Ok(Response::Doctor(doctor::checkup(clusters).await)),
        Request::Ping(ask) => ping::ping(clusters, &ask, &more).await.map(|()| Response::Done),
        Request::Connect(ask) => connect::connect(clusters, &ask).await.map(Response::Connected),
        Request::DaemonStatus => Ok(Response::Daemon(status::daemon(clusters).await)),
        Request::Stop => stop(context).await,
        Request::Leave => {
            context.stop.cancel();
            Ok(Response::Done)
        }
        Request::Yield => give_way(context),
        Request::ClusterPending { cluster } => joining::pending(context, &cluster),
        Request::MachineJoin { token, alias } => joining::join(context, token, alias, more).await,
        Request::MachineLeave { cluster, force } => joining::leave(context, cluster, force).await,
        ask @ (Request::ClusterList
        | Request::ClusterInit(_)
        | Request::ClusterInvite(_)
        | Request::ClusterInvites { .. }
        | Request::ClusterRevoke { .. }
        | Request::ClusterApprove(_)
        | Request::ClusterRemove { .. }
        | Request::Rescan(_)
        | Request::ConfigShow { .. }
        | Request::Can(_)
        | Request::MachineInit(_)) => administer::administer(context, ask).await,
    }
}

async fn stop(context: &Context) -> Result<Response, Failure> {
    let (clusters, stop) = (Arc::clone(&context.clusters), context.stop.clone());
    let both = async move {
        if let Some(executor) = clusters.host().executor.running().await {
            executor.shutdown("the daemon on the target was stopped").await?;
        }
        for table in clusters.host().sessions.tables().all() {
            if !table.all_over(END_LINES_TIMEOUT).await {
                tracing::warn!(cluster = %table.cluster().short(), "not all ends are written down yet");
            }
        }
        clusters.host().executor.note_stopped();
        stop.cancel();
        Ok(Response::Done)
    };
    context.clusters.finish(both).await
}

fn give_way(context: &Context) -> Result<Response, Failure> {
    if !context.agent() {
        return Err(Failure::new(Kind::Conflict, "this is a daemon, and only `malai daemon stop` ends it"));
    }
    context.stop.cancel();
    Ok(Response::Done)
}
