//! A cluster on hosts of the lab, in the words of a person who types `malai`.
//!
//! ```no_run
//! use malai_e2e::cluster::Cluster;
//! use malai_e2e::lab::Lab;
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let lan = lab.segment("lan")?;
//! let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
//! let web01 = lab.host("web01").on(&lan).boot()?;
//! company.join(&web01)?;
//! company.ran_remotely(company.manager(), &web01)?;
//! # Ok(())
//! # }
//! ```

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Child, Cmd, Host, Output, Services, wait_for};
use crate::toml;

/// How long a state of a cluster may take to come, on a busy machine.
pub const SOON: Duration = Duration::from_secs(15);

/// `malai` with these words.
pub fn malai<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Cmd {
    let words = words.into_iter().map(|word| word.as_ref().to_owned());
    Cmd::new(std::iter::once("malai".into()).chain(words))
}

/// Sets what daemons of the lab log: connections too, which tests count, and which show what went wrong.
const LOG_FILTER: &str = "warn,malai=info,malai_daemon=info,malai_daemon::net::pool=debug,malai_daemon::clusters=debug";

/// `malai daemon` with these further words, with a log that says more than by default.
pub fn daemon<const N: usize>(words: [&str; N]) -> Cmd {
    malai(std::iter::once("daemon").chain(words)).env("MALAI_LOG", LOG_FILTER)
}

/// Starts the daemon in the background.
///
/// # Errors
/// When it does not get ready.
pub fn start(host: &Host) -> Result<()> {
    host.run(daemon([]))?.success()?;
    Ok(())
}

/// Stops the daemon, or agent.
///
/// # Errors
/// When it does not end.
pub fn stop(host: &Host) -> Result<()> {
    host.run(malai(["daemon", "stop"]))?.success()?;
    Ok(())
}

/// What `malai daemon status --json` says of the daemon or agent of a host; null when there is none.
///
/// # Errors
/// When it says nothing.
pub fn daemon_status(host: &Host) -> Result<Value> {
    let output = host.run(malai(["daemon", "status", "--json"]))?;
    let mut document = json(&output)?;
    Ok(document.get_mut("daemon").context("no daemon in the status")?.take())
}

/// The lines of a host's audit, oldest first.
///
/// # Errors
/// When it cannot be read.
pub fn audit(host: &Host) -> Result<Vec<Value>> {
    let output = host.run(malai(["audit", "--json"]))?.success()?;
    output.text().lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Standard output as one JSON document.
///
/// # Errors
/// When it is none.
pub fn json(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON: {:?}; its errors: {}", output.text(), output.error_text()))
}

/// The text at this place of a JSON document.
///
/// # Errors
/// When there is none.
pub fn text<'v>(document: &'v Value, pointer: &str) -> Result<&'v str> {
    let found = document.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("no text at {pointer} in {document}"))
}

/// How many processes of a host have this text in their command line.
///
/// # Errors
/// When the host is off.
pub fn running(host: &Host, words: &str) -> Result<usize> {
    host.inside(|| {
        let mut found = 0;
        for entry in std::fs::read_dir("/proc")? {
            // A process that ends meanwhile has no command line any more.
            let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found += usize::from(line.contains(words));
        }
        Ok(found)
    })
}

/// A cluster, with the host that manages it.
#[derive(Debug)]
pub struct Cluster {
    alias: String,
    manager: Host,
}

