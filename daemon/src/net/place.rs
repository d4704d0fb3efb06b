//! Reads the URL of a relay: the host, and the one port number of TCP and UDP.

use std::net::{Ipv6Addr, SocketAddr};

use malai_protocol::failure::{Failure, Kind};
use url::{Host, Url};

/// Says where a relay is, as its URL does: `https://HOST` or `https://HOST:PORT`, and nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayPlace {
    /// Names the host as a certificate does: an address without brackets, or a name.
    pub(crate) host: String,
    /// Is the TCP port of the relay, and the UDP port of the same number.
    pub(crate) port: u16,
    /// Is the URL in its one spelling.
    pub(crate) url: String,
}

impl RelayPlace {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the form that is wanted.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            let message = format!("`{text}` cannot be the URL of a relay: {why}");
            Failure::new(Kind::Usage, message).hint("write https://HOST or https://HOST:PORT, as the machines reach it")
        };
        let url: Url = text.parse().map_err(|_| wrong("it is not a URL"))?;
        if url.scheme() != "https" {
            return Err(wrong("a relay is reached by https"));
        }
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if !bare || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it has more than a host and a port"));
        }
        let host = match url.host() {
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            Some(Host::Domain(name)) => name.to_owned(),
            None => return Err(wrong("it names no host")),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or_else(|| wrong("its port is 0"))?;
        Ok(Self { host, port, url: url.as_str().trim_end_matches('/').to_owned() })
    }

    /// Returns where such a relay listens by default.
    pub(crate) fn listen(&self) -> SocketAddr {
        (Ipv6Addr::UNSPECIFIED, self.port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_host_and_port_and_nothing_more() {
        let place = |text: &str| RelayPlace::parse(text).map(|place| (place.host, place.port, place.url));
        let wanted = |host: &str, port, url: &str| Ok((host.to_owned(), port, url.to_owned()));
        assert_eq!(place("https://203.0.113.5:7443/"), wanted("203.0.113.5", 7443, "https://203.0.113.5:7443"));
        assert_eq!(place("https://Relay.Example"), wanted("relay.example", 443, "https://relay.example"));
        assert_eq!(place("https://[2001:db8::1]:7443"), wanted("2001:db8::1", 7443, "https://[2001:db8::1]:7443"));
        for bad in ["", "relay", "http://a", "https://a/b", "https://a?b", "https://u@a", "https://a:0", "https://"] {
            assert_eq!(place(bad).map_err(|failure| failure.kind), Err(Kind::Usage), "{bad}");
        }
    }
}
