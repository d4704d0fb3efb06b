//! The two hosts, and what commands on one of them find there.

use anyhow::Result;
use malai_e2e::cluster::Cluster;
use malai_e2e::lab::{Cmd, Host, Lab};

/// The size of large output and input: many times all windows and pipes together.
pub(crate) const LARGE: usize = 64 * 1024 * 1024;
/// A file of [`LARGE`] bytes, the same on both hosts.
pub(crate) const LARGE_FILE: &str = "/tmp/large";
/// A user of the target that is not root.
pub(crate) const USER: &str = "deploy";

/// A cluster of laptop, from which malai is run, and web01, on which everything runs.
#[derive(Debug)]
pub(crate) struct Stage {
    company: Cluster,
    web01: Host,
    _lab: Lab,
}

impl Stage {
    /// Builds it.
    pub(crate) fn open() -> Result<Self> {
        let lab = Lab::new("differential")?;
        let lan = lab.segment("lan")?;
        let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
        let web01 = lab.host("web01").on(&lan).boot()?;
        web01.add_user(USER)?;
        company.enrol(&web01)?;
        // Nothing of how the daemon was started may show in a command.
        let odd =
            "umask 077; export SECRET=daemon LC_ALL=C GREP_COLORS=; trap '' HUP INT PIPE; cd /usr; exec malai daemon";
        web01.run(Cmd::new(["bash", "-c", odd]))?.success()?;
        company.linked(&web01)?;
        company.publish("machine.web01", &format!("users = [\"root\", \"{USER}\"]"))?;
        company.ran_remotely(company.manager(), &web01)?;
        for host in [company.manager(), &web01] {
            host.write("/tmp/small", "one\ntwo\nthree\n")?;
            host.write("/tmp/empty", "")?;
            // Neither compressible nor periodic in any buffer's size, and the same everywhere.
            host.sh(&format!("seq 1 8388607 | head -c {LARGE} >{LARGE_FILE}"))?.success()?;
        }
        Ok(Self { company, web01, _lab: lab })
    }

    /// Where malai is typed.
    pub(crate) fn laptop(&self) -> &Host {
        self.company.manager()
    }

    /// Where commands run.
    pub(crate) fn web01(&self) -> &Host {
        &self.web01
    }
}
