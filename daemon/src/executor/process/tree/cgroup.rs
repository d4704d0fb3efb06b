//! Sessions in cgroups v2, below the executor's own. No controller is enabled: they only hold processes together.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::process::{self, Process};

/// How deep, and how many, cgroups are looked at that a session made below its own.
const MAX_DEPTH: usize = 16;
const MAX_GROUPS: usize = 4096;
/// How long a cgroup may take to freeze: it is a matter of milliseconds, or something hangs in the kernel.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(200);

/// The cgroup that holds the cgroups of one executor's sessions.
#[derive(Debug)]
pub(crate) struct Base {
    path: PathBuf,
}

/// The cgroup of one session.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Base {
    /// Makes it where a writable cgroup v2 is mounted, or says why not.
    pub(crate) fn create(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("no list of mounts: {e}"))?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("no list of cgroups: {e}"))?;
        let mut why = "no cgroup v2 is mounted".to_owned();
        for own in own_directories(&mounts, &own) {
            match Self::create_below(&own, name) {
                Ok(base) => return Ok(base),
                Err(error) => why = format!("{}: {error}", own.display()),
            }
        }
        Err(why)
    }

    fn create_below(own: &Path, name: &str) -> io::Result<Self> {
        // To move a process, the kernel asks for write access to the common ancestor's file, which is this one.
        drop(OpenOptions::new().write(true).open(own.join("cgroup.procs"))?);
        let path = own.join(name);
        fs::create_dir(&path)?;
        let base = Self { path };
        base.usable()?;
        Ok(base)
    }

    fn usable(&self) -> io::Result<()> {
        let kind = fs::read_to_string(self.path.join("cgroup.type"))?;
        if kind.trim() != "domain" {
            return Err(io::Error::other(format!("its type is `{}`", kind.trim())));
        }
        drop(OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?);
        Ok(())
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup of a session, and opens it for its first process.
    pub(crate) fn group(&self, name: &str) -> io::Result<(Group, File)> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        let group = Group { path };
        match File::open(&group.path) {
            Ok(directory) => Ok((group, directory)),
            Err(error) => {
                prune(&group.path);
                Err(error)
            }
        }
    }
}

impl Drop for Base {
    /// What is empty goes with the executor; where processes were left behind, the next one looks again.
    fn drop(&mut self) {
        if !prune(&self.path) {
            tracing::info!(path = %self.path.display(), "processes that commands left behind live on in their cgroup");
        }
    }
}

impl Group {
    fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for group in groups(&self.path) {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            // Zero stands for a process of a pid namespace that is not shown here.
            pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        pids
    }

    /// Every process in it and below, with what is known of it.
    pub(crate) fn members(&self) -> Vec<Process> {
        self.pids().into_iter().filter_map(process::read).filter(|process| !process.dead).collect()
    }

    /// Sends KILL to all at once, so that none can fork away. Blocks for up to [`FREEZE_TIMEOUT`] where the kernel cannot do
    /// that itself.
    pub(crate) fn kill(&self) {
        // Since Linux 5.14.
        if fs::write(self.path.join("cgroup.kill"), "1").is_err() {
            self.freeze_and_kill();
        }
    }

    /// The same in two steps: what is frozen cannot fork, and dies of KILL without being thawed.
    fn freeze_and_kill(&self) {
        if fs::write(self.path.join("cgroup.freeze"), "1").is_ok() {
            let until = Instant::now() + FREEZE_TIMEOUT;
            // One that hangs in the kernel does not freeze, and does not fork.
            while !self.has_event("frozen 1") && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for process in self.members() {
            super::signal(&process, Signal::SIGKILL);
        }
    }

    fn has_event(&self, event: &str) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == event)
    }

    /// Whether a process lives in it or below. What cannot be read is not known to be empty.
    pub(crate) fn is_populated(&self) -> bool {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(events) => !events.lines().any(|line| line == "populated 0"),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Removes it if it is empty.
    pub(crate) fn remove(&self) -> bool {
        prune(&self.path)
    }
}

