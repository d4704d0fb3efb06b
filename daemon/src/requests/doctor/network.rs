//! Tries what is between this machine and the others: UDP, NAT, relays, discovery services. It tries each now, by
//! short-lived endpoints with keys of their own, and does not rely on what the daemon found when it started.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use iroh::address_lookup::{AddressLookup, AddressLookupBuilder, DnsAddressLookup, PkarrResolver};
use iroh::endpoint::RelayStatus;
use iroh::unstable_net_report::NetReport;
use iroh::{Endpoint, RelayUrl, Watcher};
use malai_protocol::config::Network;
use malai_protocol::id::MachineId;
use malai_protocol::local::Finding;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::proxy;
use crate::clusters::membership::Membership;
use crate::net::endpoint::{self, Options, Resolver};
use crate::net::endpoint_id;
use crate::net::proxy::Proxy;
use crate::store::secret::Secret;

/// Bounds how long relays and the report on the network may take: iroh gives up its own probes after 3 s, and the report
/// after 5 s.
const RELAY_TIMEOUT: Duration = Duration::from_secs(7);
/// Bounds how long a relay's port, or a discovery service, may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds the relays that are tried, and the discovery services. Of a longer list the first ones show what is wrong.
const MAX_TRIED_SERVERS: usize = 8;
/// Says what mends a server that does not answer.
const MEND_SERVER: &str = "see whether the server runs; it is named in [network] discovery of cluster.toml";
/// Says what mends a network in which mDNS is not heard.
const MEND_MULTICAST: &str = "let multicast and UDP port 5353 in and out in the firewall, or take mdns out of [network] \
                         discovery in cluster.toml";

/// Tries what the cluster's config names, and nothing else.
pub(super) async fn look(membership: &Arc<Membership>) -> Vec<Finding> {
    let network = membership.held().config.network.clone();
    let relays = endpoint::relays(&network);
    let (proxy, relays, discovery) = tokio::join!(
        proxy::look(membership, &network, &relays),
        through_relays(membership, &network, relays.clone()),
        discovery(membership, &network)
    );
    proxy.into_iter().chain(relays).chain(discovery).collect()
}

async fn through_relays(membership: &Arc<Membership>, network: &Network, relays: Vec<RelayUrl>) -> Vec<Finding> {
    if relays.is_empty() {
        return vec![Finding::ok("relays", "the config names none; nothing outside the cluster is contacted")];
    }
    let mut trials = JoinSet::new();
    for (index, relay) in relays.iter().take(MAX_TRIED_SERVERS).cloned().enumerate() {
        let own = is_own(membership, &relay);
        let (network, tls) = (network.clone(), membership.peers.endpoint.tls_config().clone());
        trials.spawn(async move { (index, one_relay(&network, &relay, own, &tls).await) });
    }
    let report = match Trial::begin(network, &relays).await {
        Ok(trial) => trial.report().await,
        Err(why) => Err(why),
    };
    let mut found = match report {
        Ok(report) => udp(&report, relays.iter().all(|relay| relay.scheme() == "http"), proxy::of(network).is_some()),
        Err(why) => vec![Finding::broken("udp", format!("not tried: {why}"), "see the daemon's log")],
    };
    let mut tried = trials.join_all().await;
    tried.sort_by_key(|(index, _)| *index);
    found.extend(tried.into_iter().map(|(_, finding)| finding));
    found.extend(left_out("relays", relays.len()));
    found
}

/// Notes how many the config names beyond those that are tried.
fn left_out(area: &str, named: usize) -> Option<Finding> {
    let more = named.saturating_sub(MAX_TRIED_SERVERS);
    (more > 0).then(|| Finding::note(area, format!("{more} more were not tried")))
}

/// Says whether the daemon's own endpoint is connected to this relay.
fn is_own(membership: &Membership, relay: &RelayUrl) -> bool {
    let mut status = membership.peers.endpoint.home_relay_status();
    status.get().iter().any(|home| home.url() == relay && home.is_connected())
}

