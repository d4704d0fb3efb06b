//! Decides who may use the relay: machines of its clusters, cluster keys, and holders of a ticket. A client that loses that
//! right is disconnected.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iroh::EndpointId;
use iroh_relay::server::clients::Clients as Connections;
use iroh_relay::server::{Access, AccessControl, ClientRequest, ConnectionId};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::ticket::{Ticket, TicketError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clusters::Clusters;
use crate::net::machine_id;
use crate::runtime::clock::now_ms;

/// Bounds the connections of one key: one is usual, and a second one while the first is found to be dead.
const MAX_CONNECTIONS_PER_KEY: usize = 8;
/// Bounds the connections by ticket, of all holders: each is a newcomer that is about to become a machine.
const MAX_CONNECTIONS_BY_TICKET: usize = 1024;
/// Bounds the connections in all. Each takes a socket and some memory.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Sets the time between two looks for tickets that expired.
const LOOK: Duration = Duration::from_secs(1);
/// Sets how long a stranger waits for a snapshot that makes it a machine: it may have the news before the relay has.
const STRANGER_WAIT_TIME: Duration = Duration::from_millis(1500);
/// Bounds the strangers that wait. More are refused at once.
const MAX_WAITING_STRANGERS: usize = 64;
/// Sets the least time between two lines of the log about refusals. The others are counted.
const REFUSAL_LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Says why a client is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Its key is in none of the configs, and it has no ticket.
    Stranger,
    /// Its ticket is no ticket, or of another cluster, or forged.
    NoTicket,
    /// Its ticket's time is over.
    Expired,
    /// It was taken out of the config: its ticket does not bring it back.
    Removed,
    /// There are as many connections as there may be.
    TooMany,
}

impl Denied {
    /// Returns what the client hears.
    fn words(self) -> &'static str {
        match self {
            Self::Stranger => "not a machine of a cluster that this relay serves",
            Self::NoTicket => "not a machine of a cluster that this relay serves, and its ticket is not valid here",
            Self::Expired => "its ticket has expired: a new invite is needed",
            Self::Removed => "it was removed from its cluster",
            Self::TooMany => "too many connections",
        }
    }
}

/// Is a client that is connected.
#[derive(Debug)]
struct Client {
    key: EndpointId,
    id: MachineId,
    /// It came with a ticket, and is no machine yet.
    pass: Option<Pass>,
}

/// Holds what a valid ticket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pass {
    cluster: ClusterId,
    expires_ms: u64,
}

/// Knows who may use the relay, and who does.
#[derive(Debug)]
pub(crate) struct Gate {
    clusters: Arc<Clusters>,
    connected: Mutex<HashMap<ConnectionId, Client>>,
    refused: AtomicU64,
    let_go: AtomicU64,
    logged: Mutex<Option<Instant>>,
    waiting: Semaphore,
}

impl Gate {
    /// Makes a gate without clients.
    pub(crate) fn new(clusters: Arc<Clusters>) -> Arc<Self> {
        Arc::new(Self {
            clusters,
            connected: Mutex::default(),
            refused: AtomicU64::new(0),
            let_go: AtomicU64::new(0),
            logged: Mutex::default(),
            waiting: Semaphore::new(MAX_WAITING_STRANGERS),
        })
    }

