//! All clusters of one home: which are served, which wait for their config, which are broken.

pub(crate) mod config;
pub(crate) mod host;
pub(crate) mod join;
pub(crate) mod membership;
pub(crate) mod peers;
pub(crate) mod spread;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use malai_protocol::config::Network;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::local::Role;
use malai_protocol::peer::{ALPN, JOIN_ALPN};
use malai_protocol::snapshot::{Order, Snapshot, order};
use parking_lot::{Mutex, MutexGuard};
use tokio_util::task::TaskTracker;

use crate::admin::manager::Manager;
use crate::clusters::config::{network, sync, tell};
use crate::clusters::host::Host;
use crate::clusters::join::desk::Desk;
use crate::clusters::join::knock::Waiting;
use crate::clusters::membership::Membership;
use crate::clusters::membership::MembershipParts;
use crate::clusters::peers::{accept, directory, known, link, recover};
use crate::net::endpoint::{self, Finding, bound_port};
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::runtime::duty;
use crate::store;
use crate::store::clusters::Joining;
use crate::store::held::Held;
use crate::store::lock::Changes;
use crate::target::live::LiveTable;

/// Bounds how long sessions of a cluster that is left may take to end: TERM, KILL, and the lines of the audit.
const REVOKED_ENDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Is a cluster that is served.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// Is this machine's part in it.
    pub(crate) membership: Arc<Membership>,
    /// Is the cluster manager's desk for newcomers; absent on the other machines and in an agent.
    pub(crate) desk: Option<Arc<Desk>>,
}

/// Is one cluster of this home.
#[derive(Debug, Clone)]
pub(crate) enum Cluster {
    /// It is served.
    Ready(Served),
    /// It has no config yet.
    Waiting(Arc<Waiting>),
    /// It cannot be used, and the others can.
    Broken(Failure),
}

/// Holds all clusters of one home.
#[derive(Debug)]
pub(crate) struct Clusters {
    host: Arc<Host>,
    settings: store::settings::Settings,
    map: Mutex<BTreeMap<String, Cluster>>,
    tasks: TaskTracker,
    refreshing: tokio::sync::Mutex<()>,
    /// Holds the snapshot of each cluster that was in force when the cluster was loaded again. The disk may have had no room
    /// for it, and then has an older one.
    newest: Mutex<BTreeMap<String, Arc<Held>>>,
    /// Is held for writing while a cluster is being loaded. One at a time: two that loaded the same one would both serve it.
    changing: tokio::sync::RwLock<()>,
}

