//! What is between this machine and the others: UDP, NAT, relays, discovery services. Each is tried for real, now, by
//! short-lived endpoints with keys of their own, so that what the daemon found when it started is not taken for granted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use iroh::address_lookup::{AddressLookup, AddressLookupBuilder, DnsAddressLookup, PkarrResolver};
use iroh::endpoint::RelayStatus;
use iroh::unstable_net_report::NetReport;
use iroh::{Endpoint, RelayUrl, Watcher};
use malai_protocol::config::Network;
use malai_protocol::local::Finding;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::membership::Membership;
use crate::net::endpoint::{self, Options};
use crate::net::endpoint_id;
use crate::store::keys::random;

/// How long relays and the report on the network may take: iroh gives up its own probes after 3 s, and the report after 5.
const RELAY: Duration = Duration::from_secs(7);
/// How long a relay's port may take to answer, and a discovery service.
const ANSWER: Duration = Duration::from_secs(3);
/// So many relays are tried; a config with more has its reasons, and the first ones tell what is wrong.
const RELAYS: usize = 8;

/// Tries what the cluster's config names, and nothing else.
pub(super) async fn look(membership: &Arc<Membership>) -> Vec<Finding> {
    let network = membership.held().config.network.clone();
    let relays = endpoint::relays(&network);
    let (relays, discovery) =
        tokio::join!(through_relays(membership, &network, relays), discovery(membership, &network));
    relays.into_iter().chain(discovery).collect()
}

async fn through_relays(membership: &Arc<Membership>, network: &Network, relays: Vec<RelayUrl>) -> Vec<Finding> {
    if relays.is_empty() {
        return vec![Finding::ok("relays", "none is named, and nothing outside of the cluster is asked")];
    }
    let left_out = relays.len().saturating_sub(RELAYS);
    let mut trials = JoinSet::new();
    for (index, relay) in relays.iter().take(RELAYS).cloned().enumerate() {
        let own = is_own(membership, &relay);
        let network = network.clone();
        trials.spawn(async move { (index, one_relay(&network, &relay, own).await) });
    }
    let report = match Trial::begin(network, &relays).await {
        Ok(trial) => trial.report().await,
        Err(why) => Err(why),
    };
    let mut found = match report {
        Ok(report) => udp(&report, relays.iter().all(|relay| relay.scheme() == "http")),
        Err(why) => vec![Finding::broken("udp", format!("not tried: {why}"), "see the daemon's log")],
    };
    let mut tried = trials.join_all().await;
    tried.sort_by_key(|(index, _)| *index);
    found.extend(tried.into_iter().map(|(_, finding)| finding));
    if left_out > 0 {
        found.push(Finding::note("relays", format!("{left_out} more are named, and were not tried")));
    }
    found
}

/// Whether the daemon's own endpoint is connected to this relay.
fn is_own(membership: &Membership, relay: &RelayUrl) -> bool {
    let mut status = membership.endpoint.home_relay_status();
    status.get().iter().any(|home| home.url() == relay && home.is_connected())
}

/// An endpoint with a key of its own, for a few seconds.
#[derive(Debug)]
struct Trial(Endpoint);

impl Trial {
    async fn begin(network: &Network, relays: &[RelayUrl]) -> Result<Self, String> {
        let relays = relays.iter().map(|url| endpoint::named(network, url)).collect();
        let network = Network { relays: Some(relays), discovery: Some(Vec::new()), ..network.clone() };
        let key = random::<32>().map_err(|failure| failure.message)?;
        endpoint::bind(&Options::caller(*key, &network))
            .await
            .map(|bound| Self(bound.endpoint))
            .map_err(|failure| failure.message)
    }

    async fn report(self) -> Result<NetReport, String> {
        let report = timeout(RELAY, self.0.net_report().initialized()).await;
        self.end().await;
        report.map_err(|_| format!("nothing was known of the network within {} s", RELAY.as_secs()))
    }

    /// The relay's answer to being connected to, and how soon it answers, where that is known.
    async fn relay(self) -> (Option<RelayStatus>, Option<Duration>) {
        let deadline = Instant::now() + RELAY;
        let mut watcher = self.0.home_relay_status();
        let settled = |all: &[RelayStatus]| all.iter().any(|one| one.is_connected() || one.last_error().is_some());
        let mut status = watcher.get();
        while !settled(&status) {
            match timeout_at(deadline, watcher.updated()).await {
                Ok(Ok(next)) => status = next,
                _ => break,
            }
        }
        let report = self.0.net_report().get();
        self.end().await;
        let latency = report.and_then(|report| report.relay_latency.iter().map(|(.., latency)| latency).min());
        (status.into_iter().next(), latency)
    }

