//! Addresses that others name: which of them this machine may contact.
//!
//! Other machines name addresses in a greeting, in an announcement, or in an answer of the directory, discovery services name
//! them too, and the cache keeps them. Without this rule they could send this machine's packets wherever they like. What the
//! administrator wrote (fixed addresses, relays, `--at`, an invite) is not checked here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use iroh::{RelayUrl, TransportAddr};
use nix::ifaddrs::getifaddrs;

/// Holds what an endpoint compares with the addresses that others name.
#[derive(Debug)]
pub(crate) struct Hearsay {
    /// Holds the relays of the cluster.
    pub(crate) relays: Vec<RelayUrl>,
    /// Holds the endpoint's own sockets.
    pub(crate) bound: Vec<SocketAddr>,
    /// Holds the addresses at which others reach this machine.
    pub(crate) own: BTreeSet<SocketAddr>,
}

impl Hearsay {
    /// Returns whether this address may be contacted because another machine named it. An address that means another
    /// machine on every host or link is admitted only if `is_near` says so, or if it is a loopback one and this host has no
    /// other network.
    pub(crate) fn admits(&self, addr: &TransportAddr, is_near: impl Fn(SocketAddr) -> bool) -> bool {
        let ip = match addr {
            TransportAddr::Ip(ip) => canonical(*ip),
            TransportAddr::Relay(url) => return self.relays.contains(url),
            _ => return false,
        };
        if !is_machine(ip) || self.is_own(ip) {
            return false;
        }
        !is_local(ip.ip()) || is_near(ip) || (ip.ip().is_loopback() && self.is_alone())
    }

    fn is_own(&self, ip: SocketAddr) -> bool {
        let is_bound = self.bound.iter().any(|bound| bound.port() == ip.port());
        self.own.contains(&ip) || (is_bound && ip.ip().is_loopback())
    }

    /// Returns whether this machine can reach only machines on this host.
    fn is_alone(&self) -> bool {
        self.bound.iter().all(|bound| bound.ip().is_loopback()) || has_no_network()
    }
}

/// Returns the one way to write an address, as far as a socket is concerned.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Returns whether one machine can have this address.
fn is_machine(addr: SocketAddr) -> bool {
    let is_one = match addr.ip() {
        IpAddr::V4(ip) => ip.octets()[0] != 0 && !ip.is_multicast() && !ip.is_broadcast(),
        // Those that begin with 96 zeros are IPv4 in a form that was given up.
        IpAddr::V6(ip) => !ip.is_multicast() && (ip.octets()[..12] != [0; 12] || ip == Ipv6Addr::LOCALHOST),
    };
    is_one && addr.port() != 0
}

/// Returns whether every host, link or network has such an address of its own.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || is_translated(ip),
    }
}

/// Returns whether this stands for an IPv4 address behind this network's own translator, so that no machine has it
/// (RFC 6052, RFC 8215, RFC 2765).
fn is_translated(ip: Ipv6Addr) -> bool {
    matches!(ip.segments(), [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0, 0, 0, 0, 0xffff, 0, ..])
}

/// Returns whether this host has only loopback addresses.
fn has_no_network() -> bool {
    let Ok(addresses) = getifaddrs() else { return false };
    let ips = addresses.filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    ips.into_iter().all(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::endpoint::parse_address;

    fn hearsay() -> Hearsay {
        Hearsay {
            relays: vec!["https://relay.example.com".parse().unwrap()],
            bound: vec!["0.0.0.0:4001".parse().unwrap()],
            own: BTreeSet::from(["192.0.2.1:4001".parse().unwrap()]),
        }
    }

    #[test]
    fn only_machines_and_the_clusters_relays_are_contacted_on_somebodys_word() {
        for (text, may) in [
            ("192.0.2.7:4001", true),
            ("10.0.0.7:4001", true),
            ("[2001:db8::7]:4001", true),
            ("[fd00::7]:4001", true),
            ("[::ffff:192.0.2.7]:4001", true),
            ("https://relay.example.com/", true),
            ("https://public.example.net/", false),
            ("http://relay.example.com/", false),
            ("https://relay.example.com:444/", false),
            ("0.0.0.0:4001", false),
            ("0.0.0.7:4001", false),
            ("255.255.255.255:4001", false),
            ("224.0.0.251:5353", false),
            ("[ff02::fb]:5353", false),
            ("[::]:4001", false),
            ("[::127.0.0.1]:4002", false),
            ("192.0.2.7:0", false),
            // This machine itself.
            ("192.0.2.1:4001", false),
            ("[::ffff:192.0.2.1]:4001", false),
            ("127.0.0.1:4001", false),
        ] {
            assert_eq!(hearsay().admits(&parse_address(text).unwrap(), |_| true), may, "{text}");
        }
    }

    #[test]
    fn what_every_host_or_link_has_for_itself_counts_only_from_who_is_near() {
        // Whether this host has a network is another matter, which is asked of loopback addresses only.
        let local = ["169.254.169.254:80", "[fe80::1]:4001", "[::ffff:169.254.169.254]:80"];
        let translated = ["[64:ff9b::127.0.0.1]:80", "[64:ff9b:1::7f00:1]:80", "[::ffff:0:127.0.0.1]:80"];
        for text in local.into_iter().chain(translated) {
            let addr = parse_address(text).unwrap();
            assert!(!hearsay().admits(&addr, |_| false), "{text}");
            assert!(hearsay().admits(&addr, |_| true), "{text}");
        }
        let near: SocketAddr = "127.0.0.1:4002".parse().unwrap();
        assert!(hearsay().admits(&parse_address("[::ffff:127.0.0.1]:4002").unwrap(), |ip| ip == near));
    }

    #[test]
    fn an_endpoint_that_is_bound_to_the_loopback_alone_may_be_told_of_others_there() {
        let alone = Hearsay { bound: vec!["127.0.0.1:4001".parse().unwrap()], ..hearsay() };
        assert!(alone.admits(&parse_address("127.0.0.1:4002").unwrap(), |_| false));
        assert!(!alone.admits(&parse_address("169.254.169.254:80").unwrap(), |_| false));
    }
}
