//! OpenSSH between the same hosts, with a connection that is kept: the fastest way to use it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use malai_e2e::lab::{Child, wait_for};

use crate::place::Place;

/// The server, where Debian installs it.
const SERVER: &str = "/usr/sbin/sshd";
const CONFIG: &str = "HostKey /root/host-key\nAuthorizedKeysFile /root/caller-key\nUsePAM no\nStrictModes no\n\
    UseDNS no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n";

/// Holds a server on web01, and a master connection to it from laptop.
#[derive(Debug)]
pub(crate) struct Ssh {
    /// Holds `ssh` with its options and the host; a command follows.
    pub(crate) words: Vec<String>,
    _server: Child,
    _master: Child,
}

impl Ssh {
    /// Starts both; `None` where OpenSSH is not installed.
    pub(crate) fn open(place: &Place) -> Result<Option<Self>> {
        let (laptop, web01) = (place.laptop(), place.web01());
        if !web01.exists(SERVER)? || !laptop.exists("/usr/bin/ssh")? {
            return Ok(None);
        }
        web01.sh("mkdir -p /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /root/host-key")?.success()?;
        laptop.sh("ssh-keygen -q -t ed25519 -N '' -f /root/key")?.success()?;
        web01.write("/root/caller-key", laptop.read("/root/key.pub")?)?;
        web01.write("/root/sshd_config", CONFIG)?;
        let server = web01.spawn([SERVER, "-D", "-e", "-f", "/root/sshd_config"])?;
        server.wait_for_error_line("Server listening", Duration::from_secs(10))?;
        let ip = web01.ip().to_string();
        let options = "-F none -i /root/key -o ControlPath=/tmp/master -o UserKnownHostsFile=/root/known \
            -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR";
        let words = |more: &[&str]| -> Vec<String> {
            let all = std::iter::once("ssh").chain(options.split_whitespace()).chain(more.iter().copied());
            all.map(str::to_owned).collect()
        };
        let master = laptop.spawn(words(&["-M", "-N", &format!("root@{ip}")]))?;
        wait_for(Duration::from_secs(10), "ssh has its master connection", || {
            let check = laptop.run(words(&["-O", "check", &ip]))?;
            Ok((check.code() == Some(0)).then_some(()))
        })
        .context("ssh between the hosts")?;
        Ok(Some(Self { words: words(&[&ip]), _server: server, _master: master }))
    }

    /// Returns the words that run this command.
    pub(crate) fn with<'w>(&'w self, command: &[&'w str]) -> Vec<&'w str> {
        self.words.iter().map(String::as_str).chain(command.iter().copied()).collect()
    }
}