    fn connected(&self) -> MutexGuard<'_, HashMap<ConnectionId, Client>> {
        self.connected.lock()
    }

    /// Returns how many connections there are, and how many of them by a ticket.
    pub(crate) fn count(&self) -> (usize, usize) {
        let connected = self.connected();
        (connected.len(), connected.values().filter(|client| client.pass.is_some()).count())
    }

    /// Returns how many were refused, and how many were disconnected because they lost the right to be here.
    pub(crate) fn turned_away(&self) -> (u64, u64) {
        (self.refused.load(Ordering::Relaxed), self.let_go.load(Ordering::Relaxed))
    }

    /// Reads a ticket, when it is one of a cluster of this relay.
    fn pass(&self, token: &str, now_ms: u64) -> Result<Pass, Denied> {
        let ticket = Ticket::from_text(token).map_err(|_| Denied::NoTicket)?;
        let cluster = self.clusters.get(ticket.cluster()).ok_or(Denied::NoTicket)?;
        match ticket.verify(&cluster.id, now_ms) {
            Ok(()) => Ok(Pass { cluster: cluster.id, expires_ms: ticket.expires_ms() }),
            Err(TicketError::Expired) => Err(Denied::Expired),
            Err(_) => Err(Denied::NoTicket),
        }
    }

    /// Returns by what this key may be here: by itself, or by this pass.
    fn permit(&self, id: &MachineId, pass: Option<Pass>, now_ms: u64) -> Result<Option<Pass>, Denied> {
        if self.clusters.has(id) {
            return Ok(None);
        }
        let pass = pass.ok_or(Denied::Stranger)?;
        if self.clusters.get(&pass.cluster).is_none_or(|cluster| cluster.removed(id)) {
            return Err(Denied::Removed);
        }
        if now_ms >= pass.expires_ms { Err(Denied::Expired) } else { Ok(Some(pass)) }
    }

    /// Decides about a connection that begins, and notes it when it is admitted.
    fn admit(&self, id: ConnectionId, key: EndpointId, token: Option<&str>, now_ms: u64) -> Result<(), Denied> {
        let machine = machine_id(&key).ok_or(Denied::Stranger)?;
        let pass = token.map(|token| self.pass(token, now_ms)).transpose();
        // A machine may still carry the ticket of its invite, whatever became of that.
        let pass = if self.clusters.has(&machine) { None } else { self.permit(&machine, pass?, now_ms)? };
        let mut connected = self.connected();
        let of_key = connected.values().filter(|client| client.key == key).count();
        let by_ticket = connected.values().filter(|client| client.pass.is_some()).count();
        if connected.len() >= MAX_CONNECTIONS
            || of_key >= MAX_CONNECTIONS_PER_KEY
            || (pass.is_some() && by_ticket >= MAX_CONNECTIONS_BY_TICKET)
        {
            return Err(Denied::TooMany);
        }
        connected.insert(id, Client { key, id: machine, pass });
        Ok(())
    }

    /// Returns the same, for a stranger once more when a snapshot comes soon.
    async fn admit_soon(&self, id: ConnectionId, key: EndpointId, token: Option<&str>) -> Result<(), Denied> {
        let mut changes = self.clusters.watch();
        let first = self.admit(id, key, token, now_ms());
        let Err(Denied::Stranger) = first else { return first };
        let Ok(_place) = self.waiting.try_acquire() else { return first };
        match tokio::time::timeout(STRANGER_WAIT_TIME, changes.changed()).await {
            Ok(Ok(())) => self.admit(id, key, token, now_ms()),
            _ => first,
        }
    }

    /// Disconnects everybody who may not be here any more. One who is about to be connected is not found by the server
    /// yet: the next look finds it.
    fn review(&self, connections: &Connections, now_ms: u64) {
        let gone: Vec<(ConnectionId, EndpointId)> = self
            .connected()
            .iter_mut()
            .filter_map(|(id, client)| match self.permit(&client.id, client.pass, now_ms) {
                Ok(pass) => {
                    // A client that became a machine needs its ticket no more; and when it is removed, it goes at once.
                    client.pass = pass;
                    None
                }
                Err(_) => Some((*id, client.key)),
            })
            .collect();
        for (id, key) in gone {
            if connections.disconnect(key, Some(id)) {
                self.let_go.fetch_add(1, Ordering::Relaxed);
                tracing::info!(peer = %key.fmt_short(), "disconnected: it may not use this relay any more");
            }
        }
    }

    /// Reviews whenever a snapshot came, and again and again for tickets that expire.
    pub(crate) async fn watch(self: Arc<Self>, connections: Connections, cancel: CancellationToken) {
        let mut changes = self.clusters.watch();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                _ = looks.tick() => {}
            }
            self.review(&connections, now_ms());
        }
    }

    fn log_refusal(&self, key: EndpointId, why: Denied) {
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock();
        let now = Instant::now();
        if logged.is_none_or(|at| now.duration_since(at) >= REFUSAL_LINE_INTERVAL) {
            *logged = Some(now);
            tracing::info!(peer = %key.fmt_short(), refused = before + 1, "refused: {}", why.words());
        }
    }
}

impl AccessControl for Gate {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        let (id, key) = (request.connection_id(), request.endpoint_id());
        match self.admit_soon(id, key, request.auth_token().as_deref()).await {
            Ok(()) => Access::Allow,
            Err(why) => {
                self.log_refusal(key, why);
                Access::Deny { reason: Some(format!("malai relay: {}", why.words())) }
            }
        }
    }

    fn on_disconnect(&self, _endpoint_id: EndpointId, connection_id: ConnectionId) {
        self.connected().remove(&connection_id);
    }
}
