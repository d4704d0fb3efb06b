//! A disk that is full: what the config takes away is taken away all the same, and the machine says what it lacks.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, running, start, stop, text};
use malai_e2e::lab::{Host, Lab, wait_until};
use malai_e2e::trials;
use serde_json::Value;

use crate::told;

const HOME: &str = "/root/malai-home";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_withdrawal_on_a_full_disk_holds_at_once_and_after_a_restart_and_is_stored_with_room_again,
        a_withdrawal_holds_over_a_daemon_that_is_killed_on_a_full_disk,
        without_a_reserve_a_withdrawal_on_a_full_disk_holds_as_long_as_the_daemon_lives,
        a_daemon_whose_log_has_no_room_answers_all_the_same,
        a_full_disk_is_told_by_the_doctor_and_a_daemon_starts_on_it,
    ]
}

/// A manager, and web01, whose home is a file system of 3 MB.
fn small() -> Result<(Lab, Cluster, Host)> {
    let lab = Lab::new("small-disk")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    web01.sh(&format!("mkdir -p {HOME} && mount -t tmpfs -o size=3m,mode=700 tmpfs {HOME}"))?.success()?;
    company.join(&web01)?;
    Ok((lab, company, web01))
}

/// Takes all the room that there is in a host's home.
fn fill(host: &Host) -> Result<()> {
    host.sh(&format!(
        "cat /dev/zero > {HOME}/filler 2>/dev/null; test \"$(df --output=avail {HOME} | tail -1)\" -eq 0"
    ))?
    .success()?;
    Ok(())
}

fn alarm(company: &Cluster, host: &Host) -> Result<String> {
    Ok(company.status(host)?["alarm"].as_str().unwrap_or_default().to_owned())
}

/// The finding of the doctor that has these words.
fn finding(host: &Host, words: &str) -> Result<Option<Value>> {
    let document = json(&host.run(malai(["doctor", "--json"]))?)?;
    let findings = document["findings"].as_array().context("no findings")?;
    Ok(findings.iter().find(|found| found["what"].as_str().is_some_and(|what| what.contains(words))).cloned())
}

/// The config that is stored where it belongs.
fn stored(host: &Host, words: &str) -> Result<bool> {
    let bytes = host.inside(|| Ok(std::fs::read(format!("{HOME}/clusters/company/snapshot"))?))?;
    Ok(bytes.windows(words.len()).any(|part| part == words.as_bytes()))
}

fn a_withdrawal_on_a_full_disk_holds_at_once_and_after_a_restart_and_is_stored_with_room_again() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    company.ran_remotely(laptop, &web01)?;
    let session = company.spawn(laptop, &web01, &["sh", "-c", "hostname; sleep 777"])?;
    session.wait_for_line("web01", SOON)?;
    fill(&web01)?;

    company.allow(&web01, &[])?;
    told(session.output_within(SOON)?, 253, &["access was withdrawn"])?;
    wait_until(SOON, "the command is gone", || running(&web01, "sleep 777").is_ok_and(|found| found == 0))?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    ensure!(!stored(&web01, "allow_from = []")?, "there was room");

    wait_until(SOON, "the alarm is raised", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    let raised = alarm(&company, &web01)?;
    for word in ["clusters/company/snapshot: No space left", "snapshot.reserve", "after a restart too", "df -h"] {
        ensure!(raised.contains(word), "{word:?} is not in {raised:?}");
    }
    let found = finding(&web01, "cannot be stored")?.context("the doctor does not see it")?;
    ensure!(found["level"] == "broken" && text(&found, "/mend")?.contains("df -h"), "{found}");

    // Nobody is there who could tell it what is held now.
    stop(laptop)?;
    stop(&web01)?;
    start(&web01)?;
    let shown = web01.run(malai(["config", "show", "company"]))?.success()?.text();
    ensure!(shown.contains("allow_from = []"), "{shown}");
    wait_until(SOON, "it is still said", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    start(laptop)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;

    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    wait_until(SOON * 3, "it is stored", || stored(&web01, "allow_from = []").unwrap_or(false))?;
    wait_until(SOON, "the alarm is over", || alarm(&company, &web01).is_ok_and(|alarm| alarm.is_empty()))?;
    ensure!(finding(&web01, "cannot be stored")?.is_none());
    Ok(())
}

fn a_withdrawal_holds_over_a_daemon_that_is_killed_on_a_full_disk() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    fill(&web01)?;
    company.allow(&web01, &[])?;
    wait_until(SOON, "the alarm is raised", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    stop(laptop)?;
    let pid = malai_e2e::cluster::daemon_status(&web01)?["pid"].as_u64().context("a pid")?;
    web01.sh(&format!("kill -9 {pid}"))?.success()?;
    wait_until(SOON, "it is gone", || {
        web01.sh(&format!("kill -0 {pid} 2>/dev/null")).is_ok_and(|it| it.success().is_err())
    })?;
    start(&web01)?;
    let shown = web01.run(malai(["config", "show", "company"]))?.success()?.text();
    ensure!(shown.contains("allow_from = []"), "{shown}");
    start(laptop)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    Ok(())
}

fn without_a_reserve_a_withdrawal_on_a_full_disk_holds_as_long_as_the_daemon_lives() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    web01.sh(&format!("rm {HOME}/clusters/company/snapshot.reserve"))?.success()?;
    fill(&web01)?;
    company.allow(&web01, &[])?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    let said = || alarm(&company, &web01).is_ok_and(|alarm| alarm.contains("nor does the reserve take it"));
    wait_until(SOON, "the alarm is raised", said)?;
    // The endpoint is bound again, and the cluster taken in from the disk, which has the older config.
    company.publish("network", "discovery = []")?;
    let generation = company.generation(laptop)?;
    company.holds(&web01, generation)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    ensure!(company.generation(&web01)? == generation && !stored(&web01, "allow_from = []")?);
    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    wait_until(SOON * 3, "it is stored", || stored(&web01, "allow_from = []").unwrap_or(false))?;
    wait_until(SOON, "the alarm is over", || alarm(&company, &web01).is_ok_and(|alarm| alarm.is_empty()))?;
    web01.sh(&format!("test -s {HOME}/clusters/company/snapshot.reserve"))?.success()?;
    Ok(())
}

fn a_daemon_whose_log_has_no_room_answers_all_the_same() -> Result<()> {
    let (_lab, company, web01) = small()?;
    company.allow(&web01, &[])?;
    fill(&web01)?;
    // Each is a line in the log, and soon its last block is full too.
    for _ in 0..50 {
        told(company.run(company.manager(), &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    }
    Ok(())
}

fn a_full_disk_is_told_by_the_doctor_and_a_daemon_starts_on_it() -> Result<()> {
    let (_lab, company, web01) = small()?;
    ensure!(finding(&web01, "is full")?.is_none());
    stop(&web01)?;
    fill(&web01)?;
    start(&web01)?;
    company.linked(&web01)?;
    let found = finding(&web01, "is full")?.context("the doctor does not see it")?;
    ensure!(found["level"] == "broken" && text(&found, "/mend")?.contains("df -h"), "{found}");
    Ok(())
}
