//! Control groups: one for each host, to freeze it as a whole and to be delegated to it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::wait::wait_until;

/// A cgroup2 directory that is removed with this value.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// A new group below the root of the hierarchy.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let group = Self { path: mount_point()?.join(name) };
        make(&group.path)?;
        Ok(group)
    }

    /// Makes a group inside this one, which goes with it.
    pub(crate) fn nest(&self, name: &str) -> Result<()> {
        make(&self.path.join(name))
    }

    /// The file by which processes move into this group, or (by name) into one inside it.
    pub(crate) fn processes(&self, nested: &str) -> Result<File> {
        let path = self.path.join(nested).join("cgroup.procs");
        File::options().write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// Stops or resumes every process in this group and below, and returns when that is so.
    pub(crate) fn set_frozen(&self, frozen: bool) -> Result<()> {
        let path = self.path.join("cgroup.freeze");
        let value = if frozen { "1" } else { "0" };
        fs::write(&path, value).with_context(|| format!("cannot write to {}", path.display()))?;
        let wanted = format!("frozen {value}");
        let events = self.path.join("cgroup.events");
        wait_until(Duration::from_secs(5), &format!("{} says `{wanted}`", events.display()), || {
            fs::read_to_string(&events).is_ok_and(|text| text.lines().any(|line| line == wanted))
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process of a killed host may still be on its way out of its group.
        let gone = wait_until(Duration::from_secs(5), "a group is empty", || remove_tree(&self.path));
        if gone.is_err() {
            tracing::warn!(path = %self.path.display(), "a control group of the lab is left behind");
        }
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot make the control group {}", path.display()))
}

/// Removes a group and all below it; true when nothing is left of it.
pub(crate) fn remove_tree(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else {
        return true;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_tree(&entry.path()) {
            return false;
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Where this machine shows its cgroup2 hierarchy: `/sys/fs/cgroup`, or below it on a hybrid machine.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mounts
        .lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))
        .find_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .context("no cgroup2 hierarchy is mounted, and hosts are frozen by it")
}
