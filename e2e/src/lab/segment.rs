//! A segment: one Ethernet broadcast domain with its own /24.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Result, ensure};

use super::Shared;
use super::traffic::Prefix;

/// The first address that a host or a router's outer side gets.
const FIRST: u8 = 11;
/// The router's own address in its inner segment.
pub(crate) const ROUTER: u8 = 1;
/// The gateway that takes everything and forwards nothing, where no router is.
const SINK: u8 = 254;

/// A switch with a /24, to which hosts and routers are plugged. Clones are the same segment.
#[derive(Debug, Clone)]
pub struct Segment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    bridge: String,
    prefix: [u8; 3],
    next: AtomicU8,
    routed: OnceLock<()>,
}

impl Segment {
    pub(crate) fn new(lab: &Shared, name: &str, prefix: [u8; 3]) -> Result<Self> {
        let bridge = format!("br{}", lab.next_name());
        let inner =
            Inner { name: name.to_owned(), bridge, prefix, next: AtomicU8::new(FIRST), routed: OnceLock::new() };
        let segment = Self { inner: Arc::new(inner) };
        let (bridge, sink) = (segment.bridge(), segment.address(SINK));
        lab.switch.ip(&format!(
            "link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n\
             addr add {sink}/24 dev {bridge}\n\
             link set {bridge} up\n"
        ))?;
        Ok(segment)
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its /24.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix::new(self.address(0), 24)
    }

    /// Where its hosts send what is for elsewhere: the router, or a sink that answers nothing.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(if self.inner.routed.get().is_some() { ROUTER } else { SINK })
    }

    /// The address with this last octet.
    #[must_use]
    pub fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.inner.prefix;
        Ipv4Addr::new(a, b, c, last)
    }

    pub(crate) fn bridge(&self) -> &str {
        &self.inner.bridge
    }

    /// An address that nobody in this segment has had.
    pub(crate) fn next_address(&self) -> Result<Ipv4Addr> {
        let last = self.inner.next.fetch_add(1, Ordering::Relaxed);
        ensure!((FIRST..SINK).contains(&last), "the segment {} is full", self.name());
        Ok(self.address(last))
    }

    /// Notes that a router leads out; one at most.
    pub(crate) fn lead_out(&self) -> Result<()> {
        ensure!(self.inner.routed.set(()).is_ok(), "the segment {} has a router already", self.name());
        Ok(())
    }
}
