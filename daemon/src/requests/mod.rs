//! Everything that a CLI asks for except sessions: the disk part by [`crate::admin`], then what the running daemon adds.

pub(crate) mod connect;
pub(crate) mod doctor;
pub(crate) mod metrics;
pub mod offline;
pub(crate) mod ping;
pub(crate) mod socket;
pub(crate) mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{
    Changed, ClusterApprove, ClusterInit, ClusterInvite, ClusterMade, MachineMade, Publication, Request, Rescan,
    RescanOutcome, Rescanned, Response,
};
use malai_protocol::snapshot::Snapshot;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::manager::Rescan as Outcome;
use crate::admin::{self, Change, Scanned};
use crate::caller::Caller;
use crate::clusters::config::spread::spread;
use crate::clusters::config::sync;
use crate::clusters::join;
use crate::clusters::{Cluster, Clusters, Served};
use crate::net::endpoint::own_addresses;
use crate::runtime::alarms::AlarmCause;
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::store;
use crate::store::lock::Changes;

/// Bounds how long a stop waits, when all sessions have ended, for their end lines.
const END_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers of requests work with.
#[derive(Debug)]
pub(crate) struct Context {
    clusters: Arc<Clusters>,
    caller: Arc<Caller>,
    stop: CancellationToken,
    connections: AtomicUsize,
    last: watch::Sender<Instant>,
}

/// A CLI is connected; dropping it notes when it left.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Context);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.last.send_replace(Instant::now());
    }
}

impl Context {
    /// `stop` ends the daemon.
    pub(crate) fn new(clusters: Arc<Clusters>, caller: Arc<Caller>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            clusters,
            caller,
            stop,
            connections: AtomicUsize::new(0),
            last: watch::Sender::new(Instant::now()),
        })
    }

    /// All clusters.
    pub(crate) fn clusters(&self) -> &Arc<Clusters> {
        &self.clusters
    }

    /// Returns what makes requests to other machines.
    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Whether this is an agent.
    pub(crate) fn agent(&self) -> bool {
        self.clusters.shared().agent
    }

    /// Counts a CLI for as long as the guard lives.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }

    /// Returns when nobody was connected and nothing ran for so long; never without a limit.
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

/// Carries out one request. `more` takes what is answered before the last response.
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
        Request::Session(_) => Err(Failure::new(Kind::Internal, "a session is not answered by a response")),
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
        Request::ClusterList => {
            let home = clusters.shared().home.clone();
            blocking(move || admin::cluster_list(&home)).await.map(Response::Clusters)
        }
        Request::ClusterInit(ask) => cluster_init(context, ask).await,
        Request::ClusterInvite(ask) => invite(context, ask).await,
        Request::ClusterPending { cluster } => pending(context, &cluster).await,
        Request::ClusterApprove(ask) => approve(context, ask).await,
        Request::ClusterInvites { cluster } => invites(context, cluster).await,
        Request::ClusterRevoke { cluster, id } => revoke(context, cluster, id).await,
        Request::ClusterRemove { cluster, machine, revoke_invite } => {
            remove(context, cluster, machine, revoke_invite).await
        }
        Request::Rescan(ask) => {
            let scanned = rescan(context, ask).await?;
            Ok(Response::Rescanned(rescanned(context, scanned).await))
        }
        Request::ConfigShow { cluster } => {
            let home = clusters.shared().home.clone();
            blocking(move || admin::config_show(&home, &cluster)).await.map(Response::Config)
        }
        Request::Can(ask) => {
            let home = clusters.shared().home.clone();
            blocking(move || admin::can(&home, &ask)).await.map(Response::Verdict)
        }
        Request::MachineInit(ask) => {
            let alias = |made: &MachineMade| made.alias.clone();
            let made = change_and_load(context, alias, move |changes| admin::machine_init(changes, &ask)).await?;
            Ok(Response::Machine(made))
        }
        Request::MachineJoin { token, alias } => {
            // A CLI that is slow to read loses lines of progress, and nothing else.
            let say = move |line: String| drop(more.try_send(Response::Progress(line)));
            let (joining, asked) = (Arc::clone(clusters), CancellationToken::new());
            let (_leaves, left) = (asked.clone().drop_guard(), asked);
            let work = async move { join::invite::join(&joining, &token, alias.as_deref(), left, say).await };
            clusters.finish(work).await.map(Response::Joined)
        }
        Request::MachineLeave { cluster, force } => machine_leave(context, cluster, force).await,
    }
}

