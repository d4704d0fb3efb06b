//! A port: the connection of one interface, in a host or a router, to a segment.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::netns::NetNs;
use super::wire::Strand;
use super::{Segment, Shared, Wire};

/// How an interface is to be connected.
#[derive(Debug, Clone)]
pub(crate) struct Plug {
    /// The interface's name inside.
    pub(crate) interface: String,
    pub(crate) segment: Segment,
    pub(crate) wire: Option<Wire>,
    pub(crate) address: Ipv4Addr,
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
        inside
            .ip(&format!(
                "link set {interface} address 02:6c:{a:02x}:{b:02x}:{c:02x}:{d:02x}\n\
                 addr add {}/24 dev {interface}\n\
                 link set {interface} up\n",
                self.address
            ))
            .with_context(what)?;
        Ok(port)
    }

    /// The routes that a host has by this interface; the first one leads out.
    pub(crate) fn routes(&self, leads_out: bool) -> String {
        let interface = &self.interface;
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

impl Drop for Port {
    fn drop(&mut self) {
        if self.strand.take().is_none()
            && let Err(error) = self.lab.switch.ip(&format!("link del {}\n", self.outer))
        {
            tracing::debug!(%error, "the interface was gone already");
        }
    }
}
