//! The cluster's own directory, as a way for an endpoint to look for addresses: other members are asked.

use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use iroh::address_lookup::{AddressLookup, EndpointData, EndpointInfo, Error, Item};
use iroh::{EndpointId, TransportAddr};

/// Looks for a machine, and yields addresses as they are told.
pub(crate) type Search = Box<dyn Fn(EndpointId) -> BoxStream<'static, Vec<TransportAddr>> + Send + Sync>;

/// Holds the directory of one endpoint, which is bound before there is anybody to ask.
#[derive(Clone, Default)]
pub(crate) struct Directory {
    search: Arc<OnceLock<Search>>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("is_open", &self.search.get().is_some()).finish()
    }
}

impl Directory {
    /// From here on it is searched in this way.
    pub(crate) fn open(&self, search: Search) {
        self.search.get_or_init(|| search);
    }
}

impl AddressLookup for Directory {
    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, Error>>> {
        let found = self.search.get()?(id);
        let item = move |addrs: Vec<TransportAddr>| {
            Ok(Item::new(EndpointInfo::from_parts(id, EndpointData::from_iter(addrs)), "directory", None))
        };
        Some(found.map(item).boxed())
    }
}
