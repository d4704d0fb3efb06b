//! Routers between a private segment and another, with the kinds of address translation that exist in the wild.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::netns::NetNs;
use super::port::{Family, Plug, Port};
use super::segment::ROUTER;
use super::traffic::Prefix;
use super::{Segment, Shared, Wire};

/// How a router translates addresses. The terms are those of RFC 4787.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Endpoint-independent mapping and filtering: once a host has sent from a port, anybody reaches it there.
    FullCone,
    /// A full cone whose customers reach each other by their outer addresses too (RFC 6888): a carrier's.
    Carrier,
    /// Endpoint-independent mapping, address-and-port-dependent filtering: the usual home router.
    PortRestricted,
    /// Address-and-port-dependent mapping: another outer port for every destination.
    Symmetric,
    /// A firewall that lets out TCP, and no UDP at all.
    UdpBlocked,
    /// A firewall that lets out TCP to this one address and port, and nothing else: a proxy's.
    Only(SocketAddrV4),
}

/// A router to be.
#[derive(Debug)]
pub struct RouterBuilder {
    lab: Arc<Shared>,
    name: String,
    sides: Option<(Segment, Segment)>,
    nat: Nat,
    wire: Option<Wire>,
}

/// A running router; dropping it takes it down.
#[derive(Debug)]
pub struct Router {
    name: String,
    namespace: NetNs,
    outside: Ipv4Addr,
    _ports: [Port; 2],
}

impl RouterBuilder {
    pub(crate) fn new(lab: Arc<Shared>, name: &str) -> Self {
        Self { lab, name: name.to_owned(), sides: None, nat: Nat::PortRestricted, wire: None }
    }

    /// Leads from `inner` out to `outer`. Hosts of `inner` that boot later have it as their default gateway.
    #[must_use]
    pub fn between(mut self, inner: &Segment, outer: &Segment) -> Self {
        self.sides = Some((inner.clone(), outer.clone()));
        self
    }

    /// How it translates; port-restricted unless told.
    #[must_use]
    pub fn nat(mut self, nat: Nat) -> Self {
        self.nat = nat;
        self
    }

    /// Connects its outer side by a wire.
    #[must_use]
    pub fn via(mut self, wire: &Wire) -> Self {
        self.wire = Some(wire.clone());
        self
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// When it has no two sides, when `inner` has a router already, or when the kernel refuses.
    pub fn start(self) -> Result<Router> {
        let Self { lab, name, sides, nat, wire } = self;
        let what = format!("cannot start the router {name}");
        let (inner, outer) = sides.with_context(|| format!("{what}: between what?"))?;
        inner.lead_out()?;
        let namespace = NetNs::new().with_context(|| what.clone())?;
        namespace.sysctl("ipv4/ip_forward", "1")?;
        namespace.sysctl("ipv4/conf/all/rp_filter", "1")?;
        let outside = outer.next_address()?;
        let lan = Plug {
            interface: "lan".into(),
            segment: inner.clone(),
            wire: None,
            address: inner.address(ROUTER),
            family: Family::V4,
        };
        let wan = Plug { interface: "wan".into(), segment: outer, wire, address: outside, family: Family::V4 };
        let ports = [lan.connect(&lab, &namespace)?, wan.connect(&lab, &namespace)?];
        namespace.ip(&wan.routes(true)).with_context(|| what.clone())?;
        namespace.nft(&rules(nat, inner.prefix(), outside)).with_context(|| what)?;
        Ok(Router { name, namespace, outside, _ports: ports })
    }
}

impl Router {
    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the outer segment, by which what is behind it is seen.
    #[must_use]
    pub fn outside(&self) -> Ipv4Addr {
        self.outside
    }

    /// Its outer side loses, and no longer loses, its link.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        // Taking the inner side down keeps the outer side's routes, and cuts just as well.
        self.namespace.ip(&format!("link set lan {state}\n"))
    }

    /// Lets no UDP through any more, in either direction and also where it flows already; or lets it through again.
    ///
    /// # Errors
    ///
    /// When `nft` refuses.
    pub fn set_udp(&self, open: bool) -> Result<()> {
        let blocked = if open { "" } else { "add rule ip router changing meta l4proto udp drop\n" };
        self.namespace.nft(&format!("flush chain ip router changing\n{blocked}"))
    }
}

/// The rule set of a kind of router. Chains are not called `fwd`: nft has that for a keyword.
fn rules(nat: Nat, inner: Prefix, outside: Ipv4Addr) -> String {
    let translation = match nat {
        Nat::FullCone => cone(inner, outside, ""),
        Nat::Carrier => cone(inner, outside, "\"lan\", "),
        Nat::PortRestricted | Nat::UdpBlocked | Nat::Only(_) => outgoing("masquerade"),
        Nat::Symmetric => outgoing("masquerade random,fully-random"),
    };
    let mut blocked = "";
    if nat == Nat::UdpBlocked {
        blocked = "meta l4proto udp drop";
    }
    let mut to = String::new();
    if let Nat::Only(only) = nat {
        to = format!("ip daddr {} tcp dport {}", only.ip(), only.port());
    }
    // Unsolicited packets must be dropped on the outside, or each leaves a connection-tracking entry that takes the
    // port, and hole punching fails for good.
    format!(
        r#"table ip router {{
  {translation}
  chain changing {{ type filter hook forward priority -10; policy accept;
  }}
  chain through {{ type filter hook forward priority 0; policy drop;
    {blocked}
    ct state established,related accept
    ct status dnat accept
    iifname "lan" oifname "wan" {to} accept
  }}
  chain own {{ type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }}
}}
"#
    )
}

/// Mappings that anybody may use from the outside, and from these further interfaces.
fn cone(inner: Prefix, outside: Ipv4Addr, further: &str) -> String {
    format!(
        r#"map cone {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65535; }}
  chain incoming {{ type nat hook prerouting priority -100; policy accept;
    iifname {{ {further}"wan" }} ip daddr {outside} meta l4proto udp dnat ip to udp dport map @cone
  }}
  chain outgoing {{ type nat hook postrouting priority 100; policy accept;
    oifname {{ {further}"wan" }} ip saddr {inner} meta l4proto udp update @cone {{ udp sport : ip saddr . udp sport }} snat to {outside}
    oifname "wan" snat to {outside}
  }}"#
    )
}

fn outgoing(how: &str) -> String {
    format!("chain outgoing {{ type nat hook postrouting priority 100; policy accept; oifname \"wan\" {how}\n  }}")
}
