//! Hosts with an OpenSSH server, a host from which scripts are run, and what they look like before and after.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use malai_e2e::lab::{Child, Cmd, Host, Lab, Segment, wait_for};
use serde_json::Value;

/// Where Debian has the server.
const SERVER: &str = "/usr/sbin/sshd";
const CONFIG: &str = "HostKey /etc/ssh/lab-host-key\nAuthorizedKeysFile /etc/ssh/lab-caller-key\nUsePAM no\n\
    StrictModes no\nUseDNS no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n";
/// How long a script may take, with a debug build on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(300);
/// How long a state of a host may take to come.
const SOON: Duration = Duration::from_secs(15);

/// The scripts as they are here; a host of the lab may not see where the sources are.
const SCRIPTS: [(&str, &str); 5] = [
    ("e2e-two-hosts", include_str!("../../../scripts/e2e-two-hosts")),
    ("two-hosts/checks", include_str!("../../../scripts/two-hosts/checks")),
    ("two-hosts/report", include_str!("../../../scripts/two-hosts/report")),
    ("digitalocean", include_str!("../../../scripts/digitalocean")),
    ("multi-server", include_str!("../../../scripts/multi-server")),
];

/// Puts the scripts into `/root/scripts`.
pub(crate) fn install(host: &Host) -> Result<()> {
    ensure!(host.exists("/usr/local/bin/malai")?, "MALAI_BIN does not say where malai is");
    for (name, text) in SCRIPTS {
        host.write(format!("/root/scripts/{name}"), text)?;
    }
    host.sh("chmod 755 /root/scripts/* && mkdir -p /root/work")?.success()?;
    Ok(())
}

/// One of the scripts with these words.
pub(crate) fn script(name: &str, words: &[&str]) -> Cmd {
    let path = format!("/root/scripts/{name}");
    let words = std::iter::once(path.as_str()).chain(words.iter().copied());
    let command = Cmd::new(words).cwd("/root/work").timeout(LONG);
    command.env("MALAI_BIN", "/usr/local/bin/malai").env("MALAI_PAUSE", "0.2")
}

/// A document that a script has left.
pub(crate) fn document(host: &Host, path: &str) -> Result<Value> {
    let text = host.read(path)?;
    serde_json::from_str(&text).with_context(|| format!("no JSON in {path}: {text}"))
}

/// Starts an OpenSSH server that lets this key in.
pub(crate) fn serve_ssh(host: &Host, key: &str) -> Result<Child> {
    ensure!(host.exists(SERVER)?, "{SERVER} is missing (apt-get install openssh-server)");
    host.sh("mkdir -p /run/sshd /etc/ssh; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/lab-host-key")?.success()?;
    host.write("/etc/ssh/lab-caller-key", key)?;
    host.write("/etc/ssh/lab-config", CONFIG)?;
    let server = host.spawn([SERVER, "-D", "-e", "-f", "/etc/ssh/lab-config"])?;
    server.wait_for_error_line("Server listening", SOON)?;
    Ok(server)
}

/// What a host has: its processes, the files of its own, and the control groups of malai.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Possessions(String);

impl Possessions {
    /// What it has now.
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let find = "find /root /home /tmp /sys/fs/cgroup -path '/sys/*' ! -name 'malai-*' -o -print | sort";
        let files = host.sh(find)?.success()?.text();
        Ok(Self(format!("{}\n{files}", processes(host)?.join("\n"))))
    }

    /// Waits until the host has this again, and nothing else.
    pub(crate) fn are_all_of(&self, host: &Host) -> Result<()> {
        let mut last = None;
        let again = wait_for(SOON, "it is as before", || {
            last = Some(Self::of(host)?);
            Ok((last.as_ref() == Some(self)).then_some(()))
        });
        let now = last.map(|now| now.0).unwrap_or_default();
        again.with_context(|| format!("{} had before:\n{}\nand now:\n{now}", host.hostname(), self.0))
    }
}

/// The command lines of a host's processes.
pub(crate) fn processes(host: &Host) -> Result<Vec<String>> {
    let mut found = host.inside(|| {
        let entries = std::fs::read_dir("/proc")?;
        // A process that ends meanwhile has no command line any more, and a thread of the kernel never had one.
        let lines = entries.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " "));
        Ok(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>())
    })?;
    found.sort();
    Ok(found)
}

/// Two hosts with an OpenSSH server, and a third one that reaches them as `a` and `b`: as root, and as another user.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) driver: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
    before: [Possessions; 2],
    _servers: [Child; 2],
    _lab: Lab,
}

impl Stage {
    /// Boots them.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.segment("lan")?;
        let driver = driver(&lab, &lan)?;
        let (a, b) = (lab.host("north").on(&lan).boot()?, lab.host("south").on(&lan).boot()?);
        b.add_user("deploy")?;
        // Without PAM the server lets nobody in whose password is locked.
        b.run(["usermod", "-p", "*", "deploy"])?.success()?;
        // A shell that talks before it is asked.
        a.write("/root/.bashrc", "echo Welcome to north; echo; echo -n malai")?;
        let key = driver.read("/root/key.pub")?;
        let servers = [serve_ssh(&a, &key)?, serve_ssh(&b, &key)?];
        let config = format!(
            "Host a\n HostName {}\n User root\nHost b\n HostName {}\n User deploy\nHost *\n IdentityFile /root/key\n \
             UserKnownHostsFile /root/known\n StrictHostKeyChecking accept-new\n",
            a.ip(),
            b.ip()
        );
        driver.write("/root/ssh_config", config)?;
        let before = [Possessions::of(&a)?, Possessions::of(&b)?];
        Ok(Self { driver, a, b, before, _servers: servers, _lab: lab })
    }

    /// `scripts/e2e-two-hosts` between the two, in a private cluster, with these options; the report goes to `/root/report`.
    pub(crate) fn two_hosts(options: &[&str]) -> Cmd {
        let words = ["-F", "/root/ssh_config", "--private", "--report", "/root/report"];
        let words: Vec<_> = words.iter().chain(options).chain(&["a", "b"]).copied().collect();
        script("e2e-two-hosts", &words)
    }

    /// Checks that the two hosts have nothing that they did not have before.
    pub(crate) fn is_as_before(&self) -> Result<()> {
        let [a, b] = &self.before;
        a.are_all_of(&self.a)?;
        b.are_all_of(&self.b)
    }
}

/// A host with the scripts and a key for ssh.
pub(crate) fn driver(lab: &Lab, lan: &Segment) -> Result<Host> {
    let driver = lab.host("driver").on(lan).boot()?;
    install(&driver)?;
    driver.sh("ssh-keygen -q -t ed25519 -N '' -f /root/key")?.success()?;
    Ok(driver)
}
