//! The cache of last known addresses: where the machines were at their last word.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::home::ClusterDir;

use crate::clusters::membership::Membership;
use crate::net::endpoint;
use crate::net::pool::Pool;
use crate::store;

/// Sets how long after addresses were learnt they are stored.
const LEARNT_ADDRESSES_DELAY: Duration = Duration::from_secs(1);

/// Reads the cache of last known addresses.
pub(crate) fn recall(pool: &Pool, dir: &ClusterDir) {
    for (id, peer) in store::peers::load(&dir.peers()) {
        let addresses = peer.addresses.iter().filter_map(|text| endpoint::parse_address(text)).collect();
        pool.remember(id, (peer.seen_ms > 0).then_some(peer.seen_ms), addresses);
    }
}

/// Stores addresses soon after they were learnt: a daemon that is killed leaves them to the next one.
pub(crate) async fn keep(membership: Arc<Membership>) {
    loop {
        tokio::select! {
            () = membership.cancel.cancelled() => return,
            () = membership.peers.pool.learnt() => {}
        }
        tokio::select! {
            () = membership.cancel.cancelled() => return,
            // Many greetings and announcements come at once.
            () = tokio::time::sleep(LEARNT_ADDRESSES_DELAY) => {}
        }
        remember(&membership);
    }
}

/// Writes the cache of last known addresses, and logs the first of several failures in a row.
pub(crate) fn remember(membership: &Membership) {
    let kept = write_addresses(membership);
    let is_news = membership.peers.addresses_said.lock().is_news(kept.is_ok());
    if let Err(failure) = kept
        && is_news
    {
        tracing::warn!(cluster = %membership.alias, "cannot store the last known addresses: {failure}");
    }
}

/// Writes the addresses of machines that are in the config.
fn write_addresses(membership: &Membership) -> Result<(), Failure> {
    let known = membership.peers.pool.known().into_iter().filter(|(id, ..)| membership.is_member(id));
    let peers = known
        .map(|(id, seen, addresses)| {
            let addresses = addresses.iter().filter_map(endpoint::address_text).collect();
            (id, store::peers::Peer { addresses, seen_ms: seen.unwrap_or(0) })
        })
        .collect();
    store::peers::save(&membership.dir.peers(), &peers)
}
