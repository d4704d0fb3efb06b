//! Binds an iroh endpoint as the cluster's `[network]` and the local settings say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use iroh::address_lookup::{
    AddrFilter, AddressLookup, AddressLookupBuilder, AddressLookupBuilderError, DnsAddressLookup, EndpointData,
    Error as LookupError, Item, PkarrPublisher, PkarrResolver,
};
use iroh::dns::DnsResolver;
use iroh::endpoint::{Builder, PortmapperConfig, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr};
use malai_protocol::config::{Network, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use tokio::runtime::Handle;
use tracing::subscriber::NoSubscriber;
use url::Url;

use super::proxy;
use super::relays::{Pass, Relays};
use super::trust::Trust;
use crate::net::finding::directory::Directory;
use crate::net::finding::mdns::Mdns;
use crate::net::finding::ways::{Noting, Ways};
use crate::store::secret::{Secret, wiped};

/// Bounds the sessions of one connection. The next one is refused by name.
pub(crate) const MAX_SESSIONS_PER_CONNECTION: u32 = 1024;
/// Adds to the streams of a connection those beyond its sessions: control, snapshots, pings, and those refused by name.
/// QUIC gives places back only when an eighth of all have become free: with fewer than that to spare, a session too many
/// would wait and not be refused.
const SPARE_STREAMS_PER_CONNECTION: u32 = 256;
/// Sets how long a connection on which nothing is heard lives. QUIC begins to count again with the first packet that asks
/// for an answer after the last one that came, and iroh sends one after 5 s at most: so a machine that is gone is known
/// to be gone within 18 s, and a path has to lose three keep-alives in a row to be taken for dead.
pub(crate) const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(13);
/// Bounds how long the sockets of a closed endpoint may take to be free: longer than a busy machine needs.
const SOCKET_RELEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// Sets how much of the stack is wiped after an endpoint was bound: several times what that takes in a debug build, and
/// half of a thread's.
const BINDING_STACK_BYTES: usize = 1024 * 1024;
/// Sets how often that is looked at. The system does not tell when a port is free.
const SOCKET_RELEASE_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Sets how long a closing endpoint waits for its peers at least. All are told at once, and a peer that is there confirms
/// within a round trip; for those that vanished, or that are only being dialled, iroh waits 3 s.
const ENDPOINT_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Sets how many round trips it waits on a slow path: three probe timeouts, after which QUIC too expects nothing more.
const ENDPOINT_CLOSE_ROUND_TRIPS: u32 = 9;

/// Says how an endpoint is bound.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// Is its secret key.
    pub(crate) key: Secret,
    /// Names the protocols that it accepts; empty for one that only calls.
    pub(crate) alpns: Vec<Vec<u8>>,
    /// Is the cluster's `[network]`.
    pub(crate) network: &'a Network,
    /// Is `listen` of the local settings.
    pub(crate) listen: Option<SocketAddr>,
    /// Is the port that was used last.
    pub(crate) kept_port: Option<u16>,
    /// It makes itself known to discovery services.
    pub(crate) publish: bool,
    /// Is what a newcomer shows to relays.
    pub(crate) pass: Option<Pass>,
    /// Says how it finds machines.
    pub(crate) finding: Finding,
}

/// Holds an endpoint and its relays.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Is the endpoint.
    pub(crate) endpoint: Endpoint,
    /// Holds its relays, which may change while it lives.
    pub(crate) relays: Relays,
}

/// Holds how an endpoint finds machines, for those that use the endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Finding {
    /// Remembers which way told what.
    pub(crate) ways: Arc<Ways>,
    /// Asks other members, where there are any.
    pub(crate) directory: Directory,
}

impl<'a> Options<'a> {
    /// Makes options for an endpoint that only calls, at any port, and tells no discovery service of itself.
    pub(crate) fn caller(key: Secret, network: &'a Network) -> Self {
        Self {
            key,
            alpns: Vec::new(),
            network,
            listen: None,
            kept_port: None,
            publish: false,
            pass: None,
            finding: Finding::default(),
        }
    }
}