/// Is an endpoint with a key of its own, for a few seconds.
#[derive(Debug)]
struct Trial(Endpoint);

impl Trial {
    async fn begin(network: &Network, relays: &[RelayUrl]) -> Result<Self, String> {
        let relays = relays.iter().map(|url| endpoint::named(network, url)).collect();
        Self::bind(&Network { relays: Some(relays), discovery: Some(Vec::new()), ..network.clone() }).await
    }

    /// Binds one that has mDNS as the daemon has it, and nothing else.
    async fn by_mdns(network: &Network) -> Result<Self, String> {
        let (relays, discovery) = (Some(Vec::new()), Some(vec!["mdns".to_owned()]));
        Self::bind(&Network { relays, discovery, directory: Some(false), ..network.clone() }).await
    }

    async fn bind(network: &Network) -> Result<Self, String> {
        let key = Secret::random().map_err(|failure| failure.message)?;
        endpoint::bind(&Options::caller(key, network))
            .await
            .map(|bound| Self(bound.endpoint))
            .map_err(|failure| failure.message)
    }

    async fn report(self) -> Result<NetReport, String> {
        let report = timeout(RELAY_TIMEOUT, self.0.net_report().initialized()).await;
        self.end().await;
        report.map_err(|_| format!("no result about the network within {} s", RELAY_TIMEOUT.as_secs()))
    }

    /// Connects to the relay, and returns its answer and how fast that came, where it is known.
    async fn relay(self) -> (Option<RelayStatus>, Option<Duration>) {
        let deadline = Instant::now() + RELAY_TIMEOUT;
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

    /// Returns how fast a machine answers by mDNS, if it does.
    async fn heard(self, whom: MachineId) -> Result<Option<Duration>, String> {
        let begun = Instant::now();
        let heard = match (endpoint_id(whom.as_bytes()), self.0.address_lookup()) {
            (Some(id), Ok(lookup)) => {
                let mut answers = pin!(lookup.resolve(id).filter(|answer| ready(matches!(answer, Ok(Ok(_))))));
                Ok(timeout(ANSWER_TIMEOUT, answers.next()).await.ok().flatten().map(|_| begun.elapsed()))
            }
            (_, Err(error)) => Err(format!("{error:#}")),
            (None, _) => Ok(None),
        };
        self.end().await;
        heard
    }

    async fn end(self) {
        endpoint::close(&self.0, Duration::ZERO).await;
    }
}

/// Reads a report on the network: UDP and address translation. Only relays with TLS say which address they see.
fn udp(report: &NetReport, cannot_tell: bool, has_proxy: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if cannot_tell {
        found.push(Finding::note("udp", "unknown: only a relay with TLS can be asked over UDP, and none has it"));
    } else if report.has_udp() {
        let family = match (report.udp_v4, report.udp_v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4",
            _ => "IPv6",
        };
        found.push(Finding::ok("udp", format!("works in both directions over {family}")));
        found.push(nat(report));
    } else if has_proxy {
        let text =
            "no relay answers over UDP: machines in other networks are reached through the proxy and a relay only";
        found.push(Finding::note("udp", text).mend("let UDP out in the firewall, which is faster than any proxy"));
    } else {
        let text = "no relay answers over UDP: machines in other networks are reached through a relay only";
        let mend = "let UDP out in the firewall, to any port or at least to 7842 at the relays";
        found.push(Finding::broken("udp", text, mend));
    }
    // The proxy may answer in place of the web.
    if report.captive_portal == Some(true) && !has_proxy {
        let text = "a login page answers in place of the web: this network wants you to sign in";
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
            format!("symmetric{seen}: a machine behind another such router is reached only by a relay"),
        )
        .mend("forward a UDP port to this machine; name it in malai.toml as listen, and in cluster.toml in addresses"),
        Some(false) => Finding::ok("nat", format!("the same port for every destination{seen}")),
        None => Finding::ok("nat", format!("kind unknown: one relay alone does not show it{seen}")),
    }
}

