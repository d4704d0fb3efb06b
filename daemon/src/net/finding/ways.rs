//! From where the addresses of a machine are known: what tells which way a connection was found.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use iroh::address_lookup::{AddressLookup, AddressLookupBuilder, AddressLookupBuilderError, EndpointData, Error, Item};
use iroh::{Endpoint, EndpointId, TransportAddr};
use malai_protocol::session::Reached;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::net::pool::PeerConn;

/// Names what told an address, for people.
pub(crate) type Way = Arc<str>;

/// Names an address from the config.
pub(crate) const FIXED: &str = "fixed address";
/// Names an address from the cache, or from an earlier connection.
pub(crate) const LAST_KNOWN: &str = "last known address";
/// Names a relay from the config: the machine is at one of the cluster's relays.
pub(crate) const RELAY: &str = "relay of the config";

/// Bounds the addresses remembered of one machine: as many as all ways together tell at once, and some of before.
const MAX_NOTED_ADDRESSES: usize = 64;
/// Bounds the machines remembered: more than are dialled at a time.
const MAX_NOTED_MACHINES: usize = 4096;
/// Sets for how long the way that first told an address counts as the one that told it: until the dialling that it was
/// told for is over.
const FIRST_WORD_TIME: Duration = Duration::from_secs(10);
/// Bounds one search by one way. iroh asks no way again while a search by any of them goes on.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets for how long a way that failed is named, and an address that was told in vain.
const FAILURE_SHOWN_TIME: Duration = Duration::from_secs(5 * 60);

/// Remembers which way told which addresses of one endpoint's peers.
#[derive(Debug)]
pub(crate) struct Ways {
    named: Mutex<HashMap<EndpointId, Vec<Named>>>,
    failed: Mutex<BTreeMap<Way, (Instant, String)>>,
    learnt: watch::Sender<u64>,
}

/// Is an address, and what told it.
#[derive(Debug, Clone)]
struct Named {
    addr: TransportAddr,
    way: Way,
    at: Instant,
}

impl Default for Ways {
    fn default() -> Self {
        Self { named: Mutex::default(), failed: Mutex::default(), learnt: watch::Sender::new(0) }
    }
}

impl Ways {
    fn lock(&self) -> MutexGuard<'_, HashMap<EndpointId, Vec<Named>>> {
        self.named.lock()
    }

    /// Notes that these addresses are dialled because this machine has them, even where others tell them too.
    pub(crate) fn tried(&self, id: EndpointId, addrs: &[TransportAddr], way: &str) {
        self.note(id, addrs, &Way::from(way), true);
    }

    /// A way told these addresses.
    pub(crate) fn told<'a>(&self, id: EndpointId, addrs: impl IntoIterator<Item = &'a TransportAddr>, way: &Way) {
        if self.note(id, addrs, way, false) {
            self.learnt.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Wakes whenever an address was told that was not known.
    pub(crate) fn learnt(&self) -> watch::Receiver<u64> {
        self.learnt.subscribe()
    }

    /// Returns true when one of them is new.
    fn note<'a>(
        &self,
        id: EndpointId,
        addrs: impl IntoIterator<Item = &'a TransportAddr>,
        way: &Way,
        first: bool,
    ) -> bool {
        let (mut all, now, mut is_new) = (self.lock(), Instant::now(), false);
        if all.len() >= MAX_NOTED_MACHINES && !all.contains_key(&id) {
            all.clear();
        }
        let named = all.entry(id).or_default();
        for addr in addrs.into_iter().take(MAX_NOTED_ADDRESSES) {
            match named.iter_mut().find(|known| is_same(&known.addr, addr)) {
                Some(known) if first || now.duration_since(known.at) >= FIRST_WORD_TIME => {
                    (known.way, known.at) = (Arc::clone(way), now);
                }
                Some(_) => {}
                None => {
                    is_new = true;
                    named.push(Named { addr: addr.clone(), way: Arc::clone(way), at: now });
                }
            }
        }
        let excess = named.len().saturating_sub(MAX_NOTED_ADDRESSES);
        named.sort_by_key(|known| known.at);
        named.drain(..excess);
        is_new
    }

    fn of(&self, id: EndpointId) -> Vec<Named> {
        self.lock().get(&id).cloned().unwrap_or_default()
    }

    /// Returns how many addresses of this machine are known.
    pub(crate) fn count(&self, id: EndpointId) -> usize {
        self.lock().get(&id).map_or(0, Vec::len)
    }

    /// Returns the addresses of this machine that were told lately, each with what told it.
    pub(crate) fn told_lately(&self, id: EndpointId) -> Vec<(TransportAddr, Way)> {
        let own = [FIXED, LAST_KNOWN, RELAY];
        let told = self
            .of(id)
            .into_iter()
            .filter(|named| named.at.elapsed() < FAILURE_SHOWN_TIME && !own.contains(&&*named.way));
        told.map(|named| (named.addr, named.way)).collect()
    }

    /// Returns how a connection that is there now was found, whatever is told later.
    pub(crate) fn trail(self: &Arc<Self>, id: EndpointId) -> Trail {
        Trail { id, at_first: self.of(id), ways: Arc::clone(self) }
    }

    /// A way could not be asked, or was not understood.
    fn fails(&self, way: &Way, why: String) {
        let mut failed = self.failed.lock();
        failed.insert(Arc::clone(way), (Instant::now(), why));
    }

    fn works(&self, way: &Way) {
        self.failed.lock().remove(way);
    }

    /// Returns the ways that failed lately, and why.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failed = self.failed.lock();
        let lately = failed.iter().filter(|(_, (at, _))| at.elapsed() < FAILURE_SHOWN_TIME);
        lately.map(|(way, (_, why))| format!("{way}: {why}")).collect()
    }
}

