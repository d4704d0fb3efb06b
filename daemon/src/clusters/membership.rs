//! One joined cluster on this machine: its identity, its endpoint, the snapshot it holds, its connections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iroh::{Endpoint, TransportAddr};
use malai_protocol::access::check_account;
use malai_protocol::config::{Machine, Name};
use malai_protocol::failure::Failure;
use malai_protocol::home::ClusterDir;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::peer::{Close, VERSION};
use malai_protocol::snapshot::{Header, Snapshot};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::net::counters::Counters;
use crate::net::endpoint::{self, Bound, Finding, own_addresses};
use crate::net::finding::hearsay::Hearsay;
use crate::net::limits::tally::Tally;
use crate::net::pool::Pool;
use crate::net::proxy;
use crate::net::relays::Relays;
use crate::runtime::alarms::{AlarmCause, Alarms};
use crate::runtime::backoff::Said;
use crate::runtime::clock::now_ms;
use crate::runtime::duty;
use crate::shared::Shared;
use crate::store::clusters;
use crate::store::held::Held;
use crate::store::keeper::Keeper;
use crate::target::live::LiveTable;
use crate::target::refusals::Refusals;

/// In so long, what was said last has left this machine.
const LAST_WORDS: Duration = Duration::from_millis(20);
/// How long an answer may hold on to the endpoint that is let go.
const HELD: Duration = Duration::from_secs(2);

/// One cluster that this machine is a member of and holds a snapshot of.
#[derive(Debug)]
pub(crate) struct Membership {
    /// Its name here.
    pub(crate) alias: String,
    /// Its directory.
    pub(crate) dir: ClusterDir,
    /// Its key.
    pub(crate) cluster: ClusterId,
    /// This machine's key.
    pub(crate) me: MachineId,
    /// This machine holds the cluster key.
    pub(crate) is_manager: bool,
    /// The endpoint of the machine key.
    pub(crate) endpoint: Endpoint,
    /// Its relays.
    pub(crate) relays: Relays,
    /// How it finds the other machines.
    pub(crate) finding: Finding,
    /// What the others may ask of the directory.
    pub(crate) directory: crate::clusters::peers::directory::Limits,
    /// Connections to the other machines.
    pub(crate) pool: Pool,
    /// What is counted.
    pub(crate) counters: Arc<Counters>,
    /// Sessions on this machine, of this cluster.
    pub(crate) live: Arc<LiveTable>,
    /// What was refused lately.
    pub(crate) refusals: Refusals,
    /// Whose connections were refused.
    pub(crate) refused: Tally<MachineId>,
    /// What all clusters of the daemon share.
    pub(crate) shared: Arc<Shared>,
    pub(super) nudges: Notify,
    /// Whether last known addresses could be stored, as the log has it.
    pub(crate) addresses_said: Mutex<Said<bool>>,
    pub(super) held: watch::Sender<Arc<Held>>,
    /// What was stored where it belongs when the cluster was taken in.
    pub(super) filed: Option<Header>,
    /// Held while a snapshot is fetched, so that one that many announce comes once; but nobody waits long for it.
    pub(super) fetching: tokio::sync::Mutex<()>,
    /// One snapshot is installed at a time.
    pub(super) installing: tokio::sync::Mutex<()>,
    /// The newest snapshot made elsewhere that waits for the disk.
    pub(super) unnoted: Mutex<Option<Snapshot>>,
    pub(super) alarms: Alarms,
    /// Nobody is heard: what it says last, nobody confirms.
    pub(super) deaf: AtomicBool,
    /// To a machine that was connected when the connections were closed.
    pub(super) longest_rtt: OnceLock<Duration>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

/// What a membership is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The cluster's name here.
    pub(crate) alias: String,
    /// Its directory.
    pub(crate) dir: ClusterDir,
    /// This machine's key.
    pub(crate) me: MachineId,
    /// This machine holds the cluster key.
    pub(crate) is_manager: bool,
    /// The endpoint of the machine key, and its relays.
    pub(crate) bound: Bound,
    /// How that finds the other machines.
    pub(crate) finding: Finding,
    /// The newest snapshot that is known.
    pub(crate) held: Arc<Held>,
    /// What of it is stored where it belongs.
    pub(crate) filed: Option<Header>,
    /// A snapshot made elsewhere, as the manager's files tell of it.
    pub(crate) foreign: Option<String>,
}