async fn one_relay(network: &Network, relay: &RelayUrl, own: bool, tls: &ClientConfig) -> Finding {
    let area = format!("relay {relay}");
    let mend = "start the relay, or take it out of [network] relays in cluster.toml, then: malai rescan";
    match (reach(relay, proxy::of(network), tls).await, mend) {
        (Ok(()), _) => {}
        (Err((why, Some(mend))), _) => return Finding::broken(area, why, mend),
        (Err((why, None)), mend) => return Finding::broken(area, why, mend),
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
            Finding::ok(area, format!("admits this machine, but not everyone, answers in {ms:.1} ms"))
        }
        Some(status) if status.auth_denied_reason().is_some() => {
            let text = "answers, and admits members only; this machine is connected to another relay";
            Finding::note(area, text)
        }
        Some(status) => {
            let why = status.last_error().map_or_else(|| "no answer".to_owned(), |error| format!("{error:#}"));
            Finding::broken(area, format!("something else than a relay answers there: {why}"), mend)
        }
        None => {
            let text = "this machine does not trust what answers there";
            Finding::broken(
                area,
                text,
                "compare its certificate with `sha256` or `ca` in [network] of cluster.toml, and its port",
            )
        }
    }
}

/// Connects to the relay's port, through the proxy if there is one. The error names the cause, and comes with what
/// mends the proxy where the proxy is at fault.
async fn reach(relay: &Url, proxy: Option<&Proxy>, tls: &ClientConfig) -> Result<(), (String, Option<String>)> {
    let plain = |why: &str| (why.to_owned(), None);
    let host = relay.host_str().ok_or_else(|| plain("its URL names no host"))?;
    let port = relay.port_or_known_default().ok_or_else(|| plain("its URL names no port"))?;
    let host = host.trim_matches(['[', ']']);
    let connecting = async {
        match proxy {
            Some(proxy) => match proxy.connect(host, port, tls).await {
                Ok(_) => Ok(()),
                Err(error) => Err((error.to_string(), Some(error.mend))),
            },
            None => match tokio::net::TcpStream::connect((host, port)).await {
                Ok(_) => Ok(()),
                Err(error) => Err((format!("cannot be reached: {error}"), None)),
            },
        }
    };
    let late = || Err((format!("does not answer within {} s", ANSWER_TIMEOUT.as_secs()), None));
    timeout(ANSWER_TIMEOUT, connecting).await.unwrap_or_else(|_| late())
}

/// Names the machine that discovery services are asked about: this one, which announces itself there; for an agent, which
/// does not announce itself, the cluster manager.
#[derive(Debug, Clone, Copy)]
struct Whom {
    id: MachineId,
    name: &'static str,
    /// Says what makes it known to a server that does not know it.
    mend: &'static str,
    /// Says why it is not heard by mDNS, and what mends that.
    silent: (&'static str, &'static str),
}

impl Whom {
    fn of(membership: &Membership) -> Self {
        Self::among(membership.me, membership.manager_id(), membership.host.agent)
    }

    fn among(me: MachineId, manager: Option<MachineId>, agent: bool) -> Self {
        let own = Self {
            id: me,
            name: "this machine",
            mend: "wait a minute after the daemon's start; then: malai daemon restart",
            silent: ("multicast does not come through", MEND_MULTICAST),
        };
        match manager {
            Some(id) if agent => Self {
                id,
                name: "the cluster manager",
                mend: "on the cluster manager: malai daemon restart",
                silent: ("it is in another network, or multicast does not come through", MEND_MULTICAST),
            },
            None if agent => {
                Self { mend: "malai daemon", silent: ("an agent does not announce itself", "malai daemon"), ..own }
            }
            _ => own,
        }
    }
}