/// Whether both are one address, however IPv4 is written.
pub(crate) fn is_same(a: &TransportAddr, b: &TransportAddr) -> bool {
    match (a, b) {
        (TransportAddr::Ip(a), TransportAddr::Ip(b)) => {
            (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
        }
        (a, b) => a == b,
    }
}

/// Says what was told of a machine when the connection to it was made, and since.
#[derive(Debug)]
pub(crate) struct Trail {
    id: EndpointId,
    at_first: Vec<Named>,
    ways: Arc<Ways>,
}

impl Trail {
    /// Returns what told this address.
    fn way(&self, addr: &TransportAddr) -> Option<Way> {
        let find =
            |all: &[Named]| all.iter().find(|known| is_same(&known.addr, addr)).map(|found| Arc::clone(&found.way));
        find(&self.at_first).or_else(|| find(&self.ways.of(self.id)))
    }
}

impl PeerConn {
    /// Returns the path in use, and what told of it.
    pub(crate) fn reached(&self) -> Reached {
        let (path, rtt_us) = self.path();
        let paths = self.conn.paths();
        let found_by = match paths.iter().find(|path| path.is_selected()) {
            None => None,
            Some(_) if !self.dialed => Some(Reached::BY_THE_PEER.to_owned()),
            Some(used) => {
                let way = self.trail().and_then(|trail| trail.way(used.remote_addr()));
                Some(way.map_or_else(|| Reached::TOLD.to_owned(), |way| way.to_string()))
            }
        };
        Reached { path, rtt_us, found_by }
    }
}

/// Is a way to look for addresses, whose answers are noted as they come.
#[derive(Debug)]
pub(crate) struct Noting<B> {
    /// Is the way itself.
    pub(crate) lookup: B,
    /// Is its name.
    pub(crate) way: Way,
    /// Is where they are noted.
    pub(crate) ways: Arc<Ways>,
}

impl<B: AddressLookupBuilder> AddressLookupBuilder for Noting<B> {
    fn into_address_lookup(self, endpoint: &Endpoint) -> Result<impl AddressLookup, AddressLookupBuilderError> {
        let lookup = self.lookup.into_address_lookup(endpoint)?;
        Ok(Noted { lookup, way: self.way, ways: self.ways })
    }
}

#[derive(Debug)]
struct Noted<L> {
    lookup: L,
    way: Way,
    ways: Arc<Ways>,
}

impl<L: AddressLookup> AddressLookup for Noted<L> {
    fn publish(&self, data: &EndpointData) {
        self.lookup.publish(data);
    }

    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, Error>>> {
        let (way, ways) = (Arc::clone(&self.way), Arc::clone(&self.ways));
        let found = self.lookup.resolve(id)?.inspect(move |item| match item {
            Ok(item) if item.endpoint_id() == id => {
                ways.works(&way);
                ways.told(id, item.addrs(), &way);
            }
            Ok(_) => {}
            Err(error) => ways.fails(&way, format!("{error:#}")),
        });
        Some(found.take_until(tokio::time::sleep(LOOKUP_TIMEOUT)).boxed())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn id() -> EndpointId {
        iroh::SecretKey::from_bytes(&[1; 32]).public()
    }

    fn ip(port: u16) -> TransportAddr {
        TransportAddr::Ip((Ipv4Addr::new(192, 0, 2, 7), port).into())
    }

    fn way(ways: &Arc<Ways>, addr: &TransportAddr) -> Option<String> {
        ways.trail(id()).way(addr).map(|way| way.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_told_an_address_first_told_it_until_it_is_looked_for_again() {
        let ways = Arc::new(Ways::default());
        ways.told(id(), &[ip(1)], &"mdns".into());
        ways.told(id(), &[ip(1), ip(2)], &"dns".into());
        assert_eq!((way(&ways, &ip(1)), way(&ways, &ip(2))), (Some("mdns".into()), Some("dns".into())));
        tokio::time::advance(FIRST_WORD_TIME).await;
        ways.told(id(), &[ip(1)], &"dns".into());
        assert_eq!(way(&ways, &ip(1)), Some("dns".into()));
        // What this machine has itself was tried before anybody was asked.
        ways.tried(id(), &[ip(1)], LAST_KNOWN);
        assert_eq!(way(&ways, &ip(1)), Some(LAST_KNOWN.into()));
        assert_eq!(way(&ways, &ip(3)), None);
    }

    #[tokio::test]
    async fn a_connection_keeps_what_it_was_found_by() {
        let ways = Arc::new(Ways::default());
        ways.told(id(), &[ip(1)], &"mdns".into());
        let trail = ways.trail(id());
        ways.tried(id(), &[ip(1)], LAST_KNOWN);
        ways.told(id(), &[ip(2)], &"dns".into());
        assert_eq!((trail.way(&ip(1)).as_deref(), trail.way(&ip(2)).as_deref()), (Some("mdns"), Some("dns")));
    }

    #[tokio::test]
    async fn an_address_is_the_same_in_both_ways_to_write_it() {
        let ways = Arc::new(Ways::default());
        ways.told(id(), &[ip(1)], &"mdns".into());
        let mapped = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().into(), 1);
        assert_eq!(way(&ways, &TransportAddr::Ip(mapped)), Some("mdns".into()));
    }

    #[tokio::test]
    async fn what_is_remembered_of_a_machine_is_bounded() {
        let ways = Arc::new(Ways::default());
        for port in 1..1000 {
            ways.told(id(), &[ip(port)], &"mdns".into());
        }
        assert_eq!(ways.of(id()).len(), MAX_NOTED_ADDRESSES);
        assert_eq!(way(&ways, &ip(999)), Some("mdns".into()), "the latest");
    }

    #[tokio::test]
    async fn only_an_address_that_is_new_wakes_who_dials() {
        let ways = Arc::new(Ways::default());
        ways.tried(id(), &[ip(1)], LAST_KNOWN);
        let mut learnt = ways.learnt();
        ways.told(id(), &[ip(1)], &"mdns".into());
        assert!(!learnt.has_changed().unwrap());
        ways.told(id(), &[ip(2)], &"mdns".into());
        assert!(learnt.has_changed().unwrap());
        learnt.mark_unchanged();
    }
}
