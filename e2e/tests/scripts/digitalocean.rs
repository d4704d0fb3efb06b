//! `scripts/digitalocean` against a cloud in the lab: whatever happens, nothing is left in the account.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::lab::{Child, Cmd, Host, Lab, Output, wait_for};
use nix::sys::signal::Signal;

use crate::cloud::{Cloud, Fault};
use crate::stage::{LONG, document, driver, processes, script};

pub(crate) fn trials() -> Vec<Trial> {
    malai_e2e::trials![
        two_droplets_in_two_regions_are_tried_and_destroyed,
        a_region_that_is_not_there_is_told_before_anything_is_made,
        the_first_droplet_is_destroyed_when_the_second_is_refused,
        a_droplet_whose_creation_was_interrupted_is_destroyed_when_it_comes,
        an_interrupt_while_malai_is_tried_destroys_both_droplets,
        a_deletion_that_fails_is_tried_again,
        a_deletion_that_never_succeeds_is_told_with_the_command_to_type,
        kept_droplets_are_told_with_their_cost_and_their_removal,
    ]
}

/// A person's host, and the cloud.
struct Account {
    driver: Host,
    cloud: Arc<Cloud>,
}

impl Account {
    fn open(name: &str, fault: Fault) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.segment("internet")?;
        let driver = driver(&lab, &lan)?;
        let cloud = Cloud::open(lab, lan, &driver, fault)?;
        Ok(Self { driver, cloud })
    }

    fn command(options: &[&str]) -> Cmd {
        let words: Vec<_> =
            options.iter().chain(&["--report", "/root/report", "--", "--private", "--size", "1"]).collect();
        let words: Vec<&str> = words.into_iter().copied().collect();
        script("digitalocean", &words).env("PATH", "/root/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")
    }

    fn run(&self, options: &[&str]) -> Result<Output> {
        self.driver.run(Self::command(options))
    }

    fn start(&self) -> Result<Child> {
        self.driver.spawn(Self::command(&[]))
    }

    /// Checks that nothing is in the account, and nothing of the run is on the person's host but the report.
    fn is_empty(&self) -> Result<()> {
        let account = self.cloud.account();
        ensure!(account.is_empty(), "in the account is still: {account}; calls:\n{}", self.cloud.calls());
        let files = self.driver.sh("ls /tmp; ls -d /root/report/ssh")?;
        ensure!(files.text().is_empty(), "left on the host: {}", files.text());
        let alone = || Ok((processes(&self.driver)?.len() == 1).then_some(()));
        wait_for(Duration::from_secs(15), "process 1 is alone", alone)
            .with_context(|| format!("{:?}", processes(&self.driver)))
    }
}

fn two_droplets_in_two_regions_are_tried_and_destroyed() -> Result<()> {
    let account = Account::open("do", Fault::None)?;
    let output = account.run(&[])?.success()?;
    ensure!(output.error_text().contains("0.01786 USD per hour"), "{}", output.error_text());
    let report = document(&account.driver, "/root/report/report.json")?;
    ensure!(report.get("failed") == Some(&0.into()) && report.get("not_run") == Some(&0.into()), "{report}");
    for (pointer, end) in [("/hosts/a/name", "-a"), ("/hosts/b/name", "-b")] {
        let name = report.pointer(pointer).and_then(|name| name.as_str()).unwrap_or_default();
        ensure!(name.starts_with("malai-") && name.ends_with(end), "{pointer}: {report}");
    }
    let calls = account.cloud.calls();
    ensure!(calls.contains("--region fra1") && calls.contains("--region nyc3"), "{calls}");
    account.is_empty()
}

fn a_region_that_is_not_there_is_told_before_anything_is_made() -> Result<()> {
    let account = Account::open("do-region", Fault::None)?;
    for regions in ["fra1,nyc1", "fra1,moon"] {
        let output = account.run(&["--regions", regions])?.exited(1)?;
        ensure!(output.error_text().contains("there are: fra1 nyc3"), "{}", output.error_text());
    }
    account.run(&["--regions", "fra1,fra1"])?.exited(2)?;
    ensure!(!account.cloud.calls().contains("create"), "{}", account.cloud.calls());
    account.is_empty()
}

