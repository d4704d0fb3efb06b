//! A host that is switched on: its namespaces, its process 1, its control groups.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child as Process, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use super::disk::{Disk, INIT};
use super::group::Group;
use super::netns::{NetNs, on_own_thread};
use super::port::{Plug, Port};
use super::{Shared, traffic};

/// The namespaces of process 1, by the order in which they are entered: after the mounts change, nothing more is
/// looked up by path.
const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// The group in which commands start, inside the host's own.
const COMMANDS: &str = "commands";

/// A running host. Dropping it is a power cut.
#[derive(Debug)]
pub(crate) struct Machine {
    network: NetNs,
    ports: Vec<Port>,
    init: Process,
    inside: Arc<Inside>,
    group: Arc<Group>,
}

/// The way into a running host.
#[derive(Debug)]
pub(crate) struct Inside {
    network: NetNs,
    namespaces: Vec<(File, CloneFlags)>,
    group: Arc<Group>,
}

impl Machine {
    /// Switches a host on.
    pub(crate) fn boot(lab: &Arc<Shared>, name: &str, disk: &Disk, cgroups: bool, plugs: &[Plug]) -> Result<Self> {
        disk.clear_volatile()?;
        let network = NetNs::new()?;
        traffic::count(&network)?;
        let mut ports = Vec::new();
        for (number, plug) in plugs.iter().enumerate() {
            ports.push(plug.connect(lab, &network)?);
            network.ip(&plug.routes(number == 0))?;
        }
        let group = Arc::new(Group::new(&format!("{}-{name}", lab.id))?);
        group.nest(COMMANDS)?;
        group.nest("init.scope")?;
        let mut init = start_init(name, disk, cgroups, &network, &group)?;
        let namespaces = await_init(&mut init).and_then(|()| open_namespaces(init.id()));
        if namespaces.is_err() {
            end(&mut init);
        }
        let inside = Arc::new(Inside { network: network.clone(), namespaces: namespaces?, group: Arc::clone(&group) });
        Ok(Self { network, ports, init, inside, group })
    }

    pub(crate) fn inside(&self) -> Arc<Inside> {
        Arc::clone(&self.inside)
    }

    pub(crate) fn network(&self) -> &NetNs {
        &self.network
    }

    pub(crate) fn set_frozen(&self, frozen: bool) -> Result<()> {
        self.group.set_frozen(frozen)
    }

    /// Pulls the plug of the first interface and puts it in elsewhere.
    pub(crate) fn replug(&mut self, lab: &Arc<Shared>, plug: &Plug) -> Result<()> {
        ensure!(!self.ports.is_empty(), "there is no interface to plug in elsewhere");
        drop(self.ports.remove(0));
        self.ports.insert(0, plug.connect(lab, &self.network)?);
        self.network.ip(&plug.routes(true))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // First the network: a kernel that still reaches it would tell the peers of every TCP connection.
        self.ports.clear();
        end(&mut self.init);
    }
}

impl Inside {
    /// Moves the calling thread into the host; what it starts then runs there.
    pub(crate) fn enter(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_FS).context("cannot have a root directory of its own")?;
        self.network.join()?;
        for (namespace, kind) in &self.namespaces {
            setns(namespace, *kind).context("cannot enter a namespace of the host")?;
        }
        Ok(())
    }

    /// The file by which a command moves into the host's group for commands.
    pub(crate) fn commands(&self) -> Result<File> {
        self.group.processes(COMMANDS)
    }
}

fn start_init(name: &str, disk: &Disk, cgroups: bool, network: &NetNs, group: &Group) -> Result<Process> {
    let processes = group.processes("")?;
    on_own_thread(move || {
        let own = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(own).context("cannot make the host's namespaces")?;
        network.join()?;
        disk.mount()?;
        nix::unistd::sethostname(name).with_context(|| format!("cannot set the hostname {name}"))?;
        unshare(CloneFlags::CLONE_NEWPID).context("cannot make a process table")?;
        let mut command = Command::new(format!("/usr/local/bin/{INIT}"));
        command.args(cgroups.then_some("--cgroups")).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        start_in(&mut command, processes);
        command.spawn().with_context(|| format!("cannot start {INIT}"))
    })
}

/// Has a command start in a control group and in a session of its own, without a controlling terminal.
pub(crate) fn start_in(command: &mut Command, processes: File) {
    let prepare = move || {
        (&processes).write_all(b"0")?;
        nix::unistd::setsid()?;
        Ok(())
    };
    #[allow(unsafe_code, reason = "two system calls without allocation, as is allowed between fork and exec")]
    unsafe {
        command.pre_exec(prepare);
    }
}

fn await_init(init: &mut Process) -> Result<()> {
    let stdout = init.stdout.take().context("process 1 has no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("cannot read from process 1")?;
    ensure!(line.trim() == "ready", "process 1 did not get ready: {line}");
    Ok(())
}

fn open_namespaces(process: u32) -> Result<Vec<(File, CloneFlags)>> {
    let open = |(name, kind)| {
        let path = format!("/proc/{process}/ns/{name}");
        Ok((File::open(&path).with_context(|| format!("cannot open {path}"))?, kind))
    };
    NAMESPACES.into_iter().map(open).collect()
}

/// Kills process 1, and with it every process of the host.
fn end(init: &mut Process) {
    if let Err(error) = init.kill().and_then(|()| init.wait()) {
        tracing::warn!(%error, "process 1 of a host may be left behind");
    }
}
