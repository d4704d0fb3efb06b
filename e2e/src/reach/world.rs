//! A cluster on an internet of its own: a relay, a DNS server, a manager, and sites behind routers.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, start};
use crate::lab::{Family, Flow, Host, Lab, Nat, Router, Segment, Services, Wire};

/// Where a daemon in the background logs.
const LOG: &str = "/root/malai-home/daemon.log";

/// A cluster whose machines meet at its own relay; ops manages it, and is on the internet itself.
#[derive(Debug)]
pub struct World {
    /// The cluster: every machine may run commands on every other.
    pub company: Cluster,
    /// The internet.
    pub internet: Segment,
    /// Relay and DNS server.
    pub services: Services,
    /// The hosts on which they, and further relays, run.
    pub servers: Vec<Host>,
    /// The further relays.
    pub further: Vec<Services>,
    /// Everything else.
    pub lab: Lab,
}

/// A machine, and what lies between it and the internet.
#[derive(Debug)]
pub struct Site {
    /// The machine.
    pub host: Host,
    /// Its router, and the carrier's; none when it is on the internet itself.
    pub routers: Vec<Router>,
    /// The network that it is in.
    pub lan: Segment,
}

impl Site {
    /// Every address by which others may see it.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let outside = self.routers.iter().map(|router| IpAddr::V4(router.outside()));
        self.host.addresses().into_iter().chain(outside).collect()
    }
}

impl World {
    /// A world with IPv4 addresses.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn new(name: &str) -> Result<Self> {
        Self::of(name, Family::V4)
    }

    /// A world in which no directory tells where anybody is.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn without_directory(name: &str) -> Result<Self> {
        Self::build(name, Family::V4, &[0], false)
    }

    /// A world whose server and manager have these kinds of addresses.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn of(name: &str, family: Family) -> Result<Self> {
        Self::build(name, family, &[0], true)
    }

    /// A world with a relay at each of these distances from its middle, in milliseconds.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn with_relays(name: &str, delays_ms: &[u64]) -> Result<Self> {
        Self::build(name, Family::V4, delays_ms, true)
    }

    fn build(name: &str, family: Family, delays_ms: &[u64], directory: bool) -> Result<Self> {
        let lab = Lab::new(name)?;
        let internet = lab.internet()?;
        let (mut servers, mut further) = (Vec::new(), Vec::new());
        for (number, delay_ms) in delays_ms.iter().enumerate() {
            let name = format!("services{number}");
            let server = lab.host(&name).on(&internet).via(&Wire::delay_ms(*delay_ms)).family(family).boot()?;
            further.push(Services::start(&server)?);
            servers.push(server);
        }
        let ops = lab.host("ops").on(&internet).family(family).boot()?;
        let company = Cluster::init_between("company", ops, &further, further.first().filter(|_| directory))?;
        company.publish("defaults", "allow_from = [\"*\"]")?;
        ensure!(!further.is_empty(), "a world needs a relay");
        let services = further.remove(0);
        Ok(Self { company, internet, services, servers, further, lab })
    }

    /// A machine behind a router of this kind, or on the internet itself; a packet takes so long from there to the
    /// middle of the internet.
    ///
    /// # Errors
    /// When it cannot be set up, or does not join.
    pub fn site(&self, name: &str, nat: Option<Nat>, delay_ms: u64) -> Result<Site> {
        let wire = Wire::delay_ms(delay_ms);
        let site = match nat {
            None => {
                let host = self.lab.host(name).on(&self.internet).via(&wire).boot()?;
                Site { host, routers: Vec::new(), lan: self.internet.clone() }
            }
            Some(nat) => {
                let lan = self.lab.segment(name)?;
                let router = self.lab.router(name).between(&lan, &self.internet).nat(nat).via(&wire).start()?;
                Site { host: self.lab.host(name).on(&lan).boot()?, routers: vec![router], lan }
            }
        };
        self.join(&site.host)?;
        Ok(site)
    }

    /// Lets a host in and starts its daemon.
    ///
    /// # Errors
    /// When it does not join.
    pub fn join(&self, host: &Host) -> Result<()> {
        self.company.enrol(host)?;
        let keys = [self.company.id52(host)?, self.company.id52(self.company.manager())?];
        ensure!(keys[0] != keys[1], "{} has the manager's key", host.hostname());
        start(host)?;
        self.company.linked(host)
    }

    /// Checks that these machines, which are all there are, sent nothing to an address outside of the cluster: they
    /// talk to its server, to its routers and to each other. What one says of its address inside is tried by others too,
    /// in case both are there.
    ///
    /// # Errors
    /// With what was sent elsewhere.
    pub fn ensure_private(&self, hosts: &[&Host]) -> Result<()> {
        let all = hosts.iter().copied().chain(&self.servers).chain([self.company.manager()]);
        let known: Vec<_> = all.map(Host::ip).collect();
        for host in hosts {
            let mut outside = host.packets_outside(&[self.internet.prefix()])?;
            outside.retain(|Flow { to, .. }| !known.contains(to));
            ensure!(outside.is_empty(), "{} sent {outside:?}", host.hostname());
        }
        Ok(())
    }

    /// What the daemons of these machines logged, for a trial that failed.
    #[must_use]
    pub fn logs(&self, hosts: &[&Host]) -> String {
        let mut logs = String::new();
        for host in hosts {
            let log = host.read(LOG).unwrap_or_else(|error| format!("{error:#}"));
            logs += &format!("\n{} logged:\n{log}", host.hostname());
        }
        logs
    }
}
