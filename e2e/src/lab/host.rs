//! A host: namespaces, a process 1, a disk, interfaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

use super::child::Child;
use super::command::{Cmd, Output};
use super::disk::Disk;
use super::machine::{Inside, Machine};
use super::netns::on_own_thread;
use super::port::{Family, Plug, v6};
use super::{Flow, Prefix, Segment, Shared, Wire, traffic};

/// A host to be.
#[derive(Debug)]
pub struct HostBuilder {
    lab: Arc<Shared>,
    name: String,
    cgroups: bool,
    family: Family,
    sockets: Vec<(Segment, Option<Wire>)>,
}

/// A host of the lab; dropping it takes it down with all that runs on it.
#[derive(Debug)]
pub struct Host {
    lab: Arc<Shared>,
    name: String,
    cgroups: bool,
    disk: Disk,
    state: Mutex<State>,
}

/// What changes over a host's life.
#[derive(Debug)]
struct State {
    plugs: Vec<Plug>,
    machine: Option<Machine>,
}

impl HostBuilder {
    pub(crate) fn new(lab: Arc<Shared>, name: &str) -> Self {
        Self { lab, name: name.to_owned(), cgroups: true, family: Family::V4, sockets: Vec::new() }
    }

    /// Plugs it into a segment; the first one is where it sends what is for elsewhere.
    #[must_use]
    pub fn on(mut self, segment: &Segment) -> Self {
        self.sockets.push((segment.clone(), None));
        self
    }

    /// Puts a wire with conditions into the latest connection.
    #[must_use]
    pub fn via(mut self, wire: &Wire) -> Self {
        if let Some((_, conditions)) = self.sockets.last_mut() {
            *conditions = Some(wire.clone());
        }
        self
    }

    /// The kinds of its addresses; IPv4 unless told.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Shows it no cgroup hierarchy. (The lab can still freeze it.)
    #[must_use]
    pub fn without_cgroups(mut self) -> Self {
        self.cgroups = false;
        self
    }

    /// Switches it on.
    ///
    /// # Errors
    ///
    /// When a part of it cannot be made; the message says which.
    pub fn boot(self) -> Result<Host> {
        let Self { lab, name, cgroups, family, sockets } = self;
        let mut plugs = Vec::new();
        for (number, (segment, wire)) in sockets.into_iter().enumerate() {
            let address = segment.next_address()?;
            plugs.push(Plug { interface: format!("eth{number}"), segment, wire, address, family });
        }
        let nameserver = plugs.first().map_or(Ipv4Addr::LOCALHOST, |plug| plug.segment.gateway());
        let disk = Disk::new(lab.directory.join(&name), &name, &nameserver.to_string())
            .with_context(|| format!("cannot make the disk of {name}"))?;
        let state = Mutex::new(State { plugs, machine: None });
        let host = Host { lab, name, cgroups, disk, state };
        host.boot()?;
        Ok(host)
    }
}