    async fn end(self) {
        endpoint::close(&self.0, Duration::ZERO).await;
    }
}

/// What a report says of UDP and of address translation. Relays without TLS tell nobody which address they see.
fn udp(report: &NetReport, cannot_tell: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if cannot_tell {
        found.push(Finding::note("udp", "not known: no relay has TLS, without which none can be asked over UDP"));
    } else if report.has_udp() {
        let family = match (report.udp_v4, report.udp_v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4",
            _ => "IPv6",
        };
        found.push(Finding::ok("udp", format!("gets out and back over {family}")));
        found.push(nat(report));
    } else {
        let text = "no relay answers over UDP: machines in other networks are reached through a relay only";
        let mend = "let UDP out in the firewall, to any port or at least to 7842 at the relays";
        found.push(Finding::broken("udp", text, mend));
    }
    if report.captive_portal == Some(true) {
        let text = "something answers in place of the web: this network wants to be signed in to";
        found.push(Finding::broken("portal", text, "open a web page in a browser and sign in"));
    }
    found
}

fn nat(report: &NetReport) -> Finding {
    let seen = report.global_v4.map(|v4| v4.to_string()).or(report.global_v6.map(|v6| v6.to_string()));
    let seen = seen.map(|address| format!(", seen from outside as {address}")).unwrap_or_default();
    match report.mapping_varies_by_dest() {
        Some(true) => Finding::note(
            "nat",
            format!("symmetric{seen}: to a machine behind another such router the way is by a relay only"),
        )
        .mend("forward a UDP port to this machine; name it in malai.toml as listen, and in cluster.toml in addresses"),
        Some(false) => Finding::ok("nat", format!("the same port for every destination{seen}")),
        None => Finding::ok("nat", format!("of a kind that one relay alone does not show{seen}")),
    }
}

async fn one_relay(network: &Network, relay: &RelayUrl, own: bool) -> Finding {
    let area = format!("relay {relay}");
    let mend = "start the relay, or take it out of [network] relays in cluster.toml, then: malai rescan";
    if let Err(why) = reach(relay).await {
        return Finding::broken(area, why, mend);
    }
    let trial = match Trial::begin(network, std::slice::from_ref(relay)).await {
        Ok(trial) => trial,
        Err(why) => return Finding::broken(area, format!("not tried: {why}"), "see the daemon's log"),
    };
    let begun = Instant::now();
    let (status, latency) = trial.relay().await;
    let ms = latency.unwrap_or(begun.elapsed()).as_secs_f64() * 1e3;
    match status {
        Some(status) if status.is_connected() => Finding::ok(area, format!("takes connections, answers in {ms:.1} ms")),
        Some(status) if status.auth_denied_reason().is_some() && own => {
            Finding::ok(area, format!("admits this machine and not everybody, answers in {ms:.1} ms"))
        }
        Some(status) if status.auth_denied_reason().is_some() => {
            let text = "answers, admits members only, and this machine's own connection is another relay's";
            Finding::note(area, text)
        }
        Some(status) => {
            let why = status.last_error().map_or_else(|| "no answer".to_owned(), |error| format!("{error:#}"));
            Finding::broken(area, format!("something answers there, and not as a relay should: {why}"), mend)
        }
        None => {
            let text = "something answers there, and not as a relay that this machine trusts";
            Finding::broken(
                area,
                text,
                "compare its certificate with `sha256` or `ca` in [network] of cluster.toml, and its port",
            )
        }
    }
}

/// Connects to the relay's port; where that fails, the cause is plain.
async fn reach(relay: &Url) -> Result<(), String> {
    let host = relay.host_str().ok_or("its URL names no host")?;
    let port = relay.port_or_known_default().ok_or("its URL names no port")?;
    let host = host.trim_matches(['[', ']']);
    let connecting = tokio::net::TcpStream::connect((host, port));
    match timeout(ANSWER, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("cannot be reached: {error}")),
        Err(_) => Err(format!("does not answer within {} s", ANSWER.as_secs())),
    }
}

