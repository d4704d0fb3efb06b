//! A machine that was removed, and that nobody told to leave.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, malai};
use malai_e2e::lab::{Host, wait_for};
use malai_e2e::trials;

use crate::{Office, told};

/// Where a daemon in the background logs.
const LOG: &str = "/root/malai-home/daemon.log";
/// Sets how often the removed machine tries to run something.
const TRIES: usize = 5;

pub(crate) fn trials() -> Vec<Trial> {
    trials![a_removed_machine_says_what_to_type_fills_no_log_and_works_at_once_when_it_is_added_again]
}

/// The lines of a host's log that have all of these words.
fn logged(host: &Host, words: &[&str]) -> Result<Vec<String>> {
    let log = host.read(LOG)?;
    Ok(log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect())
}

fn a_removed_machine_says_what_to_type_fills_no_log_and_works_at_once_when_it_is_added_again() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    company.allow(laptop, &["web01"])?;
    company.ran_remotely(web01, laptop)?;
    let (config, key) = (company.config()?, company.id52(web01)?);
    let short = key.get(..10).context("a short key")?;
    laptop.run(malai(["cluster", "remove", "company", "web01"]))?.success()?;
    let words = [
        "this machine was removed from company",
        "`malai machine leave company`",
        "on laptop: `malai cluster invite company`",
    ];
    wait_for(SOON, "web01 says that it was removed", || {
        let status = web01.run(malai(["status"]))?.error_text();
        Ok(words.iter().all(|word| status.contains(word)).then_some(()))
    })?;
    // Until its connection is closed, it is the laptop's gate that refuses.
    wait_for(SOON, "the connection is closed", || {
        let refused = company.run(web01, laptop, &["hostname"])?.error_text();
        Ok(refused.contains(words[0]).then_some(()))
    })?;
    for _ in 0..TRIES {
        told(company.run(web01, laptop, &["hostname"])?, 254, &words)?;
    }
    let doctor = web01.run(malai(["doctor"]))?.exited(1)?.text();
    ensure!(doctor.contains("this machine was removed from company"), "{doctor}");
    let refused = logged(laptop, &["connection refused", short])?;
    ensure!(refused.len() == 1, "{refused:#?}");
    for word in ["was removed from", "link to the cluster manager lost", "no link"] {
        let lines = logged(web01, &[word])?;
        ensure!(lines.len() <= 1, "{lines:#?}");
    }
    // A command brings the new config.
    company.write_config(&config)?;
    company.rescan()?;
    company.ran_remotely(web01, laptop)?;
    company.linked(web01)?;
    wait_for(SOON, "the alarm is over", || {
        Ok((!web01.run(malai(["status"]))?.error_text().contains("was removed")).then_some(()))
    })
}