/// Power and files.
impl Host {
    /// Its hostname.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.name
    }

    /// Takes its power away: every process is gone at once, and nobody is told.
    ///
    /// The disk stays; [`boot`](Self::boot) starts it again. Without effect on a host that is off.
    pub fn power_cut(&self) {
        self.lock().machine = None;
    }

    /// Starts it again after a [power cut](Self::power_cut), with empty `/run` and `/tmp`.
    ///
    /// # Errors
    ///
    /// When it is on, or cannot start.
    pub fn boot(&self) -> Result<()> {
        let mut state = self.lock();
        anyhow::ensure!(state.machine.is_none(), "{} is on already", self.name);
        let booted = Machine::boot(&self.lab, &self.name, &self.disk, self.cgroups, &state.plugs);
        state.machine = Some(booted.with_context(|| format!("cannot boot {}", self.name))?);
        Ok(())
    }

    /// Closes the lid: no process runs on, and the network stays as it is.
    ///
    /// # Errors
    ///
    /// When it is off, or does not stop within 5 s.
    pub fn freeze(&self) -> Result<()> {
        self.with_machine(|machine| machine.set_frozen(true))
    }

    /// Opens the lid again.
    ///
    /// # Errors
    ///
    /// When it is off, or does not resume within 5 s.
    pub fn thaw(&self) -> Result<()> {
        self.with_machine(|machine| machine.set_frozen(false))
    }

    /// Writes a file, as root, with the directories above it.
    ///
    /// # Errors
    ///
    /// When it is off, or the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let (path, content) = (path.as_ref(), content.as_ref());
        self.inside(|| {
            let directory = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(directory).and_then(|()| fs::write(path, content))?;
            Ok(())
        })
        .with_context(|| format!("cannot write {} on {}", path.display(), self.name))
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it is off, or the file cannot be read or is no UTF-8.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        self.inside(|| Ok(fs::read_to_string(path)?))
            .with_context(|| format!("cannot read {} on {}", path.display(), self.name))
    }

    /// Whether there is something at a path.
    ///
    /// # Errors
    ///
    /// When it is off.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        self.inside(|| Ok(path.symlink_metadata().is_ok()))
    }

    /// Makes a user with a home directory and `/bin/sh`.
    ///
    /// # Errors
    ///
    /// When `useradd` refuses.
    pub fn add_user(&self, name: &str) -> Result<()> {
        self.run(["useradd", "--create-home", "--user-group", "--shell", "/bin/sh", name])?.success()?;
        Ok(())
    }

    /// Runs `work` on a thread that sees this host's files, processes, names and network, and can start no threads.
    ///
    /// # Errors
    ///
    /// When it is off, and whatever `work` returns.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = self.entrance()?;
        on_own_thread(|| {
            inside.enter()?;
            work()
        })
    }

    /// Runs `work` on a thread that has this host's network, and otherwise this process's own files and processes.
    ///
    /// Other than [`inside`](Self::inside), it may start threads, an async runtime for one; they have that network too.
    ///
    /// # Errors
    ///
    /// When it is off, and whatever `work` returns.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = self.with_machine(|machine| Ok(machine.network().clone()))?;
        network.enter(work)
    }

    fn entrance(&self) -> Result<Arc<Inside>> {
        self.with_machine(|machine| Ok(machine.inside()))
    }

    fn with_machine<T>(&self, work: impl FnOnce(&Machine) -> Result<T>) -> Result<T> {
        let state = self.lock();
        work(state.machine.as_ref().with_context(|| format!("{} is off", self.name))?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commands.
impl Host {
    /// Runs a command to its end, by default as root and for at most 30 s.
    ///
    /// # Errors
    ///
    /// When it cannot start, or is not over in time: the message holds what it printed so far. Any exit status is an
    /// [`Output`]; see [`Output::success`].
    pub fn run(&self, command: impl Into<Cmd>) -> Result<Output> {
        let command = command.into();
        let timeout = command.deadline();
        self.spawn(command)?.output_within(timeout)
    }

    /// Starts a command; dropping the [`Child`] kills it.
    ///
    /// # Errors
    ///
    /// When it cannot start.
    pub fn spawn(&self, command: impl Into<Cmd>) -> Result<Child> {
        let inside = self.entrance()?;
        Child::spawn(&inside, &self.name, command.into())
    }

    /// Runs a line of shell, as root.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn sh(&self, line: &str) -> Result<Output> {
        self.run(["sh", "-c", line])
    }
}

/// Network.
impl Host {
    /// Its address at its first interface. A host that is plugged in nowhere has 0.0.0.0.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.lock().plugs.first().map_or(Ipv4Addr::UNSPECIFIED, |plug| plug.address)
    }

    /// Its addresses at its first interface, of either kind.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let state = self.lock();
        let Some(plug) = state.plugs.first() else { return Vec::new() };
        let old = plug.family.has_v4().then_some(IpAddr::V4(plug.address));
        let new = plug.family.has_v6().then(|| IpAddr::V6(v6(plug.address)));
        old.into_iter().chain(new).collect()
    }

    /// Every packet that it sent, since it is on, by destination. What stayed inside it is not counted.
    ///
    /// # Errors
    ///
    /// When it is off.
    pub fn packets(&self) -> Result<Vec<Flow>> {
        self.with_machine(|machine| traffic::flows(machine.network()))
    }

    /// What it sent to any address outside all of these prefixes, or to a port of public services (DNS, HTTP, HTTPS,
    /// STUN, NAT-PMP, PCP, SSDP, QUIC address discovery) anywhere.
    ///
    /// # Errors
    ///
    /// When it is off.
    pub fn packets_outside(&self, allowed: &[Prefix]) -> Result<Vec<Flow>> {
        let mut flows = self.packets()?;
        flows.retain(|flow| flow.is_to_public_service() || !allowed.iter().any(|prefix| prefix.contains(flow.to)));
        Ok(flows)
    }

    /// Takes its first interface down (`ip link set down`), with the routes that went by it.
    ///
    /// # Errors
    ///
    /// When it is off, or has no interface.
    pub fn link_down(&self) -> Result<()> {
        self.with_first_plug(|machine, plug| machine.network().ip(&format!("link set {} down\n", plug.interface)))
    }

    /// Takes its first interface up again, and restores the routes.
    ///
    /// # Errors
    ///
    /// When it is off, or has no interface.
    pub fn link_up(&self) -> Result<()> {
        self.with_first_plug(|machine, plug| {
            let interface = &plug.interface;
            machine.network().ip(&format!("link set {interface} up\n{}", plug.routes(true)))
        })
    }

    /// Gives its first interface another address of the same segment.
    ///
    /// # Errors
    ///
    /// When it is off, has no interface, or the segment is full.
    pub fn change_address(&self) -> Result<()> {
        self.with_first_plug(|machine, plug| {
            plug.address = plug.segment.next_address()?;
            let (interface, addresses, routes) = (&plug.interface, plug.addresses(), plug.routes(true));
            machine.network().ip(&format!("addr flush dev {interface}\n{addresses}{routes}"))
        })
    }

    /// Carries it to another segment: its first interface is unplugged here and plugged in there.
    ///
    /// # Errors
    ///
    /// When it is off, has no interface, or the segment is full.
    pub fn move_to(&self, segment: &Segment, wire: Option<&Wire>) -> Result<()> {
        let mut state = self.lock();
        let State { plugs, machine } = &mut *state;
        let machine = machine.as_mut().with_context(|| format!("{} is off", self.name))?;
        let plug = plugs.first_mut().with_context(|| format!("{} has no interface", self.name))?;
        plug.segment = segment.clone();
        plug.wire = wire.cloned();
        plug.address = segment.next_address()?;
        machine.replug(&self.lab, plug)
    }

    fn with_first_plug<T>(&self, work: impl FnOnce(&Machine, &mut Plug) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        let State { plugs, machine } = &mut *state;
        let machine = machine.as_ref().with_context(|| format!("{} is off", self.name))?;
        work(machine, plugs.first_mut().with_context(|| format!("{} has no interface", self.name))?)
    }
}
