//! Machines on the same network, by mDNS. While nothing is looked for, hardly a packet is sent: an idle daemon wakes no
//! other, nor itself. A lookup asks at once, a few times, and everybody hears the answers.

use std::time::Duration;

use futures_util::stream::BoxStream;
use iroh::address_lookup::{AddressLookup, AddressLookupBuilder, AddressLookupBuilderError, EndpointData, Error, Item};
use iroh::{Endpoint, EndpointId};
use iroh_mdns_address_lookup::{MdnsAddressLookup, MdnsAddressLookupBuilder};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::runtime::backoff::{Backoff, Said, jittered};

/// Names the service under which malai's machines announce themselves.
const SERVICE: &str = "malai";
/// Sets the time between two questions on the network while no machine is looked for.
const MDNS_IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// Sets that time during a search.
const MDNS_SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// Sets how long a search asks. A machine that is there answers at once; one that comes later tells by a search of its
/// own.
const MDNS_SEARCH_TIME: Duration = Duration::from_secs(1);
/// Sets the time from one search to the next: answers reach every machine, so that the last ones are still good.
const MDNS_RESTART_INTERVAL: Duration = Duration::from_secs(10);
/// Bounds the pause after a search that could not begin.
const FAILED_SEARCH_MAX_INTERVAL: Duration = Duration::from_secs(300);

/// Adds mDNS to an endpoint.
#[derive(Debug)]
pub(crate) struct Mdns {
    /// Whether the endpoint answers others.
    pub(crate) advertise: bool,
}

impl AddressLookupBuilder for Mdns {
    fn into_address_lookup(self, endpoint: &Endpoint) -> Result<impl AddressLookup, AddressLookupBuilderError> {
        let listening = service(self.advertise, MDNS_IDLE_INTERVAL).build(endpoint.id())?;
        let lookup = Lookup { id: endpoint.id(), listening, search: Mutex::new(Search::default()) };
        // The question is also for the endpoint itself: its answer tells the others that it is there.
        lookup.search();
        Ok(lookup)
    }
}

fn service(advertise: bool, cadence: Duration) -> MdnsAddressLookupBuilder {
    MdnsAddressLookup::builder().service_name(SERVICE).advertise(advertise).discovery_cadence(cadence)
}

/// mDNS of one endpoint.
#[derive(Debug)]
struct Lookup {
    id: EndpointId,
    /// Answers, and hears what others answer.
    listening: MdnsAddressLookup,
    search: Mutex<Search>,
}

/// Holds the latest search.
#[derive(Debug)]
struct Search {
    /// Ends it when it is dropped.
    _running: Option<AbortOnDropHandle<()>>,
    /// Is when another one may begin; absent = now.
    next_at: Option<Instant>,
    backoff: Backoff,
    /// Whether the last one could begin, as the log has it.
    said: Said<bool>,
}

impl Default for Search {
    fn default() -> Self {
        let backoff = Backoff::new(MDNS_RESTART_INTERVAL, FAILED_SEARCH_MAX_INTERVAL);
        Self { _running: None, next_at: None, backoff, said: Said::default() }
    }
}

impl Lookup {
    /// Asks the network, unless that was done a moment ago.
    fn search(&self) {
        let mut latest = self.search.lock();
        let now = Instant::now();
        if latest.next_at.is_some_and(|at| now < at) {
            return;
        }
        match service(false, MDNS_SEARCH_INTERVAL).build(self.id) {
            Ok(asking) => {
                let search = tokio::spawn(async move {
                    tokio::time::sleep(MDNS_SEARCH_TIME).await;
                    drop(asking);
                });
                latest._running = Some(AbortOnDropHandle::new(search));
                latest.next_at = Some(now + jittered(MDNS_RESTART_INTERVAL));
                latest.backoff.reset();
                latest.said.is_news(true);
            }
            Err(error) => {
                latest.next_at = Some(now + latest.backoff.pause());
                if latest.said.is_news(false) {
                    tracing::warn!("cannot search by mDNS: {error}");
                }
            }
        }
    }
}

impl AddressLookup for Lookup {
    fn publish(&self, data: &EndpointData) {
        self.listening.publish(data);
    }

    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, Error>>> {
        self.search();
        self.listening.resolve(id)
    }
}