async fn cluster_init(context: &Context, ask: ClusterInit) -> Result<Response, Failure> {
    let alias = |made: &ClusterMade| made.alias.clone();
    let made = change_and_load(context, alias, move |changes| admin::cluster_init(changes, &ask, now_ms())).await?;
    let join_addresses = desk_addresses(context, &made.alias).unwrap_or(made.join_addresses);
    Ok(Response::Made(ClusterMade { join_addresses, ..made }))
}

/// Changes files of clusters, under the lock for it.
async fn change<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce(&Changes) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let home = context.clusters.shared().home.clone();
    blocking(move || work(&Changes::begin(&home)?)).await
}

/// Changes files of a cluster and takes it in anew: both, once it was begun.
async fn change_and_load<T: Send + 'static>(
    context: &Context,
    alias: impl FnOnce(&T) -> String + Send + 'static,
    work: impl FnOnce(&Changes) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let clusters = Arc::clone(&context.clusters);
    let both = async move {
        let home = clusters.shared().home.clone();
        let made = blocking(move || work(&Changes::begin(&home)?)).await?;
        clusters.load(&alias(&made)).await;
        Ok(made)
    };
    context.clusters.finish(both).await
}

/// Holds a snapshot that was signed and stored here, so that it spreads.
async fn hold(context: &Context, alias: &str, snapshot: &Snapshot) -> Result<(), Failure> {
    // A cluster that is being taken in may have read the disk before this was stored.
    context.clusters.settled().await;
    match context.served(alias) {
        Some(served) => sync::publish(&served.membership, snapshot.clone()),
        None => Ok(()),
    }
}

async fn stop(context: &Context) -> Result<Response, Failure> {
    let (clusters, stop) = (Arc::clone(&context.clusters), context.stop.clone());
    let both = async move {
        if let Some(executor) = clusters.shared().executor.running().await {
            executor.shutdown("the daemon on the target was stopped").await?;
        }
        for table in clusters.shared().executor.tables().all() {
            if !table.all_over(END_LINES_TIMEOUT).await {
                tracing::warn!(cluster = %table.cluster().short(), "not all ends are written down yet");
            }
        }
        clusters.shared().executor.note_stopped();
        stop.cancel();
        Ok(Response::Done)
    };
    context.clusters.finish(both).await
}

fn give_way(context: &Context) -> Result<Response, Failure> {
    if !context.agent() {
        return Err(Failure::new(Kind::Conflict, "this is a daemon, which leaves only for `malai daemon stop`"));
    }
    context.stop.cancel();
    Ok(Response::Done)
}

fn desk_addresses(context: &Context, alias: &str) -> Option<Vec<String>> {
    let desk = context.served(alias)?.desk?;
    Some(own_addresses(&desk.endpoint, malai_protocol::peer::MAX_ADDRESSES))
}

async fn invite(context: &Context, ask: ClusterInvite) -> Result<Response, Failure> {
    let home = context.clusters.shared().home.clone();
    let addresses = match desk_addresses(context, &ask.cluster) {
        Some(addresses) => addresses,
        None => admin::join_addresses(&home, &ask.cluster)?,
    };
    change(context, move |changes| admin::invite(changes, &ask, addresses, now_ms())).await.map(Response::Invited)
}

async fn invites(context: &Context, alias: String) -> Result<Response, Failure> {
    change(context, move |changes| admin::invites(changes, &alias, now_ms())).await.map(Response::Invites)
}

async fn revoke(context: &Context, alias: String, id: String) -> Result<Response, Failure> {
    change(context, move |changes| admin::revoke(changes, &alias, &id, now_ms())).await.map(Response::Revoked)
}

async fn remove(context: &Arc<Context>, cluster: String, machine: String, revoke: bool) -> Result<Response, Failure> {
    let alias = cluster.clone();
    changed(context, &alias, move |changes| admin::remove(changes, &cluster, &machine, revoke, now_ms())).await
}

async fn pending(context: &Context, alias: &str) -> Result<Response, Failure> {
    let desk = context.served(alias).and_then(|served| served.desk);
    match desk {
        Some(desk) => Ok(Response::Pending(desk.pending().list(Instant::now()))),
        None => Err(no_desk(context, alias)),
    }
}

