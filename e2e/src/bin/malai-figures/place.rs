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
    /// With this wire before web01, if any.
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

    /// Where malai is typed.
    pub(crate) fn laptop(&self) -> &Host {
        self.company.manager()
    }

    /// Where commands run.
    pub(crate) fn web01(&self) -> &Host {
        &self.web01
    }

    /// A further host beside them.
    pub(crate) fn bystander(&self, name: &str) -> Result<Host> {
        self.lab.host(name).on(&self.lan).boot()
    }
}

/// Runs a command on a host so many times, one after the other, and returns how long each took from its start to its
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

/// Of commands that are timed.
const ENVIRONMENT: [(&str, &str); 3] =
    [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/root"), ("MALAI_HOME", "/root/malai-home")];

/// The middle one.
pub(crate) fn median(mut all: Vec<Duration>) -> Result<Duration> {
    all.sort();
    all.get(all.len() / 2).copied().context("nothing was measured")
}

/// In milliseconds, for people.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