impl Membership {
    /// A membership whose tasks do not run yet.
    pub(crate) fn new(parts: Parts, shared: Arc<Shared>) -> Arc<Self> {
        let cluster = parts.held.snapshot.header().cluster;
        let counters = shared.metrics.of(cluster);
        let live = shared.executor.tables().of(cluster);
        live.open();
        let alarms = Alarms::new(parts.alias.clone());
        if let Some(text) = parts.foreign {
            alarms.raise(AlarmCause::Foreign, text);
        }
        Arc::new(Self {
            alias: parts.alias,
            dir: parts.dir,
            cluster,
            me: parts.me,
            is_manager: parts.is_manager,
            endpoint: parts.bound.endpoint,
            relays: parts.bound.relays,
            finding: parts.finding,
            directory: crate::clusters::peers::directory::Limits::default(),
            pool: Pool::new(parts.me, Arc::clone(&counters)),
            counters,
            live,
            refusals: Refusals::default(),
            refused: Tally::default(),
            shared,
            nudges: Notify::new(),
            addresses_said: Mutex::default(),
            held: watch::Sender::new(parts.held),
            filed: parts.filed,
            fetching: tokio::sync::Mutex::default(),
            installing: tokio::sync::Mutex::default(),
            unnoted: Mutex::default(),
            alarms,
            deaf: AtomicBool::new(false),
            longest_rtt: OnceLock::new(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    /// The snapshot that is held now.
    pub(crate) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.borrow())
    }

    /// Wakes whenever another snapshot is held.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Held>> {
        self.held.subscribe()
    }

    /// Whether this key is a member by the snapshot that is held.
    pub(crate) fn is_member(&self, id: &MachineId) -> bool {
        self.held().config.machine_by_id(id).is_some()
    }

    /// Whether commands can run here at all as the config says, under this daemon's account.
    ///
    /// # Errors
    /// The refusal that each of them gets.
    pub(crate) fn check_account(&self) -> Result<(), Failure> {
        check_account(&self.held().config, &self.shared.me(&self.me))
    }

    /// This machine's name in the config, when it is still in it.
    pub(crate) fn my_name(&self) -> Option<String> {
        self.held().config.machine_by_id(&self.me).map(|(name, _)| name.to_string())
    }

    /// The machine with this name.
    pub(crate) fn machine(&self, name: &str) -> Option<(MachineId, Machine)> {
        let held = self.held();
        let name: Name = name.parse().ok()?;
        held.config.machines.get(&name).map(|machine| (machine.id, machine.clone()))
    }

    /// The cluster manager's key, unless that is this machine.
    pub(crate) fn manager_id(&self) -> Option<MachineId> {
        let held = self.held();
        let id = held.config.machines.get(&held.config.cluster.manager)?.id;
        (id != self.me).then_some(id)
    }

    /// Where this machine can be reached.
    pub(crate) fn addresses(&self) -> Vec<String> {
        own_addresses(&self.endpoint, malai_protocol::peer::MAX_ADDRESSES)
    }

    /// This machine's own addresses as its network shows them now.
    pub(crate) fn own_addresses(&self) -> BTreeSet<SocketAddr> {
        self.endpoint.addr().ip_addrs().copied().collect()
    }

    /// Returns what addresses are compared with that others told.
    pub(crate) fn hearsay(&self) -> Hearsay {
        Hearsay {
            relays: endpoint::relays(&self.held().config.network),
            bound: self.endpoint.bound_sockets(),
            own: self.own_addresses(),
        }
    }

    /// Last known addresses of a machine, of which each may be contacted.
    pub(crate) fn last_known(&self, id: MachineId) -> Vec<TransportAddr> {
        let (mut addresses, is_recalled) = self.pool.addresses(id);
        let hearsay = self.hearsay();
        // Where the machine itself told them over a connection, they were compared with that.
        addresses.retain(|addr| hearsay.admits(addr, |_| !is_recalled));
        addresses
    }

    /// This machine's greeting.
    pub(crate) fn hello(&self) -> malai_protocol::peer::Hello {
        malai_protocol::peer::Hello {
            version: VERSION,
            needs: Vec::new(),
            header: Some(self.held().snapshot.signed_header().clone()),
            addresses: if self.shared.agent { Vec::new() } else { self.addresses() },
            caller_only: self.shared.agent,
            boot: Some(self.shared.boot),
            executor: self.shared.executor.incarnation(),
            malai: crate::VERSION.to_owned(),
            clock_ms: Some(now_ms()),
            enforced: None,
            epoch: None,
        }
    }

    /// Says that somebody runs something in this cluster: a manager that refused this machine is asked soon.
    pub(crate) fn nudge(&self) {
        self.nudges.notify_waiters();
    }

    /// Returns at the next nudge.
    pub(crate) async fn nudged(&self) {
        self.nudges.notified().await;
    }

    /// Returns everything that an administrator must look at.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let alarms = self.alarms_and_mends().into_iter().map(|(text, _)| text);
        alarms.chain(self.ungranted()).chain(proxy::problem()).collect()
    }

