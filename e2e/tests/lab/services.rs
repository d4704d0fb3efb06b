//! The lab's own relay and DNS server serve what iroh asks of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayConfig, RelayMap, RelayMode, RelayUrl};
use iroh_relay::RelayQuicConfig;
use iroh_relay::tls::CaTlsConfig;
use libtest_mimic::Trial;
use malai_e2e::lab::{Host, Lab, Nat, Services};
use malai_e2e::trials;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

const ALPN: &[u8] = b"lab/1";
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    trials![two_hosts_behind_symmetric_nats_meet_at_the_relay, the_dns_server_answers,]
}

async fn endpoint(services: &Services) -> Result<Endpoint> {
    let url: RelayUrl = services.relay.parse()?;
    let quic = RelayQuicConfig::new(services.quic_port);
    let relays = RelayMap::empty();
    relays.insert(url.clone(), RelayConfig::new(url, Some(quic)).into());
    let authority = CertificateDer::from_pem_slice(services.authority.as_bytes())?;
    let endpoint = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Custom(relays))
        .ca_tls_config(CaTlsConfig::custom_roots([authority]))
        .alpns(vec![ALPN.to_vec()])
        .bind()
        .await?;
    tokio::time::timeout(DEADLINE, endpoint.online()).await.context("not online")?;
    Ok(endpoint)
}

/// A runtime of which every socket is on this host.
fn runtime(host: &Host) -> Result<tokio::runtime::Runtime> {
    host.in_network(|| Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?))
}

async fn accept(endpoint: Endpoint) -> Result<Connection> {
    let incoming = endpoint.accept().await.context("the endpoint was closed")?;
    Ok(incoming.await?)
}

fn two_hosts_behind_symmetric_nats_meet_at_the_relay() -> Result<()> {
    let lab = Lab::new("relay")?;
    let internet = lab.internet()?;
    let server = lab.host("relay").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let mut hosts = Vec::new();
    let mut routers = Vec::new();
    for name in ["one", "two"] {
        let lan = lab.segment(name)?;
        routers.push(lab.router(name).between(&lan, &internet).nat(Nat::Symmetric).start()?);
        hosts.push(lab.host(name).on(&lan).boot()?);
    }
    let runtimes = [runtime(&hosts[0])?, runtime(&hosts[1])?];
    std::thread::scope(|scope| -> Result<()> {
        let callee = hosts[1].in_network(|| runtimes[1].block_on(endpoint(&services)))?;
        let address = EndpointAddr::new(callee.id()).with_relay_url(services.relay.parse()?);
        let accepting = callee.clone();
        let accepted = scope.spawn(|| runtimes[1].block_on(accept(accepting)));
        let caller = hosts[0].in_network(|| runtimes[0].block_on(endpoint(&services)))?;
        let dial = async { tokio::time::timeout(DEADLINE, caller.connect(address, ALPN)).await };
        let connection = runtimes[0].block_on(dial).context("no connection in time")??;
        assert_eq!(connection.remote_id(), callee.id());
        let other = accepted.join().map_err(|_| anyhow::anyhow!("accepting panicked"))??;
        assert_eq!(other.remote_id(), caller.id());
        ensure!(connection.paths().iter().all(|path| path.is_relay() || !path.is_selected()));
        runtimes[0].block_on(caller.close());
        runtimes[1].block_on(callee.close());
        Ok(())
    })
}

fn the_dns_server_answers() -> Result<()> {
    let lab = Lab::new("dns")?;
    let lan = lab.segment("lan")?;
    let (server, client) = (lab.host("dns").on(&lan).boot()?, lab.host("client").on(&lan).boot()?);
    let services = Services::start(&server)?;
    let socket = client.inside(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    // RFC 1035: id 7, recursion desired, one question: the root's SOA.
    let question = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];
    socket.send_to(&question, &services.dns)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    ensure!(length > question.len() && answer.starts_with(&[0, 7]), "{:?}", answer.get(..length));
    Ok(())
}
