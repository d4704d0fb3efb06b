//! Reads `NO_PROXY`, the hosts that are reached without the proxy, as curl does.

use std::net::IpAddr;

/// Holds the hosts that are exempt. This machine itself always is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Exempt(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    All,
    /// A host and all below it, or an address; at every port or at one.
    Host(String, Option<u16>),
    /// Addresses that share this number of leading bits with this one.
    Addresses(IpAddr, u8),
}

impl Exempt {
    /// Reads a list that commas or spaces separate. What makes no sense in it exempts nothing.
    pub(super) fn read(text: &str) -> Self {
        let items = text.split([',', ' ', '\t', '\n']).filter(|item| !item.is_empty());
        Self(items.filter_map(Item::read).collect())
    }

    /// Tells whether this host, as a URL has it, is exempt at this port.
    pub(super) fn has(&self, host: &str, port: u16) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let is_here = address.map_or(host == "localhost", |address| address.to_canonical().is_loopback());
        is_here || self.0.iter().any(|item| item.has(&host, address, port))
    }
}

impl Item {
    fn read(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
            let bits: u8 = bits.parse().ok()?;
            return (bits <= width(&address)).then_some(Self::Addresses(address, bits));
        }
        let is_address = text.parse::<IpAddr>().is_ok();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !is_address => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let host = host.trim_matches(['[', ']']).trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
        // An address is compared as a number, however it is spelt.
        let host = host.parse::<IpAddr>().map_or(host, |address| address.to_string());
        (!host.is_empty()).then_some(Self::Host(host, port))
    }

    fn has(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Host(_, Some(only)) if *only != port => false,
            Self::Host(name, _) => match address {
                Some(address) => address.to_string() == *name,
                None => host.strip_suffix(name.as_str()).is_some_and(|left| left.is_empty() || left.ends_with('.')),
            },
            Self::Addresses(network, bits) => address.is_some_and(|address| begins(address, *network, *bits)),
        }
    }
}

fn width(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Tells whether both begin with the same bits.
fn begins(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| (a ^ b).checked_shr(width - u32::from(bits)).unwrap_or(0) == 0;
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exempt_as_curl_has_it() {
        let table = [
            ("example.com", "example.com", true),
            ("example.com", "relay.Example.com.", true),
            (".example.com", "relay.example.com", true),
            (".example.com", "example.com", true),
            ("*.example.com", "relay.example.com", true),
            ("example.com", "badexample.com", false),
            ("example.com", "example.com.evil.net", false),
            ("a, b.example\tc", "b.example", true),
            ("a,,b", "c", false),
            ("*", "anything", true),
            ("example.com:443", "example.com", true),
            ("example.com:8443", "example.com", false),
            ("example.com:port", "example.com", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.70", false),
            ("2.7", "192.0.2.7", false),
            ("192.0.2.0/24", "192.0.2.7", true),
            ("192.0.2.0/24", "192.0.3.7", false),
            ("0.0.0.0/0", "192.0.3.7", true),
            ("0.0.0.0/0", "example.com", false),
            ("0.0.0.0/33", "192.0.3.7", false),
            ("2001:db8::/32", "[2001:db8::7]", true),
            ("[2001:db8::7]:443", "[2001:db8::7]", true),
            ("2001:DB8:0::7", "[2001:db8::7]", true),
            ("2001:db8::7", "[2001:db8::8]", false),
            ("::/0", "[2001:db8::8]", true),
            ("", "localhost", true),
            ("", "127.0.0.1", true),
            ("", "[::1]", true),
            ("", "[::ffff:127.0.0.1]", true),
            ("", "192.0.2.7", false),
            (".", "example.com", false),
            ("*.", "example.com", false),
            ("[]:1", "example.com", false),
        ];
        for (list, host, wanted) in table {
            assert_eq!(Exempt::read(list).has(host, 443), wanted, "{list:?} {host}");
        }
    }
}
