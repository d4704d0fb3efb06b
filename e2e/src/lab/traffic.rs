//! Where a host's packets went: counted by the kernel in the host's own namespace, so that none is missed.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::netns::NetNs;

/// Ports of services that a private cluster must leave alone, wherever they are: DNS, HTTP(S), STUN, NAT-PMP and PCP,
/// SSDP, iroh's address discovery.
const PUBLIC_SERVICES: [u16; 7] = [53, 80, 443, 1900, 3478, 5351, 7842];

/// Counts by destination. The hook sees a packet before it is queued, so an unanswered ARP request hides nothing.
const RULES: &str = r#"
table ip traffic {
  set out {
    type ipv4_addr . inet_proto . inet_service
    flags dynamic
    size 65535
    counter
  }
  chain leaving {
    type filter hook output priority 0; policy accept;
    oifname != "lo" meta l4proto { tcp, udp } add @out { ip daddr . meta l4proto . th dport }
  }
}
"#;

/// An IPv4 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    address: Ipv4Addr,
    length: u8,
}

impl Prefix {
    /// The prefix of this many bits (at most 32).
    #[must_use]
    pub fn new(address: Ipv4Addr, length: u8) -> Self {
        Self { address, length: length.min(32) }
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
        self.address.to_bits() & mask == address.to_bits() & mask
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

/// Packets that a host sent to one destination, sent on or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The address that it was sent to.
    pub to: Ipv4Addr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port that it was sent to.
    pub port: u16,
    /// How many packets.
    pub packets: u64,
}

impl Flow {
    /// Whether it went to a port at which public services listen.
    #[must_use]
    pub fn is_to_public_service(&self) -> bool {
        PUBLIC_SERVICES.contains(&self.port)
    }
}

/// Starts to count what leaves this namespace.
pub(crate) fn count(namespace: &NetNs) -> Result<()> {
    namespace.nft(RULES).context("cannot count packets")
}

/// What left this namespace since it exists.
pub(crate) fn flows(namespace: &NetNs) -> Result<Vec<Flow>> {
    let listing = namespace.read("nft", &["-j", "list", "set", "ip", "traffic", "out"])?;
    let listing: Value = serde_json::from_str(&listing).context("nft's list of flows is no JSON")?;
    let sets = listing.get("nftables").and_then(Value::as_array).context("nft lists no sets")?;
    let elements = sets.iter().filter_map(|entry| entry.pointer("/set/elem")?.as_array()).flatten();
    elements.map(|element| flow(element).with_context(|| format!("cannot read nft's element {element}"))).collect()
}

fn flow(element: &Value) -> Option<Flow> {
    Some(Flow {
        to: element.pointer("/elem/val/concat/0")?.as_str()?.parse().ok()?,
        protocol: element.pointer("/elem/val/concat/1")?.as_str()?.to_owned(),
        port: element.pointer("/elem/val/concat/2")?.as_u64()?.try_into().ok()?,
        packets: element.pointer("/elem/counter/packets")?.as_u64()?,
    })
}
