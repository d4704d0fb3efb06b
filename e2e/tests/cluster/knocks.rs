//! Joining without an invite.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, start, stop, text};
use malai_e2e::lab::{Host, Lab, wait_for};
use malai_e2e::trials;

use crate::told;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_machine_that_knocks_is_approved_by_a_prefix_of_its_key,
        a_machine_that_knocks_is_let_in_by_an_edit_of_the_config,
        a_machine_that_waits_for_its_config_says_so,
        a_machine_knocks_until_the_managers_daemon_runs,
        an_approval_without_a_user_leaves_root_to_be_named,
    ]
}

/// A cluster, and a host that has a key for it and no daemon yet; with the lines that the config needs.
struct Door {
    company: Cluster,
    web01: Host,
    lines: String,
    _lab: Lab,
}

fn door() -> Result<Door> {
    let lab = Lab::new("door")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    let (cluster, at) = company.join_point()?;
    let init = malai(["machine", "init", &cluster, "company", "--private", "--at", &at]);
    let lines = web01.run(init)?.success()?.text();
    ensure!(lines.contains(&company.id52(&web01)?), "the lines to add do not have the key: {lines}");
    Ok(Door { company, web01, lines, _lab: lab })
}

fn a_machine_that_knocks_is_approved_by_a_prefix_of_its_key() -> Result<()> {
    let door = door()?;
    let (company, web01) = (&door.company, &door.web01);
    let key = company.id52(web01)?;
    start(web01)?;
    let knock = wait_for(SOON, "web01 knocks", || {
        let pending = json(&company.manager().run(malai(["cluster", "pending", "company", "--json"]))?.success()?)?;
        Ok(pending.get(0).cloned())
    })?;
    assert_eq!((text(&knock, "/id")?, text(&knock, "/hostname")?), (key.as_str(), "web01"));
    let prefix = key.get(..12).context("a short key")?;
    let short = key.get(..11).context("a short key")?;
    let approve = |id| {
        let words = ["cluster", "approve", "company", id, "--name", "web01", "--username", "root"];
        company.manager().run(malai(words))
    };
    told(approve(short)?, 2, &["12"])?;
    told(approve(prefix)?, 0, &["web01.company approved"])?;
    company.linked(web01)?;
    company.ran_remotely(company.manager(), web01)
}

fn a_machine_that_knocks_is_let_in_by_an_edit_of_the_config() -> Result<()> {
    let door = door()?;
    let (company, web01) = (&door.company, &door.web01);
    start(web01)?;
    company.write_config(&format!("{}\n{}\nusername = \"root\"\n", company.config()?, door.lines))?;
    company.rescan()?;
    company.linked(web01)?;
    company.ran_remotely(company.manager(), web01)
}

fn a_machine_that_waits_for_its_config_says_so() -> Result<()> {
    let door = door()?;
    let (company, web01) = (&door.company, &door.web01);
    let started = web01.run(malai(["daemon"]))?.success()?;
    ensure!(started.error_text().contains("cluster company has no config yet"), "{}", started.error_text());
    wait_for(SOON, "web01 says that it waits for an approval", || {
        let status = company.status(web01)?;
        let state = text(&status, "/state/waiting")?;
        Ok(state.contains("approve").then_some(()))
    })?;
    told(company.run(web01, company.manager(), &["hostname"])?, 255, &["has no config here yet", "malai status"])?;
    Ok(())
}

fn a_machine_knocks_until_the_managers_daemon_runs() -> Result<()> {
    let door = door()?;
    let (company, web01) = (&door.company, &door.web01);
    stop(company.manager())?;
    start(web01)?;
    wait_for(SOON, "web01 says whom it waits for", || {
        let state = company.status(web01)?;
        Ok(text(&state, "/state/waiting")?.contains("the cluster manager").then_some(()))
    })?;
    // Approved by its full key, though it could not knock yet, and though no daemon runs.
    let key = company.id52(web01)?;
    let words = ["cluster", "approve", "company", &key, "--name", "web01", "--username", "root"];
    told(company.manager().run(malai(words))?, 0, &["not published: no daemon runs here"])?;
    start(company.manager())?;
    wait_for(SOON * 3, "web01 is in", || {
        Ok((text(&company.status(web01)?, "/state").ok() == Some("ready")).then_some(()))
    })?;
    company.linked(web01)?;
    company.ran_remotely(company.manager(), web01)
}

fn an_approval_without_a_user_leaves_root_to_be_named() -> Result<()> {
    let door = door()?;
    let (company, web01) = (&door.company, &door.web01);
    start(web01)?;
    let key = company.id52(web01)?;
    company.manager().run(malai(["cluster", "approve", "company", &key, "--name", "web01"]))?.success()?;
    company.linked(web01)?;
    let refused = company.run(company.manager(), web01, &["hostname"])?;
    told(refused, 254, &["no `username`", "under [machine.web01]: username = \"root\""])?;
    company.publish("machine.web01", "username = \"root\"")?;
    company.ran_remotely(company.manager(), web01)
}