async fn discovery(membership: &Arc<Membership>, network: &Network) -> Vec<Finding> {
    let default = ["dns".to_owned(), "mdns".to_owned()];
    let ways = network.discovery.as_deref().unwrap_or(&default);
    if ways.is_empty() {
        return vec![Finding::ok("discovery", "the config names none")];
    }
    let whom = Whom::of(membership);
    let mut asking = JoinSet::new();
    for (index, way) in ways.iter().take(MAX_TRIED_SERVERS).cloned().enumerate() {
        let (membership, network) = (Arc::clone(membership), network.clone());
        asking.spawn(async move { (index, service(&membership, &network, whom, &way).await) });
    }
    let mut found = asking.join_all().await;
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().flat_map(|(_, findings)| findings).chain(left_out("discovery", ways.len())).collect()
}

async fn service(membership: &Membership, network: &Network, whom: Whom, way: &str) -> Vec<Finding> {
    let endpoint = &membership.peers.endpoint;
    match way {
        "mdns" => {
            let heard = match Trial::by_mdns(network).await {
                Ok(trial) => trial.heard(whom.id).await,
                Err(why) => Err(why),
            };
            vec![mdns(whom, heard)]
        }
        "dns" => {
            let pkarr = asked(whom, "discovery pkarr", PkarrResolver::n0_dns().into_address_lookup(endpoint));
            let dns = asked(whom, "discovery dns", DnsAddressLookup::n0_dns().into_address_lookup(endpoint));
            let (pkarr, dns) = tokio::join!(pkarr, dns);
            vec![pkarr, dns]
        }
        url => {
            let area = format!("discovery {url}");
            match url.parse::<Url>() {
                Ok(url) => vec![asked(whom, &area, Resolver(url).into_address_lookup(endpoint)).await],
                Err(why) => vec![Finding::broken(area, format!("is no URL: {why}"), "edit [network] discovery")],
            }
        }
    }
}

/// Notes that no answer came by mDNS. That is no fault: there are networks without multicast, and the other ways work on.
fn mdns(whom: Whom, heard: Result<Option<Duration>, String>) -> Finding {
    let area = "discovery mdns";
    match heard {
        Ok(Some(took)) => Finding::ok(area, format!("{} answers in {:.1} ms", whom.name, took.as_secs_f64() * 1e3)),
        Ok(None) => {
            let ((why, mend), within) = (whom.silent, ANSWER_TIMEOUT.as_secs());
            let text = format!("asked for {}, nothing was heard within {within} s: {why}", whom.name);
            Finding::note(area, text).mend(mend)
        }
        Err(why) => Finding::broken(area, format!("cannot be asked: {why}"), MEND_MULTICAST),
    }
}

async fn asked<E: std::fmt::Display>(whom: Whom, area: &str, lookup: Result<impl AddressLookup, E>) -> Finding {
    let lookup = match lookup {
        Ok(lookup) => lookup,
        Err(error) => return Finding::broken(area, format!("cannot be asked: {error:#}"), MEND_SERVER),
    };
    let Some(mut answers) = endpoint_id(whom.id.as_bytes()).and_then(|id| lookup.resolve(id)) else {
        return Finding::note(area, "not used to find machines");
    };
    let begun = Instant::now();
    let Ok(answer) = timeout(ANSWER_TIMEOUT, answers.next()).await else {
        return Finding::broken(area, format!("does not answer within {} s", ANSWER_TIMEOUT.as_secs()), MEND_SERVER);
    };
    let answer = answer.map(|answer| answer.map(drop).map_err(|error| format!("{error:#}")));
    told(whom, area, answer, begun.elapsed())
}

