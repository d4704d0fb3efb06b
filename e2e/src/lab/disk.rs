//! A host's disk: what it has for itself of the file system, and keeps over a power cut.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::peers;

/// Process 1 of every host.
pub(crate) const INIT: &str = "malai-lab-init";
/// The helper that serves a relay and a DNS server.
pub(crate) const NET: &str = "malai-lab-net";
/// The helper that is an HTTP proxy.
pub(crate) const PROXY_PROGRAM: &str = "malai-lab-proxy";
/// The command of the fault table.
pub(crate) const DRIVER: &str = "malai-lab-driver";
/// The program that the lab is for.
pub(crate) const MALAI: &str = "malai";
/// Where programs of the lab are found inside a host.
const BIN: &str = "/usr/local/bin";
/// Below that: the packages of the peers in other languages, and their sources.
const PEERS_MOUNTS: (&str, &str) = ("peers", "peers/src");

/// Directories of the disk, where they are mounted, and their permissions.
const OWN: [(&str, &str, u32); 4] =
    [("root", "/root", 0o700), ("home", "/home", 0o755), ("run", "/run", 0o755), ("tmp", "/tmp", 0o1777)];

/// The part of the file system that belongs to one host.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// An empty disk for a host of this name.
    pub(crate) fn new(path: PathBuf, hostname: &str, nameserver: &str) -> Result<Self> {
        let disk = Self { path };
        for (name, _, mode) in OWN.into_iter().chain([("etc", "", 0o755), ("work", "", 0o700), ("bin", "", 0o755)]) {
            make_directory(&disk.path.join(name), mode)?;
        }
        let id = hostname.bytes().fold(std::process::id(), |id, byte| id.rotate_left(5) ^ u32::from(byte));
        disk.write_etc("hostname", &format!("{hostname}\n"))?;
        disk.write_etc("hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n"))?;
        disk.write_etc("resolv.conf", &format!("nameserver {nameserver}\noptions timeout:1 attempts:1\n"))?;
        disk.write_etc("machine-id", &format!("{id:032x}\n"))?;
        Ok(disk)
    }

    fn write_etc(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join("etc").join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Empties what does not outlive a boot.
    pub(crate) fn clear_volatile(&self) -> Result<()> {
        for (name, _, mode) in OWN {
            if name == "run" || name == "tmp" {
                let path = self.path.join(name);
                fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
                make_directory(&path, mode)?;
            }
        }
        Ok(())
    }

    /// Mounts it in the mount namespace of the calling thread, and whatever else a host has for itself.
    pub(crate) fn mount(&self) -> Result<()> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
        self.mount_programs()?;
        self.mount_etc()?;
        umount2("/sys", MntFlags::MNT_DETACH).context("cannot unmount the old /sys")?;
        filesystem("sysfs", "/sys", "")?;
        // cgroup2 is mounted there by process 1, or by nobody: then mountinfo shows no hierarchy.
        filesystem("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
        filesystem("tmpfs", "/dev/shm", "mode=1777")?;
        // The disk itself lies below /tmp, which is the last to be covered.
        for (name, target, _) in OWN {
            bind(&self.path.join(name), Path::new(target))?;
        }
        Ok(())
    }

    fn mount_programs(&self) -> Result<()> {
        let directory = self.path.join("bin");
        let mut programs = vec![(INIT, program(INIT)?)];
        for name in [NET, PROXY_PROGRAM, DRIVER] {
            if let Ok(path) = program(name) {
                programs.push((name, path));
            }
        }
        if let Some(path) = malai() {
            programs.push((MALAI, path));
        }
        for (name, source) in programs {
            let target = directory.join(name);
            drop(File::create(&target).with_context(|| format!("cannot make {}", target.display()))?);
            bind(&source, &target)?;
        }
        if let Some((packages, sources)) = peers::installed() {
            make_directory(&directory.join(PEERS_MOUNTS.0), 0o755)?;
            bind(&packages, &directory.join(PEERS_MOUNTS.0))?;
            bind(&sources, &directory.join(PEERS_MOUNTS.1))?;
        }
        bind(&directory, Path::new(BIN))
    }

    fn mount_etc(&self) -> Result<()> {
        let (upper, work) = (self.path.join("etc"), self.path.join("work"));
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
        filesystem("overlay", "/etc", &options)
    }
}

/// The binary under test, by the variable that the test script sets.
pub(crate) fn malai() -> Option<PathBuf> {
    std::env::var_os("MALAI_BIN").map(PathBuf::from)
}

/// A helper binary of this package: cargo puts it one directory above the tests.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let path = own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    path.with_context(|| format!("{name} is not built beside {}", own.display()))
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn filesystem(kind: &str, target: &str, options: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount {kind} at {target} with {options:?}"))
}
