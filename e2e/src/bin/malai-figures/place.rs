//! Where is measured: laptop, the cluster's manager, and web01.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use malai_e2e::cluster::Cluster;
use malai_e2e::lab::{Host, Lab, Segment, Wire};

/// Two hosts, each with a daemon, and a private cluster of both.
#[derive(Debug)]
pub(crate) struct Place {
    company: Cluster,
    web01: Host,
    lan: Segment,
    lab: Lab,
}

impl Place {
    /// Builds it, with this wire before web01, if there is one.
    pub(crate) fn open(wire: Option<&Wire>) -> Result<Self> {
        let lab = Lab::new("figures")?;
        let lan = lab.segment("lan")?;
        let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
        let web01 = lab.host("web01").on(&lan);
        let web01 = match wire {
            Some(wire) => web01.via(wire).boot()?,
            None => web01.boot()?,
        };
        company.join(&web01)?;
        company.ran_remotely(company.manager(), &web01)?;
        Ok(Self { company, web01, lan, lab })
    }

    /// Returns the host where malai is typed.
    pub(crate) fn laptop(&self) -> &Host {
        self.company.manager()
    }

    /// Returns the host where commands run.
    pub(crate) fn web01(&self) -> &Host {
        &self.web01
    }

    /// Boots another host beside the two.
    pub(crate) fn bystander(&self, name: &str) -> Result<Host> {
        self.lab.host(name).on(&self.lan).boot()
    }
}

/// Runs a command on a host this many times, one run after the other, and returns how long each took from its start to its
/// exit. Standard input is the null device; a command that fails, or prints something, ends the measurement.
pub(crate) fn timed(host: &Host, words: &[&str], times: usize) -> Result<Vec<Duration>> {
    let (program, arguments) = words.split_first().context("no words")?;
    host.inside(|| {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(crate::place::ENVIRONMENT).current_dir("/root").stdin(Stdio::null());
        let mut all = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            let output = command.output().with_context(|| format!("cannot run {program}"))?;
            all.push(begun.elapsed());
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() && output.stdout.is_empty(), "{words:?}: {} {errors}", output.status);
        }
        Ok(all)
    })
}

/// Holds the environment of the commands that are timed.
const ENVIRONMENT: [(&str, &str); 3] =
    [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/root"), ("MALAI_HOME", "/root/malai-home")];

/// Returns the median.
pub(crate) fn median(mut all: Vec<Duration>) -> Result<Duration> {
    all.sort();
    all.get(all.len() / 2).copied().context("nothing was measured")
}

/// Formats a time in milliseconds.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
