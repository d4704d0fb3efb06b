//! Follows `[network]` of the snapshot that is held.
//!
//! Relays and their pins are exchanged at the endpoints that there are (docs/decisions/0013). For anything else the cluster
//! is loaded again, with new endpoints (docs/decisions/0007).

use std::sync::Arc;
use std::time::Duration;

use iroh::Endpoint;
use malai_protocol::config::Network;
use tokio_util::sync::CancellationToken;

use crate::clusters::membership::Membership;
use crate::net::proxy;
use crate::net::relays::Relays;
use crate::runtime::duty;

/// Sets for how long a machine passes a changed `[network]` on before it follows the change itself.
const REBIND_DELAY: Duration = Duration::from_secs(2);
/// Sets the same for the manager: `rescan` waits 5 s for the machines.
const MANAGER_REBIND_DELAY: Duration = Duration::from_secs(6);
/// Sets the pause before endpoints are bound again over a fault of malai.
const FAULT_REBIND_INTERVAL: Duration = Duration::from_secs(30);

/// Follows it at the machine key's endpoint until the membership ends.
pub(crate) async fn run(membership: Arc<Membership>) {
    let followed = follow(&membership, &membership.peers.endpoint, &membership.peers.relays, &membership.cancel);
    match duty::caught(followed).await {
        Some(true) => {}
        Some(false) => return,
        None => return rebind_after_fault(&membership).await,
    }
    // First the snapshot has time to reach the others over the connections that there are.
    tokio::select! {
        () = membership.cancel.cancelled() => {}
        () = tokio::time::sleep(if membership.is_manager { MANAGER_REBIND_DELAY } else { REBIND_DELAY }) => {
            membership.host.reload(&membership.alias);
        }
    }
}

/// Loads the cluster again after a fault of malai in [`follow`]: which relays the endpoint has is not known.
pub(crate) async fn rebind_after_fault(membership: &Membership) {
    // A fault that comes back at once must not rebuild endpoints without end.
    if membership.cancel.run_until_cancelled(tokio::time::sleep(FAULT_REBIND_INTERVAL)).await.is_some() {
        membership.host.reload(&membership.alias);
    }
}

/// Keeps the relays of an endpoint as the snapshot says. `true` when another endpoint is needed; after `cancel` `false`.
pub(crate) async fn follow(
    membership: &Membership,
    endpoint: &Endpoint,
    relays: &Relays,
    cancel: &CancellationToken,
) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        () = relays.keep(endpoint) => false,
        again = exchange(membership, endpoint, relays) => again,
    }
}

/// Exchanges relays for as long as nothing else of `[network]` changes; `true` when something else did.
async fn exchange(membership: &Membership, endpoint: &Endpoint, relays: &Relays) -> bool {
    let mut snapshots = membership.watch();
    let mut bound = snapshots.borrow_and_update().config.network.clone();
    loop {
        let Ok(held) = snapshots.wait_for(|held| held.config.network != bound).await.map(|held| Arc::clone(&held))
        else {
            return false;
        };
        let network = &held.config.network;
        if !is_exchange(&bound, network) {
            return true;
        }
        if let Err(failure) = relays.replace(endpoint, network).await {
            tracing::error!(cluster = %membership.alias, "cannot change the relays: {failure}");
        } else {
            tracing::info!(cluster = %membership.alias, generation = held.generation(), "relays exchanged");
        }
        bound = network.clone();
    }
}

/// Returns whether only relays differ, and there were and are some of the cluster's own: iroh's public ones come with other
/// services, and without relays an endpoint has no part for them.
fn is_exchange(from: &Network, to: &Network) -> bool {
    let own = |network: &Network| network.relays.as_ref().is_some_and(|relays| !relays.is_empty());
    // An endpoint has a proxy or none for all of its relays.
    let same_proxy = proxy::of(from) == proxy::of(to);
    own(from) && own(to) && from.discovery == to.discovery && from.ca == to.ca && same_proxy
}

#[cfg(test)]
mod tests {
    use malai_protocol::config::Relay;

    use super::*;

    #[test]
    fn only_the_clusters_own_relays_are_exchanged_without_another_endpoint() {
        let network = |urls: Option<&[&str]>| Network {
            relays: urls.map(|urls| urls.iter().map(|url| Relay::at(*url)).collect()),
            ..Network::default()
        };
        let (one, two) = (network(Some(&["https://a"])), network(Some(&["https://b", "https://a"])));
        let pinned =
            Network { relays: Some(vec![Relay { sha256: Some([1; 32]), ..Relay::at("https://a") }]), ..one.clone() };
        assert!(is_exchange(&one, &two) && is_exchange(&two, &one) && is_exchange(&one, &pinned));
        for other in [network(None), network(Some(&[]))] {
            assert!(!is_exchange(&one, &other) && !is_exchange(&other, &one), "{other:?}");
        }
        assert!(!is_exchange(&one, &Network { ca: Some("x".into()), ..one.clone() }));
        assert!(!is_exchange(&one, &Network { discovery: Some(Vec::new()), ..one.clone() }));
    }
}
