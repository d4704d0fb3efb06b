//! One joined cluster on this machine: its identity, the config that it holds, its peers, its tasks.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::check_account;
use malai_protocol::failure::Failure;
use malai_protocol::home::ClusterDir;
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::peer::VERSION;
use malai_protocol::snapshot::Header;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clusters::config::ConfigState;
use crate::clusters::host::Host;
use crate::clusters::peers::{Peers, twins};
use crate::net::counters::Counters;
use crate::net::endpoint::{self, Bound, Finding};
use crate::net::pool::Pool;
use crate::net::proxy;
use crate::runtime::alarms::{AlarmCause, Alarms};
use crate::runtime::clock::now_ms;
use crate::runtime::duty;
use crate::store::held::Held;
use crate::target::live::LiveTable;
use crate::target::refusals::Refusals;

/// Sets how long the last frames may take to leave this machine.
const LAST_FRAMES_TIME: Duration = Duration::from_millis(20);
/// Bounds how long an endpoint that is abandoned waits for what still uses it.
const ENDPOINT_RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Is one cluster that this machine is a member of and holds a snapshot of.
#[derive(Debug)]
pub(crate) struct Membership {
    /// Is the name of the cluster on this machine.
    pub(crate) alias: String,
    /// Is the directory of its files.
    pub(crate) dir: ClusterDir,
    /// Is the key of the cluster.
    pub(crate) cluster: ClusterId,
    /// Is this machine's key.
    pub(crate) me: MachineId,
    /// This machine holds the cluster key.
    pub(crate) is_manager: bool,
    /// Holds the config that is in force.
    pub(crate) config: ConfigState,
    /// Holds the connections to the other machines.
    pub(crate) peers: Peers,
    /// Holds what is counted.
    pub(crate) counters: Arc<Counters>,
    /// Holds the sessions of this cluster on this machine.
    pub(crate) live: Arc<LiveTable>,
    /// Counts what was refused lately.
    pub(crate) refusals: Refusals,
    /// Holds what all clusters of the daemon share.
    pub(crate) host: Arc<Host>,
    /// Runs what ends with the membership.
    pub(crate) tasks: TaskTracker,
    /// Ends those tasks.
    pub(crate) cancel: CancellationToken,
    /// Ends with the membership, as a receiver notices. The last field: the endpoint is dropped before.
    released: watch::Sender<()>,
}

/// Says what a membership is made of.
#[derive(Debug)]
pub(crate) struct MembershipParts {
    /// Is the name of the cluster on this machine.
    pub(crate) alias: String,
    /// Is the directory of its files.
    pub(crate) dir: ClusterDir,
    /// Is this machine's key.
    pub(crate) me: MachineId,
    /// This machine holds the cluster key.
    pub(crate) is_manager: bool,
    /// Is the endpoint of the machine key, and its relays.
    pub(crate) bound: Bound,
    /// Says how that finds the other machines.
    pub(crate) finding: Finding,
    /// Is the newest snapshot that is known.
    pub(crate) held: Arc<Held>,
    /// Is the header of what is in its own file.
    pub(crate) filed: Option<Header>,
    /// Is what the manager's files say of a snapshot made elsewhere.
    pub(crate) foreign: Option<String>,
}

impl Membership {
    /// Makes a membership whose tasks do not run yet.
    pub(crate) fn new(parts: MembershipParts, host: Arc<Host>) -> Arc<Self> {
        let cluster = parts.held.snapshot.header().cluster;
        let counters = host.metrics.of(cluster);
        let live = host.sessions.tables().of(cluster);
        live.open();
        let alarms = Alarms::new(parts.alias.clone());
        if let Some(text) = parts.foreign {
            alarms.raise(AlarmCause::Foreign, text);
        }
        let pool = Pool::new(parts.me, Arc::clone(&counters));
        Arc::new(Self {
            alias: parts.alias,
            dir: parts.dir,
            cluster,
            me: parts.me,
            is_manager: parts.is_manager,
            config: ConfigState::new(parts.held, parts.filed, alarms),
            peers: Peers::new(parts.bound, parts.finding, pool),
            counters,
            live,
            refusals: Refusals::default(),
            host,
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            released: watch::Sender::new(()),
        })
    }

    /// Returns the snapshot that is held now.
    pub(crate) fn held(&self) -> Arc<Held> {
        self.config.held()
    }

