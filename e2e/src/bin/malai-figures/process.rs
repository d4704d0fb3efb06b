//! What the kernel says of a process on a host.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use malai_e2e::cluster::daemon_status;
use malai_e2e::lab::{Host, wait_for};

/// A process of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process<'h> {
    host: &'h Host,
    pid: u32,
}

impl<'h> Process<'h> {
    /// The host's daemon.
    pub(crate) fn daemon(host: &'h Host) -> Result<Self> {
        let status = daemon_status(host)?;
        let pid = status.get("pid").and_then(serde_json::Value::as_u64).with_context(|| format!("no pid: {status}"))?;
        Ok(Self { host, pid: u32::try_from(pid)? })
    }

    /// The one process whose command line is these words, or begins with them.
    pub(crate) fn find(host: &'h Host, words: &[&str]) -> Result<Self> {
        let begin = words.iter().map(|word| format!("{word}\0")).collect::<String>();
        let what = format!("{words:?} runs on {}", host.hostname());
        let pid = wait_for(Duration::from_secs(10), &what, || host.inside(|| find(&begin)))?;
        Ok(Self { host, pid })
    }

    /// Resident memory now, and the most since [`Self::forget_peak`], in KiB; `None` when it is gone.
    pub(crate) fn memory(&self) -> Result<Option<(u64, u64)>> {
        let Some(status) = self.read("status")? else { return Ok(None) };
        Ok(field(&status, "VmRSS").zip(field(&status, "VmHWM")))
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> Result<u64> {
        Ok(self.memory()?.with_context(|| format!("process {} is gone", self.pid))?.0)
    }

    /// Lets the peak begin again at the current size.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        let path = self.path("clear_refs");
        self.host.inside(|| fs::write(&path, "5").with_context(|| format!("cannot write {path}")))
    }

    /// Returns how often its threads have waited for something until now.
    pub(crate) fn waits(&self) -> Result<u64> {
        let tasks = self.path("task");
        self.host.inside(|| {
            let mut total = 0;
            for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
                let status = fs::read_to_string(task?.path().join("status")).context("a thread ended meanwhile")?;
                total += field(&status, "voluntary_ctxt_switches").context("no count of switches")?;
            }
            Ok(total)
        })
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }

    fn read(&self, file: &str) -> Result<Option<String>> {
        let path = self.path(file);
        self.host.inside(|| Ok(fs::read_to_string(path).ok()))
    }
}

/// A number from a status file.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The process whose command line begins so, on a thread that is inside the host. A path before the program's name does
/// not count.
fn find(begin: &str) -> Result<Option<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        // A process that ends meanwhile has no command line any more.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let (path, rest) = line.split_once('\0').unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or(path);
        if format!("{name}\0{rest}").starts_with(begin) {
            found.extend(entry.file_name().to_string_lossy().parse::<u32>());
        }
    }
    ensure!(found.len() < 2, "more than one process runs {begin:?}");
    Ok(found.pop())
}