/// Making it, and letting machines in.
impl Cluster {
    /// Makes a private cluster and starts the manager's daemon.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn init(alias: &str, manager: Host) -> Result<Self> {
        let cluster = Self::on_disk(alias, manager, &["--private"])?;
        start(&cluster.manager)?;
        Ok(cluster)
    }

    /// Makes a cluster whose machines meet at this relay and find each other by this DNS server, and starts the
    /// manager's daemon.
    ///
    /// # Errors
    /// When malai refuses, or the relay does not come to know the manager.
    pub fn init_at(alias: &str, manager: Host, services: &Services) -> Result<Self> {
        Self::init_between(alias, manager, std::slice::from_ref(services), Some(services))
    }

    /// The same with several relays, and with this DNS server or none.
    ///
    /// # Errors
    /// When malai refuses, or no relay comes to know the manager.
    pub fn init_between(alias: &str, manager: Host, relays: &[Services], dns: Option<&Services>) -> Result<Self> {
        let cluster = Self::on_disk(alias, manager, &[])?;
        let authorities: String = relays.iter().map(|relay| relay.authority.as_str()).collect();
        let relays: Vec<&str> = relays.iter().map(|relay| relay.relay.as_str()).collect();
        let discovery: Vec<&str> = dns.iter().map(|dns| dns.pkarr.as_str()).collect();
        cluster.set("network", &format!("relays = {relays:?}"))?;
        cluster.set("network", &format!("discovery = {discovery:?}"))?;
        cluster.set("network", &format!("ca = {authorities:?}"))?;
        // Signed, and not published: there is no daemon yet.
        cluster.rescan_with(&[])?.exited(1)?;
        start(&cluster.manager)?;
        wait_for(SOON, "the manager is known to the relay", || {
            let status = cluster.status(&cluster.manager)?;
            let known = status.get("join_addresses").map(Value::to_string).unwrap_or_default();
            Ok(relays.iter().any(|relay| known.contains(relay)).then_some(()))
        })?;
        Ok(cluster)
    }

    /// Makes a cluster with these options, and starts nothing.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn on_disk(alias: &str, manager: Host, options: &[&str]) -> Result<Self> {
        manager.run(malai(["cluster", "init", alias].iter().chain(options)))?.success()?;
        Ok(Self { alias: alias.to_owned(), manager })
    }

    /// The host that manages it.
    #[must_use]
    pub fn manager(&self) -> &Host {
        &self.manager
    }

    /// The target that means this host.
    #[must_use]
    pub fn target(&self, host: &Host) -> String {
        format!("{}.{}", host.hostname(), self.alias)
    }

    /// Makes an invite with these options and returns the token. Daemons of the lab are root's: where no user is named,
    /// commands run as root.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn invite(&self, options: &[&str]) -> Result<String> {
        let names_it = options.iter().any(|option| ["--username", "--relay"].contains(option));
        let root: &[&str] = if names_it { &[] } else { &["--username", "root"] };
        self.invite_exactly(&[options, root].concat())
    }

    /// The same, and nothing is added to the options.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn invite_exactly(&self, options: &[&str]) -> Result<String> {
        let invite = malai(["cluster", "invite", &self.alias].iter().chain(options));
        let token = self.manager.run(invite)?.success()?.text();
        ensure!(!token.is_empty() && !token.contains(char::is_whitespace), "not a token alone: {token:?}");
        Ok(token)
    }

    /// Lets a host in by an invite for its own hostname; no daemon is started on it.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn enrol(&self, host: &Host) -> Result<()> {
        let token = self.invite(&["--name", host.hostname()])?;
        host.run(malai(["machine", "join", &token]))?.success()?;
        Ok(())
    }

    /// Lets a host in, starts its daemon, and waits until the manager sees its link.
    ///
    /// # Errors
    /// When malai refuses, or the link does not come.
    pub fn join(&self, host: &Host) -> Result<()> {
        self.enrol(host)?;
        start(host)?;
        self.linked(host)
    }

    /// Waits until the manager has a live connection to this host.
    ///
    /// # Errors
    /// When none comes.
    pub fn linked(&self, host: &Host) -> Result<()> {
        let what = format!("{} is linked to {}", host.hostname(), self.manager.hostname());
        wait_for(SOON, &what, || {
            let seen = self.machine_seen_from(&self.manager, host)?;
            Ok(seen.get("connection").filter(|connection| !connection.is_null()).map(|_| ()))
        })
    }
}

/// Its config.
impl Cluster {
    /// Where the manager has a file of the cluster.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        format!("/root/malai-home/clusters/{}/{file}", self.alias)
    }

    /// The text of `cluster.toml`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn config(&self) -> Result<String> {
        self.manager.read(self.path("cluster.toml"))
    }

    /// Writes `cluster.toml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        self.manager.write(self.path("cluster.toml"), text)
    }

    /// Edits `cluster.toml`: sets this `key = value` line of `[section]`.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn set(&self, section: &str, line: &str) -> Result<()> {
        self.write_config(&toml::set(&self.config()?, section, line))
    }

    /// Edits `cluster.toml`: removes this key of `[section]`.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn unset(&self, section: &str, key: &str) -> Result<()> {
        self.write_config(&toml::unset(&self.config()?, section, key))
    }

    /// `malai rescan` with these options, whatever comes of it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn rescan_with(&self, options: &[&str]) -> Result<Output> {
        self.manager.run(malai(["rescan", &self.alias].iter().chain(options)))
    }

    /// Publishes `cluster.toml`.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn rescan(&self) -> Result<Output> {
        self.rescan_with(&[])?.success()
    }

    /// Sets a line of `[section]` and publishes it.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn publish(&self, section: &str, line: &str) -> Result<()> {
        self.set(section, line)?;
        self.rescan()?;
        Ok(())
    }

    /// Lets these machines and groups, and no others, run commands on this host.
    ///
    /// # Errors
    /// When malai refuses.
    pub fn allow(&self, on: &Host, from: &[&str]) -> Result<()> {
        self.publish(&format!("machine.{}", on.hostname()), &format!("allow_from = {from:?}"))
    }
}

