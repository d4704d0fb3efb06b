//! Tries the HTTP proxy that the daemon's environment names, by a real CONNECT to a relay or server that is reached
//! through it.

use std::time::Duration;

use iroh::RelayUrl;
use malai_protocol::config::Network;
use malai_protocol::local::Finding;
use tokio::time::{Instant, timeout};
use url::Url;

use crate::clusters::membership::Membership;
pub(super) use crate::net::proxy::of;
use crate::net::proxy::{Proxy, setting};

/// Bounds how long the proxy may take to answer.
const PROXY_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Names the area of findings about the proxy.
const PROXY_AREA: &str = "proxy";

/// Tries the proxy, if one is named.
pub(super) async fn look(membership: &Membership, network: &Network, relays: &[RelayUrl]) -> Vec<Finding> {
    let proxy = match setting() {
        Ok(None) => return Vec::new(),
        Ok(Some(proxy)) => proxy,
        Err(why) => {
            let mend = "correct or remove the variable in the daemon's environment; then: malai daemon restart";
            return vec![Finding::broken(PROXY_AREA, format!("none is used: {why}"), mend)];
        }
    };
    let named = format!("{} names {}", proxy.variable(), proxy.shown());
    let servers = network.discovery.iter().flatten().filter_map(|way| way.parse::<Url>().ok());
    let targets = relays.iter().map(|relay| Url::clone(relay)).chain(servers);
    let mut targets = targets.filter(|target| !proxy.exempts(target));
    let Some(target) = targets.next() else {
        return vec![Finding::ok(
            PROXY_AREA,
            format!("{named}, but this cluster reaches no relay and no server through it"),
        )];
    };
    let mut found = vec![tried(proxy, &named, &target, membership).await];
    for relay in proxy.exempt_in_vain(network) {
        let text = format!(
            "NO_PROXY exempts relay {relay}, but not all relays of this cluster: it is still reached through the proxy"
        );
        found.push(Finding::note(PROXY_AREA, text).mend("exempt every relay of the cluster, or none"));
    }
    found
}

async fn tried(proxy: &Proxy, named: &str, target: &Url, membership: &Membership) -> Finding {
    let host = target.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = target.port_or_known_default().unwrap_or_default();
    let begun = Instant::now();
    match timeout(PROXY_ANSWER_TIMEOUT, proxy.connect(host, port, membership.peers.endpoint.tls_config())).await {
        Ok(Ok(_)) => {
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            Finding::ok(PROXY_AREA, format!("{named}, which connects to {host}:{port} in {ms:.1} ms"))
        }
        Ok(Err(error)) => Finding::broken(PROXY_AREA, format!("{named}: {error}"), error.mend),
        Err(_) => {
            let text = format!("{named}, which does not answer within {} s", PROXY_ANSWER_TIMEOUT.as_secs());
            Finding::broken(PROXY_AREA, text, "see whether the proxy runs; then: malai daemon restart")
        }
    }
}