    /// Whether the cluster manager says that this machine is not in the config any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.alarms.has(AlarmCause::Removed)
    }

    /// Returns which right on this machine this version leaves out of the config that is held.
    pub(crate) fn ungranted(&self) -> Option<String> {
        let held = self.held();
        let (me, _) = held.config.machine_by_id(&self.me)?;
        let why = held.config.ungranted(me)?;
        Some(format!("{why}, until a newer malai is installed on this machine"))
    }

    /// Returns the same, each with what mends it.
    pub(crate) fn alarms_and_mends(&self) -> Vec<(String, String)> {
        let rescan = format!("on the cluster manager: malai rescan {}", self.alias);
        let raised = self.alarms.by_cause().into_iter();
        let raised = raised.map(|(cause, text)| (text, cause.mend(&self.alias, self.dir.root())));
        raised
            .chain(crate::clusters::peers::twins::alarms(self))
            .chain(self.unheeded().map(|text| (text, rescan)))
            .collect()
    }

    /// What this version leaves out of the config that is held.
    fn unheeded(&self) -> Option<String> {
        let held = self.held();
        let why = held.config.unheeded()?;
        Some(format!("{why}: install a newer malai on this machine, or take that out of cluster.toml"))
    }

    /// Raises an alarm, and logs it when its text is new.
    pub(crate) fn raise(&self, cause: AlarmCause, text: String) {
        self.alarms.raise(cause, text);
    }

    /// Clears the alarm of this cause.
    pub(crate) fn clear(&self, cause: AlarmCause) {
        self.alarms.clear(cause);
    }

    /// Raises this alarm, or clears it where there is no text.
    pub(crate) fn set_alarm(&self, cause: AlarmCause, text: Option<String>) {
        self.alarms.set(cause, text);
    }

    /// Starts the tasks that run for as long as the cluster is served.
    pub(crate) fn start(self: &Arc<Self>) {
        crate::clusters::peers::directory::open(self);
        if let Some(why) = self.ungranted() {
            tracing::warn!(cluster = %self.alias, "{why}");
        }
        if !self.shared.agent {
            self.keep("accept", crate::clusters::peers::accept::run);
            self.keep("link", crate::clusters::peers::link::run);
        }
        self.keep("review", crate::clusters::config::sync::review);
        self.keep("snapshot", store_held);
        self.tasks.spawn(crate::clusters::config::network::run(Arc::clone(self)));
        self.keep("recover", crate::clusters::peers::recover::run);
    }

    /// Does this for as long as the cluster is served.
    pub(crate) fn keep<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: impl Fn(Arc<Self>) -> F + Send + 'static,
    ) {
        let membership = Arc::clone(self);
        self.tasks.spawn(duty::keep(name, self.cancel.clone(), move || work(Arc::clone(&membership))));
    }

    /// Closes every connection, so that attachments are lost at once.
    pub(crate) fn close_connections(&self) {
        self.longest_rtt.get_or_init(|| self.pool.longest_rtt());
        self.cancel.cancel();
        for conn in self.pool.all() {
            crate::net::close(&conn.conn, Close::Shutdown, "the daemon shuts down");
        }
    }

    /// Has the endpoint bound anew, since nobody is heard with it.
    pub(crate) fn rebuild(&self) {
        self.deaf.store(true, Ordering::Relaxed);
        self.shared.reload(&self.alias);
    }

    /// Ends all tasks. The endpoint is still there: [`Membership::release`] closes it.
    pub(crate) async fn shutdown(&self) {
        self.close_connections();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Closes the endpoint, after the end of all tasks. One with which nobody is heard waits for nobody: its port is
    /// needed at once.
    pub(crate) async fn release(mut self: Arc<Self>) {
        if self.deaf.load(Ordering::Relaxed) {
            let deadline = Instant::now() + HELD;
            while Instant::now() < deadline {
                tokio::time::sleep(LAST_WORDS).await;
                match Arc::try_unwrap(self) {
                    Ok(last) => return endpoint::abandon(last.endpoint),
                    Err(held) => self = held,
                }
            }
            tracing::info!(cluster = %self.alias, "somebody still holds the endpoint that is rebuilt");
        }
        endpoint::close(&self.endpoint, self.longest_rtt.get().copied().unwrap_or_default()).await;
    }
}

/// Stores what is held, for as long as the cluster is served.
async fn store_held(membership: Arc<Membership>) {
    let home = Some(membership.shared.home.clone());
    let keeper = Keeper::new(clusters::place(&membership.dir), home, membership.filed);
    let (changes, newest) = (membership.watch(), || Some(membership.held()));
    keeper.run(changes, newest, &membership.alarms, membership.cancel.clone()).await;
}