/// Every discovery service is asked for this machine, which it was told of; an agent, which tells nobody of itself, asks
/// for the cluster manager.
async fn discovery(membership: &Arc<Membership>, network: &Network) -> Vec<Finding> {
    let default = ["dns".to_owned(), "mdns".to_owned()];
    let ways = network.discovery.as_deref().unwrap_or(&default);
    if ways.is_empty() {
        return vec![Finding::ok("discovery", "no service is named, and none is asked")];
    }
    let mut asking = JoinSet::new();
    for (index, way) in ways.iter().take(RELAYS).cloned().enumerate() {
        let membership = Arc::clone(membership);
        asking.spawn(async move { (index, service(&membership, &way).await) });
    }
    let mut found = asking.join_all().await;
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().flat_map(|(_, findings)| findings).collect()
}

async fn service(membership: &Membership, way: &str) -> Vec<Finding> {
    let endpoint = &membership.endpoint;
    match way {
        "mdns" => vec![Finding::ok("discovery mdns", "asks the local network, where no server answers for it")],
        "dns" => {
            let pkarr = asked(membership, "discovery pkarr", PkarrResolver::n0_dns().into_address_lookup(endpoint));
            let dns = asked(membership, "discovery dns", DnsAddressLookup::n0_dns().into_address_lookup(endpoint));
            let (pkarr, dns) = tokio::join!(pkarr, dns);
            vec![pkarr, dns]
        }
        url => {
            let area = format!("discovery {url}");
            match url.parse::<Url>() {
                Ok(url) => {
                    vec![asked(membership, &area, PkarrResolver::builder(url).into_address_lookup(endpoint)).await]
                }
                Err(why) => vec![Finding::broken(area, format!("is no URL: {why}"), "edit [network] discovery")],
            }
        }
    }
}

async fn asked<E: std::fmt::Display>(
    membership: &Membership,
    area: &str,
    lookup: Result<impl AddressLookup, E>,
) -> Finding {
    let mend = "see whether the server runs; it is named in [network] discovery of cluster.toml";
    let whom = if membership.shared.agent { membership.manager_id().unwrap_or(membership.me) } else { membership.me };
    let lookup = match lookup {
        Ok(lookup) => lookup,
        Err(error) => return Finding::broken(area, format!("cannot be asked: {error:#}"), mend),
    };
    let Some(mut answers) = endpoint_id(whom.as_bytes()).and_then(|id| lookup.resolve(id)) else {
        return Finding::note(area, "is not asked for machines");
    };
    let begun = Instant::now();
    match timeout(ANSWER, answers.next()).await {
        Ok(Some(Ok(_))) => {
            Finding::ok(area, format!("knows this machine, answers in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3))
        }
        Ok(Some(Err(error))) => {
            let why = format!("{error:#}");
            // By the words of iroh's errors: an answer of HTTP that is not the one asked for, and a name without records.
            if ["resolving http request", "no records", "NXDomain"].iter().any(|words| why.contains(words)) {
                let text =
                    format!("answers in {:.1} ms, and does not know this machine", begun.elapsed().as_secs_f64() * 1e3);
                return Finding::note(area, text)
                    .mend("wait a minute after the daemon's start; then: malai daemon restart");
            }
            Finding::broken(area, format!("fails: {why}"), mend)
        }
        Ok(None) => Finding::broken(area, "answers nothing", mend),
        Err(_) => Finding::broken(area, format!("does not answer within {} s", ANSWER.as_secs()), mend),
    }
}

#[cfg(test)]
mod tests {
    use malai_protocol::local::Level;

    use super::*;

    fn report(change: impl FnOnce(&mut NetReport)) -> NetReport {
        let mut report = NetReport::default();
        change(&mut report);
        report
    }

    #[test]
    fn a_network_without_udp_is_broken_unless_no_relay_could_tell() {
        let blocked = report(|_| {});
        assert_eq!(udp(&blocked, false)[0].level, Level::Broken);
        assert_eq!(udp(&blocked, true)[0].level, Level::Note);
        let open = udp(&report(|report| report.udp_v4 = true), false);
        assert_eq!(open.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Ok; 2]);
    }

    #[test]
    fn a_symmetric_nat_is_told_with_what_opens_a_direct_way() {
        let symmetric = report(|report| {
            report.udp_v4 = true;
            report.mapping_varies_by_dest_ipv4 = Some(true);
        });
        let found = nat(&symmetric);
        assert_eq!(found.level, Level::Note);
        assert!(found.mend.is_some_and(|mend| mend.contains("listen")));
        let plain = nat(&report(|report| report.mapping_varies_by_dest_ipv4 = Some(false)));
        assert_eq!(plain.level, Level::Ok);
    }
}
