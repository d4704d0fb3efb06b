//! The network services of a lab, on one of its hosts: a relay (HTTPS, HTTP, QUIC address discovery) and a DNS server
//! that takes pkarr packets. `malai-lab-net ADDRESS` serves at that address until its standard input ends.
//!
//! It prints one line of JSON when it is ready; `malai_e2e::lab::Services` reads it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use iroh_dns_server::config::{Config, MetricsConfig, RateLimitConfig};
use iroh_relay::server::{CertConfig, QuicConfig, RelayConfig, Server, ServerConfig, TlsConfig};
use malai_e2e::program;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// The port at which relays tell clients their address, by iroh's convention.
const QUIC_PORT: u16 = 7842;
/// Where pkarr packets are published over HTTP.
const PKARR_PORT: u16 = 8080;
/// An answer must not outlive the address that it tells, or tests would wait for it.
const TTL_SECONDS: u32 = 1;
/// Where the certificates are kept: a relay that is started again is the one that its clients trust.
const KEPT: &str = "/root/malai-lab-net.json";

fn main() -> ExitCode {
    program::main("malai-lab-net", serve())
}

async fn serve() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: malai-lab-net ADDRESS")?;
    let address: IpAddr = address.parse().with_context(|| format!("{address} is no IP address"))?;
    let (authority, tls) = certify(address)?;
    let relay = start_relay(address, tls).await?;
    let dns = start_dns(address).await?;
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    program::ready(&json!({
        "relay": format!("https://{host}/"),
        "relay_http": format!("http://{host}/"),
        "quic_port": QUIC_PORT,
        "authority": authority,
        "dns": dns.dns_addr().to_string(),
        "pkarr": format!("http://{host}:{PKARR_PORT}/pkarr"),
    }))?;
    program::released().await?;
    dns.shutdown().await.context("cannot shut the DNS server down")?;
    relay.shutdown().await.context("cannot shut the relay down")
}

/// A private authority (PEM) and a server that it vouches for, the same ones as long as the host's disk lives.
fn certify(address: IpAddr) -> Result<(String, rustls::ServerConfig)> {
    if !Path::new(KEPT).exists() {
        fs::write(KEPT, make_certificates(address)?.to_string()).with_context(|| format!("cannot write {KEPT}"))?;
    }
    let kept = fs::read(KEPT).with_context(|| format!("cannot read {KEPT}"))?;
    let kept: Value = serde_json::from_slice(&kept).with_context(|| format!("{KEPT} is no JSON"))?;
    let text = |name: &str| kept.get(name).and_then(Value::as_str).with_context(|| format!("no {name} in {KEPT}"));
    let certificate = CertificateDer::from_pem_slice(text("certificate")?.as_bytes()).context("no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(text("key")?.as_bytes()).context("no key")?;
    let provider = rustls::crypto::ring::default_provider();
    let tls = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .context("no TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .context("cannot use its own certificate")?;
    Ok((text("authority")?.to_owned(), tls))
}

fn make_certificates(address: IpAddr) -> Result<Value> {
    let mut authority = CertificateParams::new(Vec::new()).context("cannot make an authority")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().context("cannot make a key")?;
    let authority = CertifiedIssuer::self_signed(authority, key).context("cannot make an authority")?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let server = CertificateParams::new(vec![address.to_string()])
        .and_then(|server| server.signed_by(&key, &authority))
        .context("cannot make a certificate")?;
    Ok(json!({ "authority": authority.pem(), "certificate": server.pem(), "key": key.serialize_pem() }))
}

async fn start_relay(address: IpAddr, tls: rustls::ServerConfig) -> Result<Server> {
    let mut relay = RelayConfig::new((address, 80));
    relay.tls = Some(TlsConfig::new((address, 443), CertConfig::Manual { server_config: tls.clone() }));
    let mut quic = QuicConfig::new((address, QUIC_PORT));
    quic.server_config = Some(tls);
    let mut config = ServerConfig::default();
    config.relay = Some(relay);
    config.quic = Some(quic);
    Server::spawn(config).await.context("cannot start the relay")
}

async fn start_dns(address: IpAddr) -> Result<iroh_dns_server::Server> {
    let mut config = Config::default();
    config.https = None;
    if let Some(http) = &mut config.http {
        http.port = PKARR_PORT;
        http.bind_addr = Some(address);
    }
    config.dns.port = 53;
    config.dns.bind_addr = Some(address);
    config.dns.default_ttl = TTL_SECONDS;
    config.dns.origins = vec![".".to_owned()];
    config.metrics = Some(MetricsConfig::disabled());
    config.pkarr_put_rate_limit = RateLimitConfig::Disabled;
    config.data_dir = Some("/run/malai-lab-net".into());
    iroh_dns_server::Server::bind(config).await.context("cannot start the DNS server")
}
