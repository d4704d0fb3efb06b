//! Reaches relays, and the servers of `[network] discovery`, by CONNECT through the HTTP proxy that the environment
//! names, where only that leads out.
//!
//! iroh takes one proxy for an endpoint, or none. So an endpoint has the proxy unless `NO_PROXY` exempts every relay of
//! its cluster (docs/decisions/0024). The password is in no log, no error and no finding.

mod exempt;

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use malai_protocol::config::Network;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::endpoint;
use exempt::Exempt;

/// Names the variables that may name the proxy, in the order in which curl looks at them.
pub const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Names those that may exempt hosts from it.
const EXEMPT_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// Bounds a proxy's answer to CONNECT, in bytes.
const MAX_PROXY_ANSWER_BYTES: usize = 8 * 1024;

/// Is a stream of bytes to another host, direct or through a proxy.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Names an HTTP proxy that takes CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    variable: &'static str,
    url: Url,
    exempt: Exempt,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({} names {})", self.variable, self.shown())
    }
}

/// Says why a connection through a proxy was not made, and what mends that.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct ProxyError {
    what: String,
    /// Is the command or change that mends it.
    pub(crate) mend: String,
}

/// Returns the proxy of this process's environment, which is read once.
///
/// # Errors
/// Why a variable that is set cannot be used.
pub(crate) fn setting() -> Result<Option<&'static Proxy>, &'static str> {
    static SETTING: OnceLock<Result<Option<Proxy>, String>> = OnceLock::new();
    let read = SETTING.get_or_init(|| {
        let read = read(|name| std::env::var_os(name).map(|value| value.into_string().map_err(drop)));
        match &read {
            Ok(Some(proxy)) => tracing::info!(
                proxy = proxy.shown(),
                "relays are reached through the proxy that {} names",
                proxy.variable
            ),
            Ok(None) => {}
            Err(why) => tracing::error!("no proxy is used: {why}"),
        }
        read
    });
    match read {
        Ok(proxy) => Ok(proxy.as_ref()),
        Err(why) => Err(why),
    }
}

/// Returns what an administrator has to know of a variable that cannot be used.
pub(crate) fn problem() -> Option<String> {
    setting().err().map(|why| format!("no proxy is used: {why}"))
}

/// Returns the proxy for endpoints of this cluster; absent where there is none, or where every relay is exempt.
pub(crate) fn of(network: &Network) -> Option<&'static Proxy> {
    setting().ok().flatten().filter(|proxy| proxy.is_for(network))
}

