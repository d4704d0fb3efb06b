//! A network namespace without a name: it exists as long as somebody holds it, so a killed run leaves nothing behind.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A handle on a network namespace; the namespace goes with its last handle and its last process.
#[derive(Debug, Clone)]
pub(crate) struct NetNs {
    file: Arc<File>,
}

impl NetNs {
    /// A fresh namespace with its loopback up and without IPv6.
    pub(crate) fn new() -> Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("cannot open a network namespace")
        })?;
        let namespace = Self { file: Arc::new(file) };
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Lets its interfaces have IPv6 addresses, its loopback at once.
    pub(crate) fn allow_ipv6(&self) -> Result<()> {
        self.sysctl("ipv6/conf/all/disable_ipv6", "0")?;
        self.sysctl("ipv6/conf/default/disable_ipv6", "0")
    }

    /// A path by which `ip link … netns PATH` finds this namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Moves the calling thread into this namespace.
    pub(crate) fn join(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs `work` on a thread that is inside this namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.join()?;
            work()
        })
    }

    /// Runs a batch of `ip` commands, one a line.
    pub(crate) fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch)
    }

    /// Loads an nft rule set.
    pub(crate) fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules)
    }

    /// What a program prints when it runs in this namespace.
    pub(crate) fn read(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.enter(|| {
            let output = command(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program} {arguments:?} failed: {stderr}");
            String::from_utf8(output.stdout).with_context(|| format!("{program} printed no text"))
        })
    }

    /// Sets a value below `/proc/sys/net`; one that this kernel does not have counts as set.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| match fs::write(&path, value) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            written => written.with_context(|| format!("cannot write {value} to {path}")),
        })
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let output = self.enter(|| {
            let mut child = command(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes()).with_context(|| format!("cannot write to {program}"))?;
            }
            child.wait_with_output().with_context(|| format!("cannot wait for {program}"))
        })?;
        if output.status.success() {
            return Ok(());
        }
        bail!("{program} refused: {}\nit was given:\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    }
}

/// Runs `work` on a thread of its own, because entering namespaces changes a thread for good.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
    command
}
