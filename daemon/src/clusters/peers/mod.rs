//! Connections to the other machines of a cluster: how they are found, made, kept alive and made again, and what is greeted
//! and announced over them.

pub(crate) mod accept;
pub(crate) mod dial;
pub(crate) mod directory;
pub(crate) mod greet;
pub(crate) mod known;
pub(crate) mod link;
pub(crate) mod pulse;
pub(crate) mod recover;
pub(crate) mod removed;
pub(crate) mod serve;
pub(crate) mod twins;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::Endpoint;
use iroh::endpoint::RelayStatus;
use iroh::{TransportAddr, Watcher};
use malai_protocol::config::Network;
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Close, MAX_ADDRESSES};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::net::endpoint::{self, Bound, Finding, own_addresses};
use crate::net::finding::hearsay::Hearsay;
use crate::net::limits::tally::Tally;
use crate::net::pool::Pool;
use crate::net::relays::Relays;
use crate::runtime::backoff::Said;
use directory::DirectoryLimits;

/// Holds the connections of one endpoint to the other machines of a cluster. The endpoint and its sockets live as long as
/// this: another endpoint means another membership.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Is the endpoint of the machine key.
    pub(crate) endpoint: Endpoint,
    /// Holds the relays of the endpoint.
    pub(crate) relays: Relays,
    /// Holds how the endpoint finds machines.
    pub(crate) finding: Finding,
    /// Bounds what members may ask of the directory.
    pub(crate) directory: DirectoryLimits,
    /// Holds the connections, and what is known of each machine.
    pub(crate) pool: Pool,
    /// Counts connections that were refused, by their keys.
    pub(crate) refused: Tally<MachineId>,
    nudges: Notify,
    /// Whether last known addresses could be stored, as the log has it.
    addresses_said: Mutex<Said<bool>>,
    /// Whether the endpoint hears no peer: then none would confirm its last frames.
    is_cut_off: AtomicBool,
    /// Is the longest round trip to a machine that was connected when the connections were closed.
    longest_rtt: OnceLock<Duration>,
}

impl Peers {
    /// Takes an endpoint without connections.
    pub(crate) fn new(bound: Bound, finding: Finding, pool: Pool) -> Self {
        Self {
            endpoint: bound.endpoint,
            relays: bound.relays,
            finding,
            directory: DirectoryLimits::default(),
            pool,
            refused: Tally::default(),
            nudges: Notify::new(),
            addresses_said: Mutex::default(),
            is_cut_off: AtomicBool::new(false),
            longest_rtt: OnceLock::new(),
        }
    }

    /// Returns where this machine can be reached, relays too.
    pub(crate) fn addresses(&self) -> Vec<String> {
        own_addresses(&self.endpoint, MAX_ADDRESSES)
    }

    /// Returns this machine's own addresses as its network shows them now.
    pub(crate) fn own_addresses(&self) -> BTreeSet<SocketAddr> {
        self.endpoint.addr().ip_addrs().copied().collect()
    }

    /// Returns whether there is a link to a home relay.
    pub(crate) fn is_relay_up(&self) -> bool {
        self.endpoint.home_relay_status().get().iter().any(RelayStatus::is_connected)
    }

    /// Returns what an address is compared with that another machine told.
    pub(crate) fn hearsay(&self, network: &Network) -> Hearsay {
        Hearsay { relays: endpoint::relays(network), bound: self.endpoint.bound_sockets(), own: self.own_addresses() }
    }

    /// Returns the last known addresses of a machine that may be contacted.
    pub(crate) fn last_known(&self, network: &Network, id: MachineId) -> Vec<TransportAddr> {
        let (mut addresses, is_recalled) = self.pool.addresses(id);
        let hearsay = self.hearsay(network);
        // Those that the machine itself told over a connection were compared with that connection.
        addresses.retain(|addr| hearsay.admits(addr, |_| !is_recalled));
        addresses
    }

    /// Notes that a user runs something in this cluster: a manager that refused this machine is asked soon.
    pub(crate) fn nudge(&self) {
        self.nudges.notify_waiters();
    }

    /// Returns at the next nudge.
    pub(crate) async fn nudged(&self) {
        self.nudges.notified().await;
    }

    /// Closes every connection, so that attachments are lost at once.
    pub(crate) fn close_connections(&self) {
        self.longest_rtt.get_or_init(|| self.pool.longest_rtt());
        for conn in self.pool.all() {
            crate::net::close(&conn.conn, Close::Shutdown, "the daemon shuts down");
        }
    }

    /// Notes that no peer is heard with this endpoint, so that its end waits for no peer.
    pub(crate) fn set_cut_off(&self) {
        self.is_cut_off.store(true, Ordering::Relaxed);
    }

    /// Returns whether no peer is heard with this endpoint.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Relaxed)
    }

    /// Closes the endpoint in good order.
    pub(crate) async fn close(&self) {
        endpoint::close(&self.endpoint, self.longest_rtt.get().copied().unwrap_or_default()).await;
    }
}