/// Reads the variables, of which `get` returns the value, or an error for one that is no text.
///
/// # Errors
/// Why a variable that is set cannot be used. What it says is not repeated: it may have a password.
fn read(get: impl Fn(&str) -> Option<Result<String, ()>>) -> Result<Option<Proxy>, String> {
    let set = |name: &&'static str| {
        get(name).filter(|value| value.as_ref() != Ok(&String::new())).map(|value| (*name, value))
    };
    let Some((variable, value)) = PROXY_VARIABLES.iter().find_map(set) else { return Ok(None) };
    let bad = |why: &str| {
        format!("{variable} is not the URL of an HTTP proxy: {why}; write it as http://proxy.example.com:3128")
    };
    let value = value.map_err(|()| bad("it is no text"))?;
    let value = value.trim();
    // As with curl, a URL without a scheme is one of `http://`.
    let text = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url: Url = text.parse().map_err(|error| bad(&format!("{error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("malai speaks to HTTP proxies only, which take CONNECT"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.port_or_known_default().is_none_or(|port| port == 0) {
        return Err(bad("it names no host, or no port"));
    }
    let exempt = EXEMPT_VARIABLES.iter().find_map(set).and_then(|(_, value)| value.ok());
    Ok(Some(Proxy { variable, url, exempt: Exempt::read(&exempt.unwrap_or_default()) }))
}

impl Proxy {
    /// Returns its URL with the password, for an endpoint.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Returns which variable names it.
    pub(crate) fn variable(&self) -> &'static str {
        self.variable
    }

    /// Returns its URL for people, without the password.
    pub(crate) fn shown(&self) -> String {
        let user = match (self.url.username(), self.url.password()) {
            ("", None) => String::new(),
            (user, None) => format!("{user}@"),
            (user, Some(_)) => format!("{user}:…@"),
        };
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or_default();
        format!("{}://{user}{host}:{port}", self.url.scheme())
    }

    /// Tells whether this server is reached without it.
    pub(crate) fn exempts(&self, server: &Url) -> bool {
        let Some(host) = server.host_str() else { return true };
        self.exempt.has(host, server.port_or_known_default().unwrap_or_default())
    }

    /// Tells whether at least one relay of this cluster is reached through it.
    fn is_for(&self, network: &Network) -> bool {
        endpoint::relays(network).iter().any(|relay| !self.exempts(relay))
    }

    /// Returns the relays of this cluster that `NO_PROXY` exempts, and that are reached through the proxy all the same,
    /// since others are not exempt.
    pub(crate) fn exempt_in_vain(&self, network: &Network) -> Vec<String> {
        if !self.is_for(network) {
            return Vec::new();
        }
        let relays = endpoint::relays(network);
        relays.iter().filter(|relay| self.exempts(relay)).map(ToString::to_string).collect()
    }

    /// Connects to a port of a host through the proxy. The caller sets the time limit.
    ///
    /// # Errors
    /// Why not, without the password.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        tls: &ClientConfig,
    ) -> Result<Box<dyn Stream>, ProxyError> {
        let target = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut stream = self.open(tls).await.map_err(|error| ProxyError {
            what: format!("the proxy {} cannot be reached: {error}", self.shown()),
            mend: format!(
                "see whether the proxy runs, and whether {} names it; then: malai daemon restart",
                self.variable
            ),
        })?;
        let status = ask(&mut stream, &self.request(&target)).await.map_err(|error| ProxyError {
            what: format!("the proxy {} does not answer as an HTTP proxy: {error}", self.shown()),
            mend: format!("see whether {} names an HTTP proxy; then: malai daemon restart", self.variable),
        })?;
        match status {
            200..=299 => Ok(stream),
            407 => Err(ProxyError {
                what: format!("the proxy {} refuses the user name and password, or wants one (407)", self.shown()),
                mend: format!(
                    "set {}=http://USER:PASSWORD@HOST:PORT in the environment of the daemon; then: malai daemon restart",
                    self.variable
                ),
            }),
            status => Err(ProxyError {
                what: format!("the proxy {} refuses to connect to {target} ({status})", self.shown()),
                mend: format!(
                    "allow CONNECT to {target} at the proxy; or name its host in NO_PROXY, if it can be reached without a proxy"
                ),
            }),
        }
    }

    async fn open(&self, tls: &ClientConfig) -> io::Result<Box<dyn Stream>> {
        let (host, port) =
            (self.url.host_str().unwrap_or_default(), self.url.port_or_known_default().unwrap_or_default());
        let host = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, port)).await?;
        if self.url.scheme() == "http" {
            return Ok(Box::new(stream));
        }
        Ok(Box::new(secured(stream, host, tls).await?))
    }

    fn request(&self, target: &str) -> String {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if !self.url.username().is_empty() {
            let plain = |text: &str| percent_decoded(text);
            let mut words = plain(self.url.username());
            words.push(b':');
            words.extend(plain(self.url.password().unwrap_or_default()));
            request += &format!("Proxy-Authorization: Basic {}\r\n", data_encoding::BASE64.encode(&words));
        }
        request + "\r\n"
    }
}

/// Secures a stream by TLS. No session is resumed, so that the certificate is checked each time.
///
/// # Errors
/// When the handshake fails, or the host is no name for a certificate.
pub(crate) async fn secured<S: Stream>(
    stream: S,
    host: &str,
    tls: &ClientConfig,
) -> io::Result<tokio_rustls::client::TlsStream<S>> {
    let mut tls = tls.clone();
    tls.resumption = rustls::client::Resumption::disabled();
    let name = host.to_owned().try_into().map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await
}

/// Sends a request, and reads the status of the answer to the end of its head.
async fn ask(stream: &mut Box<dyn Stream>, request: &str) -> io::Result<u16> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_PROXY_ANSWER_BYTES {
            return Err(io::Error::other("its answer is too long"));
        }
        // One byte at a time: what follows the head is the other host's.
        answer.push(stream.read_u8().await?);
    }
    status(&answer).ok_or_else(|| io::Error::other("its answer is not of HTTP"))
}

/// Returns the status of an HTTP answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let words = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let number = words.split(' ').nth(1)?;
    (number.len() == 3).then(|| number.parse().ok()).flatten()
}

/// Decodes `%XX` in a part of a URL.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let number = after.get(..2).filter(|_| *first == b'%');
        let number = number.and_then(|digits| data_encoding::HEXLOWER_PERMISSIVE.decode(digits).ok());
        match number.as_deref() {
            Some([byte]) => {
                bytes.push(*byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