impl Clusters {
    /// Makes a list without clusters.
    pub(crate) fn new(host: Arc<Host>, settings: store::settings::Settings) -> Arc<Self> {
        Arc::new(Self {
            host,
            settings,
            map: Mutex::default(),
            tasks: TaskTracker::new(),
            refreshing: tokio::sync::Mutex::default(),
            newest: Mutex::default(),
            changing: tokio::sync::RwLock::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Cluster>> {
        self.map.lock()
    }

    /// Returns the process that serves them.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Loads every cluster of the home. What is broken is kept as broken.
    ///
    /// # Errors
    /// [`Failure`] when the directory of clusters cannot be read at all.
    pub(crate) async fn load_all(self: &Arc<Self>) -> Result<(), Failure> {
        for found in store::clusters::list(&self.host.home)? {
            self.load(&found.alias).await;
        }
        Ok(())
    }

    /// Waits until no cluster is being loaded: for a moment then it is missing, and a request would hear that this machine
    /// is in no such cluster.
    pub(crate) async fn settled(&self) {
        drop(self.changing.read().await);
    }

    /// Loads one cluster from the disk, in place of what was known of it. Sessions go on, and are decided again.
    pub(crate) async fn load(self: &Arc<Self>, alias: &str) {
        let _changing = self.changing.write().await;
        let before = self.lock().remove(alias);
        let sockets = bound(before.as_ref());
        let held = match &before {
            Some(Cluster::Ready(served)) => Some(served.membership.watch()),
            _ => None,
        };
        stop(before).await;
        if let Some(held) = held {
            let last = Arc::clone(&held.borrow());
            self.newest.lock().insert(alias.to_owned(), last);
        }
        endpoint::released(&sockets).await;
        let cluster = match duty::caught(self.serve(alias)).await.unwrap_or_else(|| Err(fault())) {
            Ok(cluster) => cluster,
            Err(_) if store::clusters::is_gone(&self.host.home, alias) => {
                tracing::info!(cluster = alias, "not loaded again: it was left");
                self.newest.lock().remove(alias);
                return;
            }
            Err(failure) => {
                tracing::error!(cluster = alias, "cannot be used: {failure}");
                Cluster::Broken(failure)
            }
        };
        if !matches!(cluster, Cluster::Broken(_)) {
            self.newest.lock().remove(alias);
        }
        self.lock().insert(alias.to_owned(), cluster);
    }

    /// Loads what changed on the disk since it was loaded: beside an agent other processes change files.
    ///
    /// # Errors
    /// [`Failure`] when the directory of clusters cannot be read at all.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<(), Failure> {
        let _one_at_a_time = self.refreshing.lock().await;
        let found: Vec<String> = store::clusters::list(&self.host.home)?.into_iter().map(|f| f.alias).collect();
        for alias in self.aliases().into_iter().filter(|alias| !found.contains(alias)) {
            self.unload(&alias).await;
        }
        for alias in found {
            // A newer snapshot is held as if it was published here: sessions go on.
            let current = match self.get(&alias) {
                Some(Cluster::Ready(served)) => {
                    let membership = served.membership;
                    match store::clusters::place(&membership.dir).load(&membership.cluster).map(|found| found.newest) {
                        Ok(Some(stored)) => {
                            let header = *stored.header();
                            // What the disk had no room for is older there, and not to be gone back to.
                            sync::publish(&membership, stored).is_ok()
                                && matches!(
                                    order(&header, Some(membership.held().snapshot.header())),
                                    Order::Same | Order::Older
                                )
                        }
                        _ => false,
                    }
                }
                _ => false,
            };
            if !current {
                self.load(&alias).await;
            }
        }
        Ok(())
    }

    /// Loads one cluster again, in the background.
    pub(crate) fn reload(self: &Arc<Self>, alias: String) {
        let clusters = Arc::clone(self);
        self.tasks.spawn(async move { clusters.load(&alias).await });
    }

    /// Stops serving a cluster that is, or is going to be, not on the disk any more. First its sessions end, and their
    /// ends are written down.
    pub(crate) async fn unload(&self, alias: &str) {
        let served = match self.get(alias) {
            Some(Cluster::Ready(served)) => Some(served.membership.cluster),
            _ => None,
        };
        // One that does not work is known by what its sessions say.
        let is_its = |table: &Arc<LiveTable>| match served {
            Some(cluster) => table.cluster() == cluster,
            None => table.is_of(alias),
        };
        let tables: Vec<_> = self.host.sessions.tables().all().into_iter().filter(is_its).collect();
        self.end_sessions(alias, &tables).await;
        let _changing = self.changing.write().await;
        let known = self.lock().remove(alias);
        self.newest.lock().remove(alias);
        stop(known).await;
        // It may have been loaded again meanwhile, and have let sessions in; now no more can come.
        self.end_sessions(alias, &tables).await;
    }

    async fn end_sessions(&self, alias: &str, tables: &[Arc<LiveTable>]) {
        for table in tables {
            table.revoke_all(&self.host).await;
            if !table.all_over(REVOKED_ENDS_TIMEOUT).await {
                tracing::error!(cluster = alias, "left the cluster before all of its sessions ended");
            }
        }
    }

    /// Decides all sessions again that an earlier daemon left, and ends those that no config allows. A cluster that cannot be
    /// used may still be mended: its sessions wait for that, as for their callers.
    pub(crate) async fn take_over(&self) {
        let served = self.ready();
        for membership in &served {
            membership.live.review(&membership.held(), &membership.me, &self.host).await;
        }
        if self.all().iter().any(|(_, cluster)| matches!(cluster, Cluster::Broken(_))) {
            return;
        }
        for table in self.host.sessions.tables().all() {
            if !served.iter().any(|membership| membership.cluster == table.cluster()) {
                table.revoke_all(&self.host).await;
            }
        }
    }

    /// Does this to its end, whether or not the one that asked for it waits.
    ///
    /// # Errors
    /// What the work says.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let cut_short = |error| Failure::new(Kind::Internal, format!("the work was cut short: {error}"));
        self.tasks.spawn(work).await.map_err(cut_short)?
    }

    async fn serve(self: &Arc<Self>, alias: &str) -> Result<Cluster, Failure> {
        let stored = store::clusters::load(&self.host.home, alias)?;
        let is_manager = stored.role() == Role::Manager;
        let Some(snapshot) = stored.snapshot else {
            return Waiting::begin(&self.host, stored).await.map(Cluster::Waiting);
        };
        // What a manager holds is what it has stored, or it was restored from a backup.
        let held = if is_manager { Arc::new(Held::new(snapshot)?) } else { self.newest(alias, snapshot)? };
        let network = held.config.network.clone();
        let ports = store::ports::load(&stored.dir.ports());
        let listen = self.settings.listen(alias);
        let agent = self.host.agent;
        let options = endpoint::Options {
            key: stored.machine_key.secret().clone(),
            alpns: if agent { Vec::new() } else { vec![ALPN.to_vec()] },
            network: &network,
            listen: listen.filter(|_| !agent),
            kept_port: ports.machine.filter(|_| !agent),
            publish: !agent,
            pass: stored.joining.as_ref().filter(|joining| joining.ticket_is_good(now_ms())).and_then(Joining::pass),
            finding: Finding::default(),
        };
        let foreign = if is_manager { self.foreign(alias).await? } else { None };
        let bound = endpoint::bind(&options).await?;
        let parts = MembershipParts {
            alias: alias.to_owned(),
            dir: stored.dir.clone(),
            me: stored.machine_key.id(),
            is_manager,
            bound,
            finding: options.finding,
            held,
            filed: stored.filed,
            foreign,
        };
        let membership = Membership::new(parts, Arc::clone(&self.host));
        known::recall(&membership.peers.pool, &stored.dir);
        let desk = match is_manager && !agent {
            true => match self.open_desk(&membership, &network, ports.join).await {
                Ok(desk) => Some(desk),
                Err(failure) => {
                    // Nothing runs on it yet, and the next attempt wants its port.
                    membership.release().await;
                    return Err(failure);
                }
            },
            false => None,
        };
        if !agent && let Err(failure) = keep_ports(&membership, desk.as_deref(), ports) {
            // The next start may get other ports. That is no reason not to serve now.
            tracing::warn!(cluster = alias, "cannot store the ports: {failure}");
        }
        start(&membership);
        membership.keep("addresses", known::keep);
        if let Some(desk) = &desk {
            desk.start();
        }
        if !agent {
            // A relay that holds no snapshot yet lets the cluster key through, and no machine.
            let endpoint = desk.as_ref().map_or(&membership.peers.endpoint, |desk| &desk.endpoint).clone();
            membership.keep("relays", move |membership| tell::run(membership, endpoint.clone()));
        }
        Ok(Cluster::Ready(Served { membership, desk }))
    }

    /// Returns the stored snapshot, or a newer one of the same cluster that was held before.
    fn newest(&self, alias: &str, stored: Snapshot) -> Result<Arc<Held>, Failure> {
        let before = self.newest.lock().get(alias).cloned();
        let newer = |held: &Arc<Held>| {
            let header = held.snapshot.header();
            header.cluster == stored.header().cluster && order(header, Some(stored.header())) == Order::Newer
        };
        match before.filter(newer) {
            Some(held) => Ok(held),
            None => Held::new(stored).map(Arc::new),
        }
    }

    /// Returns what the manager's files say of a snapshot made elsewhere.
    async fn foreign(&self, alias: &str) -> Result<Option<String>, Failure> {
        let (home, alias) = (self.host.home.clone(), alias.to_owned());
        blocking(move || Ok(Manager::load(&Changes::begin(&home)?, &alias)?.alarm())).await
    }

    async fn open_desk(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        network: &Network,
        kept_port: Option<u16>,
    ) -> Result<Arc<Desk>, Failure> {
        let path = membership.dir.cluster_key();
        let key = store::keys::ClusterKey::load(&path)?
            .ok_or_else(|| Failure::new(Kind::BadConfig, format!("{} is gone", path.display())))?;
        let options = endpoint::Options {
            key: key.secret().clone(),
            alpns: vec![JOIN_ALPN.to_vec()],
            network,
            listen: self.settings.join_listen(&membership.alias),
            kept_port,
            publish: true,
            pass: None,
            finding: Finding::default(),
        };
        let bound = endpoint::bind(&options).await?;
        Ok(Desk::new(Arc::clone(membership), bound))
    }

    /// Returns the cluster with this alias.
    pub(crate) fn get(&self, alias: &str) -> Option<Cluster> {
        self.lock().get(alias).cloned()
    }

    /// Returns all clusters, by alias.
    pub(crate) fn all(&self) -> Vec<(String, Cluster)> {
        self.lock().iter().map(|(alias, cluster)| (alias.clone(), cluster.clone())).collect()
    }

    /// Returns all aliases.
    pub(crate) fn aliases(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Returns the clusters that are served.
    pub(crate) fn served(&self) -> Vec<Served> {
        let ready = |cluster: &Cluster| match cluster {
            Cluster::Ready(served) => Some(served.clone()),
            _ => None,
        };
        self.lock().values().filter_map(ready).collect()
    }

    /// Returns this machine's part in each cluster that is served.
    pub(crate) fn ready(&self) -> Vec<Arc<Membership>> {
        self.served().into_iter().map(|served| served.membership).collect()
    }

    /// Returns this machine's part in the cluster with this key.
    pub(crate) fn by_id(&self, id: &ClusterId) -> Option<Arc<Membership>> {
        self.ready().into_iter().find(|membership| membership.cluster == *id)
    }

    /// Returns a cluster that waits for its config, and what it waits for.
    pub(crate) fn waiting(&self) -> Option<(String, String)> {
        self.lock().iter().find_map(|(alias, cluster)| match cluster {
            Cluster::Waiting(waiting) => Some((alias.clone(), waiting.what())),
            _ => None,
        })
    }

    /// Returns what must be said at the start: which clusters cannot be used.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let all = self.all();
        let broken = all.iter().filter_map(|(alias, cluster)| match cluster {
            Cluster::Broken(failure) => {
                let hint = failure.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
                Some(format!("cluster {alias} cannot be used: {}{hint}", failure.message))
            }
            Cluster::Ready(served) => {
                let alarms = served.membership.alarms();
                (!alarms.is_empty()).then(|| format!("cluster {alias}: {}", alarms.join("; ")))
            }
            Cluster::Waiting(waiting) => Some(format!("cluster {alias} has no config yet: {}", waiting.what())),
        });
        broken.collect()
    }

    /// Closes every connection at once, so that attachments are lost.
    pub(crate) fn close_connections(&self) {
        for served in self.served() {
            served.membership.close_connections();
        }
    }

    /// Stops serving all clusters, side by side.
    pub(crate) async fn shutdown(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        let all = std::mem::take(&mut *self.lock());
        let stops: Vec<_> = all.into_values().map(|cluster| tokio::spawn(stop(Some(cluster)))).collect();
        for stopped in stops {
            if let Err(error) = stopped.await {
                tracing::error!("a cluster did not stop in good order: {error}");
            }
        }
    }
}

/// Returns the failure of a cluster that could not be loaded because of a fault in malai.
fn fault() -> Failure {
    Failure::new(Kind::Internal, "a fault in malai prevented loading this cluster; see the log")
        .hint("malai daemon restart; and please report the fault")
}

/// Returns the sockets of a cluster that is served.
fn bound(cluster: Option<&Cluster>) -> Vec<SocketAddr> {
    let Some(Cluster::Ready(Served { membership, desk })) = cluster else { return Vec::new() };
    let desk = desk.iter().flat_map(|desk| desk.endpoint.bound_sockets());
    membership.peers.endpoint.bound_sockets().into_iter().chain(desk).collect()
}

/// Starts the tasks that run as long as the cluster is served.
fn start(membership: &Arc<Membership>) {
    directory::open(membership);
    if let Some(why) = membership.ungranted() {
        tracing::warn!(cluster = %membership.alias, "{why}");
    }
    if !membership.host.agent {
        membership.keep("accept", accept::run);
        membership.keep("link", link::run);
    }
    membership.keep("review", sync::review);
    membership.keep("snapshot", sync::store);
    membership.tasks.spawn(network::run(Arc::clone(membership)));
    membership.keep("recover", recover::run);
}

async fn stop(cluster: Option<Cluster>) {
    match cluster {
        Some(Cluster::Ready(served)) => {
            let Served { membership, desk } = served;
            let desk = async {
                if let Some(desk) = desk {
                    desk.shutdown().await;
                }
            };
            let membership = async {
                membership.shutdown().await;
                known::remember(&membership);
                membership.release().await;
            };
            tokio::join!(desk, membership);
        }
        Some(Cluster::Waiting(waiting)) => waiting.stop().await,
        Some(Cluster::Broken(_)) | None => {}
    }
}

fn keep_ports(membership: &Membership, desk: Option<&Desk>, kept: store::ports::Ports) -> Result<(), Failure> {
    let now = store::ports::Ports {
        machine: bound_port(&membership.peers.endpoint).or(kept.machine),
        join: desk.and_then(|desk| bound_port(&desk.endpoint)).or(kept.join),
    };
    if now == kept { Ok(()) } else { store::ports::save(&membership.dir.ports(), &now) }
}