/// Commands.
impl Cluster {
    /// Runs a command from one host on another, by `malai TARGET -- WORDS`.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run(&self, from: &Host, on: &Host, words: &[&str]) -> Result<Output> {
        from.run(malai([&self.target(on), "--"].iter().chain(words)))
    }

    /// Starts such a command.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(&self, from: &Host, on: &Host, words: &[&str]) -> Result<Child> {
        from.spawn(malai([&self.target(on), "--"].iter().chain(words)))
    }

    /// Runs `hostname` from one host on another and checks that it really was another: the name is the other's own, and
    /// so is the key.
    ///
    /// # Errors
    /// When it did not run there.
    pub fn ran_remotely(&self, from: &Host, on: &Host) -> Result<()> {
        let output = self.run(from, on, &["hostname"])?.success()?;
        ensure!(output.text() == on.hostname(), "it ran on {}, not on {}", output.text(), on.hostname());
        ensure!(from.hostname() != on.hostname() && self.id52(from)? != self.id52(on)?, "it is the same machine");
        Ok(())
    }
}

/// What its machines say.
impl Cluster {
    /// This cluster in `malai status --no-probe --json` of a host: looking makes no connections.
    ///
    /// # Errors
    /// When the host does not know it.
    pub fn status(&self, host: &Host) -> Result<Value> {
        let status = json(&host.run(malai(["status", "--no-probe", "--json"]))?.success()?)?;
        let clusters = status.get("clusters").and_then(Value::as_array).context("no clusters")?;
        let found = clusters.iter().find(|cluster| cluster.get("alias") == Some(&self.alias.as_str().into()));
        found.cloned().with_context(|| format!("{} does not know {}: {status}", host.hostname(), self.alias))
    }

    /// What a host's status says of another.
    ///
    /// # Errors
    /// When it is not in that host's config.
    pub fn machine_seen_from(&self, from: &Host, machine: &Host) -> Result<Value> {
        let status = self.status(from)?;
        let machines = status.get("machines").and_then(Value::as_array).context("no machines")?;
        let found = machines.iter().find(|one| one.get("name") == Some(&machine.hostname().into()));
        found.cloned().with_context(|| format!("no {} in {status}", machine.hostname()))
    }

    /// The generation that a host holds.
    ///
    /// # Errors
    /// When it holds none.
    pub fn generation(&self, host: &Host) -> Result<u64> {
        let status = self.status(host)?;
        status.get("generation").and_then(Value::as_u64).with_context(|| format!("no generation: {status}"))
    }

    /// Waits until a host holds this generation.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn holds(&self, host: &Host, generation: u64) -> Result<()> {
        let what = format!("{} holds generation {generation}", host.hostname());
        wait_for(SOON, &what, || Ok((self.generation(host)? == generation).then_some(())))
    }

    /// The key of a host in this cluster, by its own `malai cluster list`, for which no daemon has to run.
    ///
    /// # Errors
    /// When it has none.
    pub fn id52(&self, host: &Host) -> Result<String> {
        let list = json(&host.run(malai(["cluster", "list", "--json"]))?.success()?)?;
        let clusters = list.as_array().context("not a list")?;
        let found = clusters.iter().find(|cluster| cluster.get("alias") == Some(&self.alias.as_str().into()));
        text(found.with_context(|| format!("no {} in {list}", self.alias))?, "/machine_id").map(str::to_owned)
    }

    /// The cluster's own key, and where its manager takes newcomers.
    ///
    /// # Errors
    /// When the manager does not say.
    pub fn join_point(&self) -> Result<(String, String)> {
        let status = self.status(&self.manager)?;
        Ok((text(&status, "/cluster")?.to_owned(), text(&status, "/join_addresses/0")?.to_owned()))
    }
}
