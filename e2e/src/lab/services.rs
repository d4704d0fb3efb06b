//! A relay and a DNS server of the lab's own, on one of its hosts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::disk::NET;
use super::{Child, Cmd, Host};

/// How long the servers may take to be ready.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running relay and DNS server; dropping it kills them.
#[derive(Debug)]
pub struct Services {
    /// The relay, as it stands in `relays`.
    pub relay: String,
    /// The same relay without TLS.
    pub relay_http: String,
    /// The port at which the relay tells clients their address (UDP).
    pub quic_port: u16,
    /// The certificate, as PEM, of the authority that vouches for the relay.
    pub authority: String,
    /// SHA-256 of the relay's certificate, 64 hexadecimal digits.
    pub sha256: String,
    /// Address and port of the DNS server (UDP and TCP).
    pub dns: String,
    /// Where pkarr packets are published and looked up.
    pub pkarr: String,
    _process: Child,
}

impl Services {
    /// Starts them on a host and waits until they are ready.
    ///
    /// # Errors
    ///
    /// When they do not start, or are not ready in time.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, &[])
    }

    /// Starts them with options of `malai-lab-net`, and waits until they are ready.
    ///
    /// # Errors
    ///
    /// As [`Services::start`].
    pub fn start_with(host: &Host, options: &[&str]) -> Result<Self> {
        let address = host.ip().to_string();
        let words = [NET, address.as_str()].into_iter().chain(options.iter().copied());
        let process = host.spawn(Cmd::new(words).stdin_open())?;
        let line = process.wait_for_line("{", DEADLINE)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("{NET} printed no JSON: {line}"))?;
        let text = |name: &str| {
            let value = ready.get(name).and_then(Value::as_str).map(str::to_owned);
            value.with_context(|| format!("{NET} did not tell its {name}"))
        };
        let quic_port = ready.get("quic_port").and_then(Value::as_u64).context("no quic_port")?;
        Ok(Self {
            relay: text("relay")?,
            relay_http: text("relay_http")?,
            quic_port: quic_port.try_into().context("quic_port is no port")?,
            authority: text("authority")?,
            sha256: text("sha256")?,
            dns: text("dns")?,
            pkarr: text("pkarr")?,
            _process: process,
        })
    }
}
