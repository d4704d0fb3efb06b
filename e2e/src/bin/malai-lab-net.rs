//! The network services of a lab, on one of its hosts: a relay (HTTPS, HTTP, QUIC address discovery) and a DNS server
//! that takes pkarr packets. `malai-lab-net ADDRESS [OPTION…]` serves at that address until its standard input ends.
//! Options: `--expired` makes a certificate whose time is over; `--deny REASON` refuses everybody at the relay;
//! `--ticket` admits only who shows a ticket.
//!
//! It prints one line of JSON when it is ready; `malai_e2e::lab::Services` reads it.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use iroh_dns_server::config::{Config, MetricsConfig, RateLimitConfig};
use iroh_relay::server::{
    Access, AccessControl, CertConfig, ClientRequest, QuicConfig, RelayConfig, Server, ServerConfig, TlsConfig,
};
use malai_e2e::program;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
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
/// What clients of the relay show to be admitted: a line each, `-` for nothing.
const SHOWN: &str = "/root/malai-lab-net.shown";

/// What it was started with.
#[derive(Debug, Clone, Default)]
struct Options {
    expired: bool,
    deny: Option<String>,
    ticket: bool,
}

fn main() -> ExitCode {
    program::main("malai-lab-net", serve())
}

async fn serve() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: malai-lab-net ADDRESS")?;
    let address: Ipv4Addr = address.parse().with_context(|| format!("{address} is no IPv4 address"))?;
    let options = options(std::env::args().skip(2))?;
    let (authority, sha256, tls) = certify(address, options.expired)?;
    let relay = start_relay(address, tls, options).await?;
    let dns = start_dns(address).await?;
    program::ready(&json!({
        "relay": format!("https://{address}/"),
        "relay_http": format!("http://{address}/"),
        "quic_port": QUIC_PORT,
        "authority": authority,
        "sha256": sha256,
        "dns": dns.dns_addr().to_string(),
        "pkarr": format!("http://{address}:{PKARR_PORT}/pkarr"),
    }))?;
    program::released().await?;
    dns.shutdown().await.context("cannot shut the DNS server down")?;
    relay.shutdown().await.context("cannot shut the relay down")
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--expired" => options.expired = true,
            "--deny" => options.deny = Some(words.next().context("--deny wants a reason")?),
            "--ticket" => options.ticket = true,
            _ => bail!("unknown option {word}"),
        }
    }
    Ok(options)
}

/// A private authority (PEM) and a server that it vouches for, the same ones as long as the host's disk lives, with the
/// SHA-256 of the server's certificate.
fn certify(address: Ipv4Addr, expired: bool) -> Result<(String, String, rustls::ServerConfig)> {
    if !Path::new(KEPT).exists() {
        fs::write(KEPT, make_certificates(address, expired)?.to_string())
            .with_context(|| format!("cannot write {KEPT}"))?;
    }
    let kept = fs::read(KEPT).with_context(|| format!("cannot read {KEPT}"))?;
    let kept: Value = serde_json::from_slice(&kept).with_context(|| format!("{KEPT} is no JSON"))?;
    let text = |name: &str| kept.get(name).and_then(Value::as_str).with_context(|| format!("no {name} in {KEPT}"));
    let certificate = CertificateDer::from_pem_slice(text("certificate")?.as_bytes()).context("no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(text("key")?.as_bytes()).context("no key")?;
    let sha256: String = digest(&certificate);
    let provider = rustls::crypto::ring::default_provider();
    let tls = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .context("no TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .context("cannot use its own certificate")?;
    Ok((text("authority")?.to_owned(), sha256, tls))
}

/// SHA-256 in hexadecimal digits.
fn digest(bytes: &[u8]) -> String {
    let provider = rustls::crypto::ring::default_provider();
    let hashes =
        provider.cipher_suites.iter().filter_map(|suite| suite.tls13()).map(|suite| suite.common.hash_provider);
    let sha256 = hashes.into_iter().find(|hash| hash.output_len() == 32).map(|hash| hash.hash(bytes));
    sha256.iter().flat_map(|hash| hash.as_ref()).map(|byte| format!("{byte:02x}")).collect()
}

fn make_certificates(address: Ipv4Addr, expired: bool) -> Result<Value> {
    let mut authority = CertificateParams::new(Vec::new()).context("cannot make an authority")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().context("cannot make a key")?;
    let authority = CertifiedIssuer::self_signed(authority, key).context("cannot make an authority")?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let mut server = CertificateParams::new(vec![address.to_string()]).context("cannot make a certificate")?;
    if expired {
        (server.not_before, server.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    }
    let server = server.signed_by(&key, &authority).context("cannot make a certificate")?;
    Ok(json!({ "authority": authority.pem(), "certificate": server.pem(), "key": key.serialize_pem() }))
}

impl AccessControl for Options {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        let shown = request.auth_token();
        let noted = fs::OpenOptions::new().create(true).append(true).open(SHOWN);
        let noted = noted.and_then(|mut file| writeln!(file, "{}", shown.as_deref().unwrap_or("-")));
        let reason = match (&self.deny, noted) {
            (_, Err(error)) => format!("{SHOWN}: {error}"),
            (Some(reason), _) => reason.clone(),
            (None, _) if self.ticket && shown.is_none() => "no ticket".to_owned(),
            _ => return Access::Allow,
        };
        Access::Deny { reason: Some(reason) }
    }
}

async fn start_relay(address: Ipv4Addr, tls: rustls::ServerConfig, options: Options) -> Result<Server> {
    let mut relay = RelayConfig::new((address, 80));
    relay.access = Arc::new(options);
    relay.tls = Some(TlsConfig::new((address, 443), CertConfig::Manual { server_config: tls.clone() }));
    let mut quic = QuicConfig::new((address, QUIC_PORT));
    quic.server_config = Some(tls);
    let mut config = ServerConfig::default();
    config.relay = Some(relay);
    config.quic = Some(quic);
    Server::spawn(config).await.context("cannot start the relay")
}

async fn start_dns(address: Ipv4Addr) -> Result<iroh_dns_server::Server> {
    let mut config = Config::default();
    config.https = None;
    if let Some(http) = &mut config.http {
        http.port = PKARR_PORT;
        http.bind_addr = Some(IpAddr::V4(address));
    }
    config.dns.port = 53;
    config.dns.bind_addr = Some(IpAddr::V4(address));
    config.dns.default_ttl = TTL_SECONDS;
    config.dns.origins = vec![".".to_owned()];
    config.metrics = Some(MetricsConfig::disabled());
    config.pkarr_put_rate_limit = RateLimitConfig::Disabled;
    config.data_dir = Some("/run/malai-lab-net".into());
    iroh_dns_server::Server::bind(config).await.context("cannot start the DNS server")
}
