//! A bare iroh endpoint, for comparison: bound as malai binds one without relay and discovery, with one connection.
//!
//! `malai-lab-endpoint` waits for a connection; `malai-lab-endpoint ID IP:PORT` makes one. Both print a line of JSON when
//! ready, and keep the connection until their standard input ends.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use iroh::dns::DnsResolver;
use iroh::endpoint::{Connection, PortmapperConfig, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use malai_e2e::program;
use serde_json::json;

const ALPN: &[u8] = b"malai-lab/1";

fn main() -> ExitCode {
    program::main("malai-lab-endpoint", serve())
}

async fn serve() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .dns_resolver(DnsResolver::builder().with_system_defaults().disable_fallback().build())
        .bind()
        .await
        .context("cannot bind")?;
    let connection = match arguments.next() {
        None => accept(&endpoint).await?,
        Some(id) => dial(&endpoint, &id, &arguments.next().context("an address is missing")?).await?,
    };
    program::released().await?;
    connection.close(0u32.into(), b"");
    endpoint.close().await;
    Ok(())
}

async fn accept(endpoint: &Endpoint) -> Result<Connection> {
    let port = endpoint.bound_sockets().iter().find(|bound| bound.is_ipv4()).context("no IPv4 socket")?.port();
    program::ready(&json!({ "id": endpoint.id().to_string(), "port": port }))?;
    let incoming = endpoint.accept().await.context("the endpoint is closed")?;
    incoming.await.context("the connection failed")
}

async fn dial(endpoint: &Endpoint, id: &str, address: &str) -> Result<Connection> {
    let id: EndpointId = id.parse().with_context(|| format!("{id} is no id"))?;
    let address = address.parse().with_context(|| format!("{address} is no address"))?;
    let peer = EndpointAddr::from_parts(id, [TransportAddr::Ip(address)]);
    let connection = endpoint.connect(peer, ALPN).await.context("cannot connect")?;
    program::ready(&json!({ "connected": true }))?;
    Ok(connection)
}