/// Returns the key that a connection was authenticated by.
pub(crate) fn machine_id(key: &EndpointId) -> Option<MachineId> {
    MachineId::from_bytes(*key.as_bytes()).ok()
}

/// Returns the key to dial.
pub(crate) fn endpoint_id(id: &[u8; 32]) -> Option<EndpointId> {
    EndpointId::from_bytes(id).ok()
}

/// Binds. With a kept port that is occupied, another is taken.
///
/// # Errors
/// [`Failure`] of kind `bad-config` for settings that cannot be used, `internal` when no socket can be bound.
pub(crate) async fn bind(options: &Options<'_>) -> Result<Bound, Failure> {
    if let Some(port) = options.kept_port
        && options.listen.is_none()
        && port_is_free(port)
    {
        match attempt(options, Some(port)).await {
            Ok(bound) => return Ok(bound),
            Err(failure) => tracing::warn!(port, error = %failure, "the kept port cannot be bound, taking another"),
        }
    }
    attempt(options, None).await
}

/// Binds an endpoint that can send to this address only: it has no other kind of path, and looks for nothing.
///
/// # Errors
/// As [`bind`].
pub(crate) async fn bind_only(key: Secret, network: &Network, at: &TransportAddr) -> Result<Endpoint, Failure> {
    let relays = if let TransportAddr::Relay(url) = at { vec![named(network, url)] } else { Vec::new() };
    let nowhere = Some(Vec::new());
    let network = Network { relays: Some(relays), discovery: nowhere, directory: Some(false), ..network.clone() };
    let options = Options::caller(key, &network);
    let trust = Trust::new(&network);
    let relays = Relays::new(&network, Arc::clone(&trust), None)?;
    let mut builder = builder(&options, &trust, &relays)?.clear_ip_transports();
    let failed = |e: &dyn std::fmt::Display| Failure::new(Kind::Internal, format!("cannot bind a UDP port: {e}"));
    if let TransportAddr::Ip(ip) = at {
        let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        builder = builder.bind_addr((any, 0)).map_err(|e| failed(&e))?;
    }
    bound(builder, &options.key).await.map_err(|e| failed(&e))
}

/// Binds an endpoint of this key. What iroh leaves of the key on the stack meanwhile is wiped; what it keeps is zeroed
/// when it lets go.
///
/// # Errors
/// What iroh says.
pub(crate) async fn bound(builder: Builder, key: &Secret) -> Result<Endpoint, String> {
    let (runtime, key) = (Handle::current(), key.clone());
    let binding = tokio::task::spawn_blocking(move || {
        wiped::<BINDING_STACK_BYTES, _>(|| {
            runtime.block_on(async { builder.secret_key(SecretKey::from_bytes(key.bytes())).bind().await })
        })
    });
    let bound = binding.await.map_err(|e| format!("it was cut short: {e}"))?;
    bound.map_err(|e| format!("{e:#}"))
}

/// Waits until the sockets of a closed endpoint are free to be bound again: its tasks let go of them a moment later.
/// After [`SOCKET_RELEASE_TIMEOUT`] the next attempt to bind them says what is wrong.
pub(crate) async fn released(sockets: &[SocketAddr]) {
    let deadline = tokio::time::Instant::now() + SOCKET_RELEASE_TIMEOUT;
    let is_taken = |socket: &SocketAddr| {
        std::net::UdpSocket::bind(socket).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    while sockets.iter().any(is_taken) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(SOCKET_RELEASE_LOOK_INTERVAL).await;
    }
}

