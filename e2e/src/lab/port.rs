//! A port: the connection of one interface, in a host or a router, to a segment.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::netns::NetNs;
use super::wire::Strand;
use super::{Segment, Shared, Wire};

/// The kinds of addresses that an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 addresses, and no IPv6 at all.
    V4,
    /// IPv6 addresses only.
    V6,
    /// Both.
    Dual,
}

impl Family {
    /// Whether IPv4 addresses are among them.
    pub(crate) fn has_v4(self) -> bool {
        self != Self::V6
    }

    /// Whether IPv6 addresses are among them.
    pub(crate) fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// How an interface is to be connected.
#[derive(Debug, Clone)]
pub(crate) struct Plug {
    /// The interface's name inside.
    pub(crate) interface: String,
    pub(crate) segment: Segment,
    pub(crate) wire: Option<Wire>,
    /// Its IPv4 address, from which its IPv6 address follows; it has those of its family.
    pub(crate) address: Ipv4Addr,
    pub(crate) family: Family,
}

/// A connected interface; dropping it pulls the plug and removes the interface.
#[derive(Debug)]
pub(crate) struct Port {
    lab: Arc<Shared>,
    /// The interface at the switch.
    outer: String,
    strand: Option<Strand>,
}

impl Plug {
    /// Makes the interface in `inside` and connects it, with its address but no route out.
    pub(crate) fn connect(&self, lab: &Arc<Shared>, inside: &NetNs) -> Result<Port> {
        let outer = format!("p{}", lab.next_name());
        let interface = &self.interface;
        let what = || format!("cannot connect {interface} to the segment {}", self.segment.name());
        let mut strand = None;
        if let Some(wire) = &self.wire {
            strand = Some(wire.lay((&lab.switch, &outer), (inside, interface)).with_context(what)?);
        } else {
            let make = format!("link add {outer} type veth peer name {interface} netns {}\n", inside.path());
            lab.switch.ip(&make).with_context(what)?;
        }
        let bridge = self.segment.bridge();
        lab.switch.ip(&format!("link set {outer} master {bridge}\nlink set {outer} up\n")).with_context(what)?;
        let port = Port { lab: Arc::clone(lab), outer, strand };
        // The hardware address belongs to the place, as a card belongs to its machine: it survives a reboot.
        let [a, b, c, d] = self.address.octets();
        let hardware = format!("link set {interface} address 02:6c:{a:02x}:{b:02x}:{c:02x}:{d:02x}\n");
        if self.family.has_v6() {
            inside.allow_ipv6()?;
        }
        inside.ip(&format!("{hardware}{}link set {interface} up\n", self.addresses())).with_context(what)?;
        Ok(port)
    }

    /// Gives the interface its addresses.
    pub(crate) fn addresses(&self) -> String {
        let (interface, address) = (&self.interface, self.address);
        let mut commands = String::new();
        if self.family.has_v4() {
            commands += &format!("addr add {address}/24 dev {interface}\n");
        }
        if self.family.has_v6() {
            // The place is known to be free: nothing has to be asked first.
            commands += &format!("addr add {}/96 dev {interface} nodad\n", v6(address));
        }
        commands
    }

    /// The routes that a host has by this interface; the first one leads out.
    pub(crate) fn routes(&self, leads_out: bool) -> String {
        let interface = &self.interface;
        if !self.family.has_v4() {
            // The kernel has a route for multicast, and no router leads IPv6 on.
            return String::new();
        }
        // Multicast DNS needs a route of its own where there is no default.
        let multicast = format!("route replace 224.0.0.0/4 dev {interface} metric {}\n", self.metric());
        if leads_out {
            format!("{multicast}route replace default via {} dev {interface}\n", self.segment.gateway())
        } else {
            multicast
        }
    }

    fn metric(&self) -> u32 {
        let digits = self.interface.trim_start_matches(|c: char| !c.is_ascii_digit());
        100 + digits.parse::<u32>().unwrap_or(0)
    }
}

/// The IPv6 address of whoever has this IPv4 address: of the prefix for documentation, with the segment in it.
pub(crate) fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let network = u16::from_be_bytes([a, b]);
    Ipv6Addr::new(0x2001, 0xdb8, network, c.into(), 0, 0, 0, d.into())
}

impl Drop for Port {
    fn drop(&mut self) {
        if self.strand.take().is_none()
            && let Err(error) = self.lab.switch.ip(&format!("link del {}\n", self.outer))
        {
            tracing::debug!(%error, "the interface was gone already");
        }
    }
}