/// A cgroup and all below it, the deepest last.
fn groups(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut level = 0..1;
    for _ in 0..MAX_DEPTH {
        let start = found.len();
        for at in level {
            let entries = found.get(at).and_then(|path| fs::read_dir(path).ok());
            let below = entries.into_iter().flatten().flatten();
            let below = below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
            found.extend(below.take(MAX_GROUPS.saturating_sub(start)).collect::<Vec<_>>());
        }
        level = start..found.len();
    }
    found
}

/// Removes a cgroup and those below it as far as they are empty. True when it is gone.
pub(crate) fn prune(path: &Path) -> bool {
    let mut gone = true;
    for group in groups(path).iter().rev() {
        gone = match fs::remove_dir(group) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
    }
    gone
}

/// Kills the sessions of these names below `base`; says how many are still there.
pub(crate) fn kill_groups(base: &Path, names: &[String]) -> usize {
    let mut left = 0;
    for name in names {
        let group = Group { path: base.join(name) };
        if group.is_populated() {
            group.kill();
            left += 1;
        }
    }
    left
}

/// Where this process's own cgroup is in the file system, for every mount of cgroup v2 that shows it.
fn own_directories(mountinfo: &str, cgroup: &str) -> Vec<PathBuf> {
    let Some(own) = cgroup.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Vec::new();
    };
    mountinfo.lines().filter_map(|line| own_directory(line, own)).collect()
}

fn own_directory(line: &str, own: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let root = Path::new(fields.next()?);
    let point = unescape(fields.next()?);
    // Outside of what is mounted (another cgroup namespace) there is nothing to write to.
    let below = Path::new(own).strip_prefix(root).ok()?;
    let plain = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    plain.then(|| Path::new(&point).join(below))
}

/// A path as mountinfo writes it, with blanks and such as `\040`.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_on_unified_and_hybrid_machines() {
        let unified = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        let own = "0::/system.slice/malai.service\n";
        let there = PathBuf::from("/sys/fs/cgroup/system.slice/malai.service");
        assert_eq!(own_directories(unified, own), [there]);

        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        let own = "9:name=systemd:/x\n0::/\n";
        assert_eq!(own_directories(hybrid, own), [PathBuf::from("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_mount_that_does_not_show_the_own_cgroup_is_not_used() {
        let part = "31 23 0:28 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_directories(part, "0::/docker/abc/d\n"), [PathBuf::from("/sys/fs/cgroup/d")]);
        assert!(own_directories(part, "0::/other\n").is_empty());
        let outside = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert!(own_directories(outside, "0::/../x\n").is_empty());
        assert!(own_directories(outside, "1:name=systemd:/\n").is_empty());
    }

    /// What kernels before 5.14 do. Where no cgroup v2 can be written the tests of the executor say so.
    #[test]
    fn without_the_kernels_own_kill_all_are_frozen_and_die_frozen() {
        let Ok(base) = Base::create(&format!("malai-test-{}", std::process::id())) else {
            return;
        };
        let (group, _directory) = base.group("one").expect("room");
        let mut children: Vec<_> = (0..3)
            .map(|_| {
                let child = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
                fs::write(group.path.join("cgroup.procs"), child.id().to_string()).expect("moved");
                child
            })
            .collect();
        assert_eq!(group.members().len(), 3);
        group.freeze_and_kill();
        for child in &mut children {
            child.wait().expect("it died");
        }
        assert!(group.has_event("frozen 1") || !group.is_populated());
        assert!(group.remove());
    }

    #[test]
    fn blanks_in_a_mount_point_are_read_back() {
        let odd = "31 23 0:28 / /mnt/a\\040b rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_directories(odd, "0::/\n"), [PathBuf::from("/mnt/a b")]);
    }
}