fn the_first_droplet_is_destroyed_when_the_second_is_refused() -> Result<()> {
    let account = Account::open("do-second", Fault::SecondRefused)?;
    let output = account.run(&[])?.exited(1)?;
    ensure!(output.error_text().contains("exceed your droplet limit"), "{}", output.error_text());
    ensure!(account.cloud.calls().contains("compute droplet delete "), "{}", account.cloud.calls());
    account.is_empty()
}

fn a_droplet_whose_creation_was_interrupted_is_destroyed_when_it_comes() -> Result<()> {
    let account = Account::open("do-late", Fault::Late)?;
    let run = account.start()?;
    account.cloud.wait_for_call("compute droplet create")?;
    run.signal(Signal::SIGINT)?;
    run.output_within(LONG)?.exited(130)?;
    ensure!(account.cloud.calls().contains("compute droplet delete "), "it never came:\n{}", account.cloud.calls());
    account.is_empty()
}

fn an_interrupt_while_malai_is_tried_destroys_both_droplets() -> Result<()> {
    let account = Account::open("do-int", Fault::None)?;
    let run = account.start()?;
    account.cloud.wait_for_droplets(2)?;
    run.wait_for_line("A runs a command on B", LONG)?;
    run.signal(Signal::SIGINT)?;
    let output = run.output_within(Duration::from_secs(120))?.exited(130)?;
    let report = document(&account.driver, "/root/report/report.json")?;
    ensure!(report.get("not_run").and_then(serde_json::Value::as_u64) > Some(0), "{report}");
    ensure!(output.text().contains("pass     nothing is left on B"), "{}", output.text());
    account.is_empty()
}

fn a_deletion_that_fails_is_tried_again() -> Result<()> {
    let account = Account::open("do-again", Fault::OneDeletion)?;
    account.run(&[])?.exited(1)?;
    let calls = account.cloud.calls();
    ensure!(calls.matches("compute droplet delete ").count() == 2, "{calls}");
    account.is_empty()
}

fn a_deletion_that_never_succeeds_is_told_with_the_command_to_type() -> Result<()> {
    let account = Account::open("do-never", Fault::EveryDeletion)?;
    let output = account.run(&[])?.exited(1)?;
    let said = output.error_text();
    ensure!(said.contains("*** IN THE ACCOUNT IS STILL SOMETHING"), "{said}");
    remove_as_told(&account, &said)?;
    ensure!(!account.cloud.account().contains("droplet"), "{}", account.cloud.account());
    Ok(())
}

fn kept_droplets_are_told_with_their_cost_and_their_removal() -> Result<()> {
    let account = Account::open("do-keep", Fault::None)?;
    let output = account.run(&["--keep"])?.success()?;
    let said = output.text();
    ensure!(said.contains("KEPT and cost 0.01786 USD per hour together, 0.00893 each"), "{said}");
    let kept = account.cloud.account();
    ensure!(kept.contains("-a in fra1") && kept.contains("-b in nyc3") && !kept.contains("key"), "{kept}");
    let login = account.driver.sh("ssh -F /root/report/ssh/config b uname -n")?.success()?;
    ensure!(login.text().ends_with("-b"), "{login:?}");
    remove_as_told(&account, &said)?;
    account.is_empty()
}

/// Types the commands for removal that the script has printed.
fn remove_as_told(account: &Account, said: &str) -> Result<()> {
    let told = said.lines().map(|line| line.trim_start_matches(['*', ' ']));
    let commands: Vec<_> = told.filter(|line| line.starts_with("doctl compute") || line.starts_with("rm -r")).collect();
    ensure!(!commands.is_empty(), "no command in {said}");
    // A list is for a person to look at, who would not ask for JSON.
    let commands = commands.join("\n").replace("droplet list", "droplet list --output json");
    account.driver.sh(&format!("set -e; PATH=/root/bin:$PATH; {commands}"))?.success()?;
    Ok(())
}