/// Closes, and waits until every peer has confirmed it, but not longer than one that is there would need; `rtt` is the
/// longest round trip to one. What is left of the closing then goes on in the background.
pub(crate) async fn close(endpoint: &Endpoint, rtt: Duration) {
    let endpoint = endpoint.clone();
    let closing = tokio::spawn(async move { endpoint.close().await });
    match tokio::time::timeout(ENDPOINT_CLOSE_TIMEOUT.max(rtt * ENDPOINT_CLOSE_ROUND_TRIPS), closing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("an endpoint did not close in good order: {error}"),
        Err(_) => tracing::info!("not every peer has confirmed that the connection is closed"),
    }
}

/// Drops an endpoint that hears no peer, without a goodbye: its sockets are free a moment later. No other handle to it may
/// be left.
pub(crate) fn abandon(endpoint: Endpoint) {
    // iroh logs that as an error, which it is where a peer is there that could be told.
    tracing::subscriber::with_default(NoSubscriber::default(), || drop(endpoint));
}

/// Binding with a port in use for one family only would leave the endpoint half bound, so it is tried first.
fn port_is_free(port: u16) -> bool {
    std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

async fn attempt(options: &Options<'_>, port: Option<u16>) -> Result<Bound, Failure> {
    let trust = Trust::new(options.network);
    let relays = Relays::new(options.network, Arc::clone(&trust), options.pass.clone())?;
    let mut builder = builder(options, &trust, &relays)?;
    let bad = |e: &dyn std::fmt::Display| Failure::new(Kind::BadConfig, format!("`listen` cannot be used: {e}"));
    if let Some(listen) = options.listen {
        builder = builder.clear_ip_transports().bind_addr(listen).map_err(|e| bad(&e))?;
    } else if let Some(port) = port {
        builder = builder
            .bind_addr((Ipv4Addr::UNSPECIFIED, port))
            .and_then(|b| b.bind_addr((Ipv6Addr::UNSPECIFIED, port)))
            .map_err(|e| bad(&e))?;
    }
    let endpoint = bound(builder, &options.key).await.map_err(|e| {
        let what = options.listen.map_or_else(|| "a UDP port".to_owned(), |a| format!("UDP {a}"));
        Failure::new(Kind::Internal, format!("cannot bind {what}: {e}"))
            .hint("another program may hold the port: `ss -ulpn` shows which; `listen` in malai.toml chooses another")
    })?;
    Ok(Bound { endpoint, relays })
}

fn builder(options: &Options<'_>, trust: &Arc<Trust>, relays: &Relays) -> Result<Builder, Failure> {
    let network = options.network;
    let own = is_self_hosted(network);
    let mut builder = Endpoint::builder(presets::Minimal)
        .alpns(options.alpns.clone())
        .relay_mode(relays.mode(network))
        .ca_tls_config(trust.tls(network.ca.as_deref())?)
        .transport_config(transport_config());
    if let Some(proxy) = relays.proxy() {
        builder = builder.proxy_url(proxy.url().clone());
    }
    if own {
        // A self-hosted cluster asks no public service: neither the router for a port nor another resolver.
        builder = builder
            .portmapper_config(PortmapperConfig::Disabled)
            .dns_resolver(DnsResolver::builder().with_system_defaults().disable_fallback().build());
    }
    add_discovery(builder, network, options)
}

/// Returns whether the cluster named its own relays or none: then nothing public may be contacted that it did not name.
fn is_self_hosted(network: &Network) -> bool {
    network.relays.is_some()
}

fn transport_config() -> QuicTransportConfig {
    let mut config = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_SESSIONS_PER_CONNECTION + SPARE_STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .congestion_controller_factory(Arc::new(super::congestion::Floored));
    if let Ok(idle) = CONNECTION_IDLE_TIMEOUT.try_into() {
        config = config.max_idle_timeout(Some(idle));
    }
    config.build()
}

fn add_discovery(mut builder: Builder, network: &Network, options: &Options<'_>) -> Result<Builder, Failure> {
    let default = ["dns".to_owned(), "mdns".to_owned()];
    let names = network.discovery.as_deref().unwrap_or(&default);
    let ways = &options.finding.ways;
    for name in names {
        builder = match name.as_str() {
            "mdns" => builder.address_lookup(noting(Mdns { advertise: options.publish }, name, ways)),
            "dns" => {
                let builder = builder
                    .address_lookup(noting(PkarrResolver::n0_dns(), name, ways))
                    .address_lookup(noting(DnsAddressLookup::n0_dns(), name, ways));
                if options.publish { builder.address_lookup(PkarrPublisher::n0_dns()) } else { builder }
            }
            url => {
                let url: Url = url.parse().map_err(|e| {
                    Failure::new(Kind::BadConfig, format!("[network] discovery: `{url}` is not a URL: {e}"))
                })?;
                let builder = builder.address_lookup(noting(Resolver(url.clone()), name, ways));
                // A server of the cluster's own may know the direct addresses, too: without relays there is nothing else.
                let publisher = Publisher(url);
                if options.publish { builder.address_lookup(publisher) } else { builder }
            }
        };
    }
    let asks = network.has_directory();
    Ok(if asks { builder.address_lookup(options.finding.directory.clone()) } else { builder })
}

/// Tells whether the environment exempts this server from the proxy that the endpoint may have.
fn is_exempt(server: &Url) -> bool {
    proxy::setting().ok().flatten().is_some_and(|proxy| proxy.exempts(server))
}

/// Asks a server of `[network] discovery`. For one that `NO_PROXY` names, the endpoint's proxy is left out: the
/// server's client then obeys the environment by itself.
#[derive(Debug)]
pub(crate) struct Resolver(pub(crate) Url);

impl AddressLookupBuilder for Resolver {
    fn into_address_lookup(self, endpoint: &Endpoint) -> Result<impl AddressLookup, AddressLookupBuilderError> {
        let (is_exempt, builder) = (is_exempt(&self.0), PkarrResolver::builder(self.0));
        Ok(if is_exempt {
            let builder = builder.dns_resolver(endpoint.dns_resolver()?.clone());
            Either::Left(builder.build(endpoint.tls_config().clone()))
        } else {
            Either::Right(builder.into_address_lookup(endpoint)?)
        })
    }
}

/// Publishes at that server where this machine is.
#[derive(Debug)]
struct Publisher(Url);

impl AddressLookupBuilder for Publisher {
    fn into_address_lookup(self, endpoint: &Endpoint) -> Result<impl AddressLookup, AddressLookupBuilderError> {
        let (is_exempt, builder) = (is_exempt(&self.0), PkarrPublisher::builder(self.0));
        let builder = builder.addr_filter(AddrFilter::unfiltered());
        Ok(if is_exempt {
            let builder = builder.dns_resolver(endpoint.dns_resolver()?.clone());
            Either::Left(builder.build(endpoint.secret_key().clone(), endpoint.tls_config().clone()))
        } else {
            Either::Right(builder.into_address_lookup(endpoint)?)
        })
    }
}

/// Is one of two lookups.
#[derive(Debug)]
enum Either<A, B> {
    Left(A),
    Right(B),
}

impl<A: AddressLookup, B: AddressLookup> AddressLookup for Either<A, B> {
    fn publish(&self, data: &EndpointData) {
        match self {
            Self::Left(lookup) => lookup.publish(data),
            Self::Right(lookup) => lookup.publish(data),
        }
    }

    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, LookupError>>> {
        match self {
            Self::Left(lookup) => lookup.resolve(id),
            Self::Right(lookup) => lookup.resolve(id),
        }
    }
}

fn noting<B>(lookup: B, name: &str, ways: &Arc<Ways>) -> Noting<B> {
    Noting { lookup, way: name.into(), ways: Arc::clone(ways) }
}

/// Returns the relay of this URL as the cluster's config has it, with its pin; otherwise nothing but the URL.
pub(crate) fn named(network: &Network, url: &RelayUrl) -> Relay {
    let known = network.relays.iter().flatten().find(|relay| relay.url.parse().ok().as_ref() == Some(url));
    known.cloned().unwrap_or_else(|| Relay::at(url.to_string()))
}

/// Returns the relays that the cluster uses.
pub(crate) fn relays(network: &Network) -> Vec<RelayUrl> {
    match &network.relays {
        Some(named) => named.iter().filter_map(|relay| relay.url.parse().ok()).collect(),
        None => RelayMode::Default.relay_map().urls(),
    }
}

/// Returns where this endpoint can be reached: `IP:PORT` and relay URLs, most useful first, at most `most`.
pub(crate) fn own_addresses(endpoint: &Endpoint, most: usize) -> Vec<String> {
    let mut direct = Vec::new();
    let mut relays = Vec::new();
    for addr in endpoint.addr().addrs {
        match addr {
            TransportAddr::Ip(ip) => direct.push(ip),
            TransportAddr::Relay(url) => relays.push(url.to_string()),
            _ => {}
        }
    }
    if direct.is_empty() {
        // A host without any network still reaches itself.
        direct.extend(endpoint.bound_sockets().iter().filter(|a| a.is_ipv4()).map(loopback));
    }
    direct.sort_by_key(|addr| (addr.ip().is_loopback(), addr.is_ipv6(), *addr));
    direct.iter().map(ToString::to_string).chain(relays).take(most).collect()
}

fn loopback(bound: &SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, bound.port()).into() } else { *bound }
}

