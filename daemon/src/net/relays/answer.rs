//! Asks a relay whether it is there: by a TLS handshake, in which its certificate is looked at as iroh does.
//!
//! That somebody takes the connection is not enough: a system does that for a program that hangs.

use std::io;
use std::time::Duration;

use iroh::RelayUrl;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::net::proxy::{Proxy, Stream, secured};

/// Bounds how long a relay may take to answer.
const RELAY_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks, through the proxy if there is one.
///
/// # Errors
/// Why the relay cannot be used, for people.
pub(super) async fn answers(url: &RelayUrl, proxy: Option<&Proxy>, tls: &ClientConfig) -> Result<(), String> {
    match timeout(RELAY_ANSWER_TIMEOUT, ask(url, proxy, tls)).await {
        Ok(answer) => answer.map_err(|error| format!("no answer: {error}")),
        Err(_) => Err(format!("no answer within {} s", RELAY_ANSWER_TIMEOUT.as_secs())),
    }
}

async fn ask(url: &RelayUrl, proxy: Option<&Proxy>, tls: &ClientConfig) -> io::Result<()> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(io::Error::other("its URL has no host"));
    };
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let stream: Box<dyn Stream> = match proxy {
        Some(proxy) => proxy.connect(host, port, tls).await.map_err(io::Error::other)?,
        None => Box::new(TcpStream::connect((host, port)).await?),
    };
    if url.scheme() == "https" {
        secured(stream, host, tls).await?;
    }
    Ok(())
}