    /// Returns what wakes whenever another snapshot is held.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Held>> {
        self.config.watch()
    }

    /// Returns whether this is the key of a machine in the config.
    pub(crate) fn is_member(&self, id: &MachineId) -> bool {
        self.config.is_member(id)
    }

    /// Checks whether commands can run here at all as the config says, under this daemon's account.
    ///
    /// # Errors
    /// The refusal that each of them gets.
    pub(crate) fn check_account(&self) -> Result<(), Failure> {
        check_account(&self.held().config, &self.host.me(&self.me))
    }

    /// Returns the name of this machine in the config, if it is still in it.
    pub(crate) fn my_name(&self) -> Option<String> {
        self.config.name_of(&self.me)
    }

    /// Returns the key of the cluster manager, unless that is this machine.
    pub(crate) fn manager_id(&self) -> Option<MachineId> {
        self.config.manager().filter(|id| *id != self.me)
    }

    /// Returns this machine's greeting.
    pub(crate) fn hello(&self) -> malai_protocol::peer::Hello {
        malai_protocol::peer::Hello {
            version: VERSION,
            needs: Vec::new(),
            header: Some(self.held().snapshot.signed_header().clone()),
            addresses: if self.host.agent { Vec::new() } else { self.peers.addresses() },
            caller_only: self.host.agent,
            boot: Some(self.host.boot),
            executor: self.host.executor.incarnation(),
            malai: crate::VERSION.to_owned(),
            clock_ms: Some(now_ms()),
            enforced: None,
            epoch: None,
        }
    }

    /// Returns everything that an administrator must look at.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let alarms = self.alarms_and_mends().into_iter().map(|(text, _)| text);
        alarms.chain(self.ungranted()).chain(proxy::problem()).collect()
    }

    /// Returns whether the cluster manager says that this machine is not in the config any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.config.alarms.has(AlarmCause::Removed)
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
        let raised = self.config.alarms.by_cause().into_iter();
        let raised = raised.map(|(cause, text)| (text, cause.mend(&self.alias, self.dir.root())));
        raised.chain(twins::alarms(self)).chain(self.unheeded().map(|text| (text, rescan))).collect()
    }

    /// Returns what this version leaves out of the config that is held.
    fn unheeded(&self) -> Option<String> {
        let held = self.held();
        let why = held.config.unheeded()?;
        Some(format!("{why}: install a newer malai on this machine, or take that out of cluster.toml"))
    }

    /// Raises an alarm, and logs it when its text is new.
    pub(crate) fn raise(&self, cause: AlarmCause, text: String) {
        self.config.alarms.raise(cause, text);
    }

    /// Clears the alarm of this cause.
    pub(crate) fn clear(&self, cause: AlarmCause) {
        self.config.alarms.clear(cause);
    }

    /// Raises this alarm, or clears it where there is no text.
    pub(crate) fn set_alarm(&self, cause: AlarmCause, text: Option<String>) {
        self.config.alarms.set(cause, text);
    }

    /// Runs this for as long as the cluster is served.
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
        self.cancel.cancel();
        self.peers.close_connections();
    }

    /// Has the endpoint bound again, since no peer is heard with it.
    pub(crate) fn rebuild(&self) {
        self.peers.set_cut_off();
        self.host.reload(&self.alias);
    }

    /// Ends all tasks. The endpoint is still there: [`Membership::release`] closes it.
    pub(crate) async fn shutdown(&self) {
        self.close_connections();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Closes the endpoint, after the end of all tasks. One that hears no peer waits for no peer: its port is needed at
    /// once.
    pub(crate) async fn release(self: Arc<Self>) {
        if !self.peers.is_cut_off() {
            return self.peers.close().await;
        }
        let (endpoint, mut released, alias) =
            (self.peers.endpoint.clone(), self.released.subscribe(), self.alias.clone());
        tokio::time::sleep(LAST_FRAMES_TIME).await;
        drop(self);
        if tokio::time::timeout(ENDPOINT_RELEASE_TIMEOUT, released.changed()).await.is_ok() {
            return endpoint::abandon(endpoint);
        }
        tracing::info!(cluster = %alias, "the endpoint that is rebuilt is still in use");
        endpoint::close(&endpoint, Duration::ZERO).await;
    }
}