fn no_desk(context: &Context, alias: &str) -> Failure {
    if context.agent() {
        return Failure::new(Kind::NotConfigured, "nobody can knock: only an agent runs here").hint("`malai daemon`");
    }
    Failure::new(Kind::NotConfigured, format!("this machine is not the cluster manager of {alias}"))
        .hint("`malai status` shows which machine is")
}

async fn approve(context: &Arc<Context>, ask: ClusterApprove) -> Result<Response, Failure> {
    let alias = ask.cluster.clone();
    let desk = context.served(&alias).and_then(|served| served.desk);
    let knocking = desk.as_ref().map_or_else(Vec::new, |desk| desk.pending().list(Instant::now()));
    changed(context, &alias, move |changes| {
        let approved = admin::approve(changes, &ask, &knocking, now_ms())?;
        if let Some(desk) = desk {
            desk.pending().settle(&approved.id);
        }
        Ok(approved)
    })
    .await
}

/// Changes the config, and publishes what was signed and stored.
async fn changed(
    context: &Arc<Context>,
    alias: &str,
    work: impl FnOnce(&Changes) -> Result<Change, Failure> + Send + 'static,
) -> Result<Response, Failure> {
    let (held, name) = (Arc::clone(context), alias.to_owned());
    let both = async move {
        let change = change(&held, work).await?;
        hold(&held, &name, &change.snapshot).await?;
        Ok(change)
    };
    let Change { machine, id, snapshot, warning, invites } = context.clusters.finish(both).await?;
    let publication = publish(context, alias, snapshot).await?;
    Ok(Response::Changed(Changed { machine, id, publication, warning, invites }))
}

async fn publish(context: &Context, alias: &str, snapshot: Snapshot) -> Result<Publication, Failure> {
    let Some(served) = context.served(alias) else { return admin::unpublished(&snapshot) };
    sync::publish(&served.membership, snapshot)?;
    Ok(spread(&served.membership).await)
}

/// Checks, signs and stores, and holds what was signed: all of it, once it was begun.
async fn rescan(context: &Arc<Context>, ask: Rescan) -> Result<Vec<Scanned>, Failure> {
    let (held, home) = (Arc::clone(context), context.clusters.shared().home.clone());
    let scan = async move {
        let scanned = blocking(move || admin::rescan(&Changes::begin(&home)?, &ask, now_ms())).await?;
        for Scanned { alias, outcome, .. } in &scanned {
            if let Ok(Outcome::Signed(snapshot)) = outcome {
                hold(&held, alias, snapshot).await?;
                // The administrator has looked at the config since.
                if let Some(served) = held.served(alias) {
                    served.membership.clear(AlarmCause::Joined);
                }
            }
        }
        Ok(scanned)
    };
    context.clusters.finish(scan).await
}

async fn rescanned(context: &Context, scanned: Vec<Scanned>) -> Vec<Rescanned> {
    let mut all = Vec::with_capacity(scanned.len());
    for Scanned { alias, outcome, warnings } in scanned {
        let outcome = match outcome {
            Ok(Outcome::Checked { diff }) => Ok(RescanOutcome::Checked { diff }),
            Ok(Outcome::Unchanged(snapshot)) => publish(context, &alias, snapshot).await.map(RescanOutcome::Unchanged),
            Ok(Outcome::Signed(snapshot)) => publish(context, &alias, snapshot).await.map(RescanOutcome::Published),
            Err(failure) => Err(failure),
        };
        all.push(Rescanned { alias, outcome: outcome.unwrap_or_else(RescanOutcome::Failed), warnings });
    }
    all
}

async fn machine_leave(context: &Context, alias: String, force: bool) -> Result<Response, Failure> {
    let clusters = Arc::clone(&context.clusters);
    let both = async move {
        let (home, name) = (clusters.shared().home.clone(), alias.clone());
        blocking(move || admin::check_leave(&home, &name, force)).await?;
        // Its sessions end while their callers can still be told, and while somebody can say why they ended.
        clusters.unload(&alias).await;
        let (home, name) = (clusters.shared().home.clone(), alias.clone());
        let left = blocking(move || admin::machine_leave(&Changes::begin(&home)?, &name, force)).await;
        match left {
            // It may have been taken in again meanwhile, for a change of its `[network]`.
            Ok(()) => clusters.unload(&alias).await,
            Err(_) if store::clusters::exists(&clusters.shared().home, &alias) => clusters.load(&alias).await,
            Err(_) => {}
        }
        left.map(|()| Response::Done)
    };
    context.clusters.finish(both).await
}