/// Returns the port that is bound, to be kept for the next start.
pub(crate) fn bound_port(endpoint: &Endpoint) -> Option<u16> {
    endpoint.bound_sockets().iter().find(|a| a.is_ipv4()).or(endpoint.bound_sockets().first()).map(SocketAddr::port)
}

/// Reads an address of another machine as it is written in Hello, tokens and the cache. Unusable ones are dropped: they
/// come from outside and cost nothing.
pub(crate) fn parse_address(text: &str) -> Option<TransportAddr> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(TransportAddr::Ip(addr));
    }
    text.starts_with("http").then(|| text.parse::<RelayUrl>().ok()).flatten().map(TransportAddr::Relay)
}

/// Writes an address as [`parse_address`] reads it.
pub(crate) fn address_text(addr: &TransportAddr) -> Option<String> {
    match addr {
        TransportAddr::Ip(ip) => Some(ip.to_string()),
        TransportAddr::Relay(url) => Some(url.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_port_of_an_endpoint_that_is_abandoned_while_it_dials_is_free_long_before_its_dialling_is_over() {
        let network = Network { relays: Some(Vec::new()), discovery: Some(Vec::new()), ..Network::default() };
        let Bound { endpoint, relays: _ } = bind(&Options::caller(Secret::copied(&[1; 32]), &network)).await.unwrap();
        let sockets = endpoint.bound_sockets();
        // A peer that takes what comes, and never answers.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let id = SecretKey::from_bytes(&[2; 32]).public();
        let addr = iroh::EndpointAddr::new(id).with_ip_addr(silent.local_addr().unwrap());
        let dialling = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { endpoint.connect(addr, b"test").await.map(drop) }
        });
        let first = timeout(SOCKET_RELEASE_TIMEOUT, silent.recv_from(&mut [0; 2048])).await;
        assert!(first.is_ok(), "the endpoint dials");
        dialling.abort();
        assert!(dialling.await.is_err_and(|ended| ended.is_cancelled()));

        let begun = Instant::now();
        abandon(endpoint);
        released(&sockets).await;
        assert!(begun.elapsed() < SOCKET_RELEASE_TIMEOUT / 2, "it took {:?}", begun.elapsed());
        for socket in sockets {
            std::net::UdpSocket::bind(socket).unwrap();
        }
    }
}
