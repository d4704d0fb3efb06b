//! Where the rows of the fault table take place: a caller and a target, neither of them the cluster's manager.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Cluster, SOON, daemon_status, start, text};
use crate::lab::{Host, Lab, Nat, Router, Segment, Services, Wire, wait_for};

/// Where a daemon in the background logs.
const LOG: &str = "/root/malai-home/daemon.log";
/// How many lines of it are shown.
const LINES: usize = 40;

/// A cluster of three: ops manages it, and laptop runs commands on web01.
#[derive(Debug)]
pub struct Stage {
    /// The cluster.
    pub company: Cluster,
    /// The caller.
    pub laptop: Host,
    /// The target.
    pub web01: Host,
    /// What lies between the caller and everybody else.
    pub wire: Wire,
    /// The internet that they meet on, where they have one.
    pub net: Option<Net>,
    /// The segment of ops: the whole network, or the internet.
    pub lan: Segment,
    /// Everything else.
    pub lab: Lab,
}

/// A relay on an internet, and the routers of the caller and of the target.
#[derive(Debug)]
pub struct Net {
    /// The caller's router.
    pub home: Router,
    /// The target's router.
    pub site: Router,
    /// Relay and DNS server, until they are stopped.
    pub services: Mutex<Option<Services>>,
    /// The host that they run on.
    pub server: Host,
}

impl Stage {
    /// All on one segment, without a relay.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn segment() -> Result<Self> {
        let lab = Lab::new("survival")?;
        let lan = lab.segment("lan")?;
        let wire = Wire::plain();
        let laptop = lab.host("laptop").on(&lan).via(&wire).boot()?;
        let web01 = lab.host("web01").on(&lan).boot()?;
        let company = Cluster::init("company", lab.host("ops").on(&lan).boot()?)?;
        Self { company, laptop, web01, wire, net: None, lan, lab }.open()
    }

    /// Caller and target behind a router each, of this kind, with a relay on the internet between them.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn internet(nat: Nat) -> Result<Self> {
        let lab = Lab::new("survival")?;
        let internet = lab.internet()?;
        let server = lab.host("services").on(&internet).boot()?;
        let services = Services::start(&server)?;
        let wire = Wire::delay_ms(5);
        let (home, site) = (lab.segment("home")?, lab.segment("site")?);
        let home_router = lab.router("home").between(&home, &internet).nat(nat).via(&wire).start()?;
        let site_router = lab.router("site").between(&site, &internet).nat(nat).start()?;
        let laptop = lab.host("laptop").on(&home).boot()?;
        let web01 = lab.host("web01").on(&site).boot()?;
        let company = Cluster::init_at("company", lab.host("ops").on(&internet).boot()?, &services)?;
        let net = Net { home: home_router, site: site_router, services: Mutex::new(Some(services)), server };
        Self { company, laptop, web01, wire, net: Some(net), lan: internet, lab }.open()
    }

    /// Lets both in, and the caller run commands on the target.
    fn open(self) -> Result<Self> {
        self.company.join(&self.laptop)?;
        self.company.join(&self.web01)?;
        self.company.allow(&self.web01, &["laptop"])?;
        self.company.holds(&self.laptop, self.company.generation(self.company.manager())?)?;
        self.company.ran_remotely(&self.laptop, &self.web01)?;
        Ok(self)
    }

    /// Has the target wait for so long for a caller to come back.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn set_grace(&self, grace: Duration) -> Result<()> {
        self.company.publish("machine.web01", &format!("grace = \"{}s\"", grace.as_secs()))?;
        self.company.holds(&self.web01, self.company.generation(self.company.manager())?)
    }

    /// The network with a relay.
    ///
    /// # Errors
    /// When there is none.
    pub fn net(&self) -> Result<&Net> {
        self.net.as_ref().context("there is no internet on this stage")
    }

    /// A further network with a router to the internet, to be moved to; the same wire lies before it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn elsewhere(&self, name: &str) -> Result<(Segment, Router)> {
        let segment = self.lab.segment(name)?;
        let router = self.lab.router(name).between(&segment, &self.lan).via(&self.wire).start()?;
        Ok((segment, router))
    }

    /// Stops relay and DNS server: they are gone at once.
    ///
    /// # Errors
    /// When there are none.
    pub fn stop_services(&self) -> Result<()> {
        let stopped = self.net()?.services.lock().unwrap_or_else(PoisonError::into_inner).take();
        ensure!(stopped.is_some(), "the services are stopped already");
        Ok(())
    }

    /// Starts relay and DNS server again.
    ///
    /// # Errors
    /// When they do not start.
    pub fn start_services(&self) -> Result<()> {
        let net = self.net()?;
        let started = Services::start(&net.server)?;
        *net.services.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    /// How many connections caller and target have made by dialling, by their daemons' logs.
    #[must_use]
    pub fn handshakes(&self) -> u64 {
        let made = [&self.laptop, &self.web01].map(|host| {
            // A host that is off tells nothing.
            let log = host.read(LOG).unwrap_or_default();
            log.lines().filter(|line| line.contains("connected") && line.contains("dialed=true")).count() as u64
        });
        made.iter().sum()
    }

    /// The last lines that the daemons of caller and target logged.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for host in [&self.laptop, &self.web01] {
            let log = host.read(LOG).unwrap_or_else(|error| format!("{error:#}"));
            let skipped = log.lines().count().saturating_sub(LINES);
            let lines: Vec<&str> = log.lines().skip(skipped).collect();
            logs += &format!("\n{} logged at last:\n{}", host.hostname(), lines.join("\n"));
        }
        logs
    }

    /// The way from the caller to the target: `direct …` or `relay …`.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn path(&self) -> Result<String> {
        let seen = self.company.machine_seen_from(&self.laptop, &self.web01)?;
        text(&seen, "/connection/path").map(str::to_owned)
    }

    /// Waits until the way from the caller to the target is of this kind.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn wait_for_path(&self, kind: &str) -> Result<()> {
        wait_for(SOON, &format!("the way to web01 is {kind}"), || {
            Ok(self.path().is_ok_and(|path| path.starts_with(kind)).then_some(()))
        })
    }
}

/// Kills a process that the daemon's status names, `/pid` or `/executor_pid`, with SIGKILL.
///
/// # Errors
/// When there is none.
pub fn kill(host: &Host, pointer: &str) -> Result<()> {
    let pid = pid(host, pointer)?;
    host.run(["kill", "-KILL", &pid])?.success()?;
    Ok(())
}

/// The process that the daemon's status names, once it is there: an executor may be about to come.
///
/// # Errors
/// When it does not come.
pub fn pid(host: &Host, pointer: &str) -> Result<String> {
    wait_for(SOON, &format!("there is a {pointer}"), || {
        let status = daemon_status(host)?;
        Ok(status.pointer(pointer).filter(|pid| pid.is_u64()).map(ToString::to_string))
    })
}

/// Boots a host that lost its power, and starts its daemon.
///
/// # Errors
/// When one of them does not come up.
pub fn boot(host: &Host) -> Result<()> {
    host.boot()?;
    start(host)
}