/// Reads a server's answer.
fn told(whom: Whom, area: &str, answer: Option<Result<(), String>>, took: Duration) -> Finding {
    let ms = took.as_secs_f64() * 1e3;
    match answer {
        Some(Ok(())) => Finding::ok(area, format!("knows {}, answers in {ms:.1} ms", whom.name)),
        // Iroh's errors are told apart by their words: an HTTP answer without the record, and a name without records.
        Some(Err(why))
            if ["resolving http request", "no records", "NXDomain"].iter().any(|words| why.contains(words)) =>
        {
            let text = format!("answers in {ms:.1} ms, but does not know {}", whom.name);
            Finding::note(area, text).mend(whom.mend)
        }
        Some(Err(why)) => Finding::broken(area, format!("fails: {why}"), MEND_SERVER),
        None => Finding::broken(area, "answers nothing", MEND_SERVER),
    }
}

#[cfg(test)]
mod tests {
    use malai_protocol::local::Level;

    use super::*;
    use crate::net::machine_id;

    fn report(change: impl FnOnce(&mut NetReport)) -> NetReport {
        let mut report = NetReport::default();
        change(&mut report);
        report
    }

    #[test]
    fn a_network_without_udp_is_broken_unless_no_relay_could_tell() {
        let blocked = report(|_| {});
        assert_eq!(udp(&blocked, false, false)[0].level, Level::Broken);
        assert_eq!(udp(&blocked, true, false)[0].level, Level::Note);
        let open = udp(&report(|report| report.udp_v4 = true), false, false);
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

    fn id(seed: u8) -> MachineId {
        machine_id(&iroh::SecretKey::from_bytes(&[seed; 32]).public()).expect("a key")
    }

    #[test]
    fn what_is_named_beyond_the_first_eight_is_told_of_and_counted() {
        assert_eq!(left_out("discovery", 8), None);
        let found = left_out("discovery", 10).map(|finding| (finding.level, finding.what));
        assert_eq!(found, Some((Level::Note, "2 more were not tried".into())));
    }

    #[test]
    fn an_agent_asks_for_the_cluster_manager_and_says_so() {
        let what = |whom, answer| told(whom, "discovery dns", answer, Duration::from_millis(2)).what;
        let agent = Whom::among(id(1), Some(id(2)), true);
        assert_eq!((agent.id, agent.mend), (id(2), "on the cluster manager: malai daemon restart"));
        assert_eq!(what(agent, Some(Ok(()))), "knows the cluster manager, answers in 2.0 ms");
        let unknown = what(agent, Some(Err("no records".into())));
        assert_eq!(unknown, "answers in 2.0 ms, but does not know the cluster manager");
        for (manager, agent) in [(Some(id(2)), false), (None, false), (None, true)] {
            let whom = Whom::among(id(1), manager, agent);
            assert_eq!(whom.id, id(1));
            assert_eq!(what(whom, Some(Ok(()))), "knows this machine, answers in 2.0 ms");
        }
    }

    #[test]
    fn mdns_is_in_order_only_when_an_answer_was_heard_and_broken_when_it_cannot_be_asked() {
        let whom = Whom::among(id(1), Some(id(2)), false);
        let heard = mdns(whom, Ok(Some(Duration::from_millis(300))));
        assert_eq!((heard.level, heard.what.as_str()), (Level::Ok, "this machine answers in 300.0 ms"));
        let silent = mdns(whom, Ok(None));
        assert_eq!(silent.level, Level::Note);
        let text = "asked for this machine, nothing was heard within 3 s: multicast does not come through";
        assert_eq!(silent.what, text);
        let agent = mdns(Whom::among(id(1), None, true), Ok(None));
        assert!(agent.what.ends_with(": an agent does not announce itself"), "{agent:?}");
        let broken = mdns(whom, Err("Cannot bind to IPv4 or IPv6".into()));
        assert_eq!(
            (broken.level, broken.what.as_str()),
            (Level::Broken, "cannot be asked: Cannot bind to IPv4 or IPv6")
        );
        for finding in [silent, broken] {
            assert!(finding.mend.is_some_and(|mend| mend.contains("[network] discovery in cluster.toml")));
        }
    }
}
