//! `malai rescan`: what is published, who holds it, and what is refused.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, malai, start, stop, text};
use malai_e2e::lab::wait_for;
use malai_e2e::trials;
use serde_json::Value;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_rescan_reaches_linked_machines_and_names_those_it_missed,
        a_broken_config_is_refused_with_its_place_and_nothing_changes,
        a_check_publishes_nothing_and_shows_the_difference,
        an_edit_that_would_drop_a_new_machine_needs_a_yes,
        a_machine_that_joins_meanwhile_keeps_the_edit_and_its_comments,
        a_machine_that_joins_while_the_config_is_broken_is_in_and_the_edit_has_to_be_mended,
        a_manager_restored_from_a_backup_raises_the_alarm_and_publishes_nothing,
        only_the_manager_can_rescan,
    ]
}

fn a_rescan_reaches_linked_machines_and_names_those_it_missed() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    stop(db01)?;
    company.set("machine.web01", "allow_from = [\"db01\"]")?;
    let output = company.rescan()?;
    told(output, 0, &["these machines have it: laptop, web01", "not reached: db01"])?;
    let generation = company.generation(office.laptop())?;
    assert_eq!(company.generation(web01)?, generation);
    start(db01)?;
    company.holds(db01, generation)?;
    let output = company.rescan()?;
    told(output, 0, &["cluster.toml has not changed", "these machines have it: db01, laptop, web01"])?;
    assert_eq!(company.generation(web01)?, generation, "nothing was edited, and it was signed again");
    company.ran_remotely(db01, web01)
}

fn a_broken_config_is_refused_with_its_place_and_nothing_changes() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let before = (company.generation(office.laptop())?, company.config()?);
    for (line, at, words) in [
        ("allow_from = \"admins, devs\"", 1, &["allow_from", "[\"admins\", \"devs\"]"][..]),
        ("alow_from = [\"admins\"]", 1, &["alow_from", "allow_from"]),
        ("allow_from = [\"nobody-of-that-name\"]", 1, &["nobody-of-that-name"]),
        // Where the list should have ended is seen in the line below.
        ("allow_from = [", 2, &["not TOML"]),
    ] {
        company.set("machine.web01", line)?;
        let number = company.config()?.lines().position(|found| found == line).context("not there")? + at;
        let place = format!("cluster.toml: line {number}, column ");
        told(company.rescan_with(&[])?, 1, &[&[place.as_str()], words].concat())?;
        company.write_config(&before.1)?;
    }
    assert_eq!(company.generation(office.laptop())?, before.0);
    assert_eq!(company.generation(web01)?, before.0);
    company.ran_remotely(office.laptop(), web01)
}

fn a_check_publishes_nothing_and_shows_the_difference() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let before = company.generation(office.laptop())?;
    company.set("machine.web01", "allow_from = [\"laptop\"]")?;
    for words in [&["rescan", "company", "--check"][..], &["config", "check", "company"]] {
        let output = told(office.laptop().run(malai(words))?, 0, &["correct, but not signed yet"])?;
        ensure!(output.text().contains("\n+allow_from = [\"laptop\"]"), "{}", output.text());
    }
    let diff = office.laptop().run(malai(["config", "diff", "company"]))?.exited(1)?;
    ensure!(diff.text().contains("\n+allow_from = [\"laptop\"]"), "{}", diff.text());
    assert_eq!((company.generation(office.laptop())?, company.generation(web01)?), (before, before));
    company.rescan()?;
    office.laptop().run(malai(["config", "diff", "company"]))?.success()?;
    let shown = web01.run(malai(["config", "show"]))?.success()?;
    assert_eq!(shown.text(), company.config()?.trim_end());
    Ok(())
}

fn an_edit_that_would_drop_a_new_machine_needs_a_yes() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.rescan()?;
    let opened_in_an_editor = company.config()?;
    let db01 = office.lab.host("db01").on(&office.lan).boot()?;
    company.join(&db01)?;
    let before = company.generation(office.laptop())?;
    company.write_config(&opened_in_an_editor)?;
    told(company.rescan_with(&[])?, 1, &["would drop", "db01", "-[machine.db01]", "--yes"])?;
    assert_eq!(company.generation(web01)?, before);
    company.ran_remotely(office.laptop(), &db01)?;
    told(company.rescan_with(&["--yes"])?, 0, &["these machines have it: laptop, web01"])?;
    told(company.run(office.laptop(), &db01, &["hostname"])?, 255, &["has no machine db01"])?;
    Ok(())
}

fn a_machine_that_joins_meanwhile_keeps_the_edit_and_its_comments() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.set("machine.web01", "allow_from = [\"web01\"] # not finished")?;
    let db01 = office.lab.host("db01").on(&office.lan).boot()?;
    company.join(&db01)?;
    // The half-finished edit is not published by the join, and is not lost either.
    company.ran_remotely(office.laptop(), web01)?;
    ensure!(company.config()?.contains("[\"web01\"] # not finished"), "{}", company.config()?);
    company.publish("machine.web01", "allow_from = [\"db01\"] # finished")?;
    let shown = web01.run(malai(["config", "show"]))?.success()?.text();
    ensure!(shown.contains("# finished") && shown.contains("[machine.db01]"), "{shown}");
    company.ran_remotely(&db01, web01)
}

fn a_machine_that_joins_while_the_config_is_broken_is_in_and_the_edit_has_to_be_mended() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.set("machine.web01", "allow_from = [")?;
    let db01 = office.lab.host("db01").on(&office.lan).boot()?;
    company.join(&db01)?;
    company.ran_remotely(office.laptop(), &db01)?;
    told(company.rescan_with(&[])?, 1, &["not TOML"])?;
    company.set("machine.web01", "allow_from = [\"admins\"]")?;
    told(company.rescan_with(&[])?, 1, &["would drop", "db01", "--yes"])?;
    company.set("machine.db01", &format!("id52 = \"{}\"", company.id52(&db01)?))?;
    company.publish("machine.db01", "username = \"root\"")?;
    company.ran_remotely(office.laptop(), web01)?;
    company.ran_remotely(office.laptop(), &db01)
}

fn a_manager_restored_from_a_backup_raises_the_alarm_and_publishes_nothing() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    laptop.run(["cp", "-a", "/root/malai-home", "/root/backup"])?.success()?;
    start(laptop)?;
    company.linked(web01)?;
    company.publish("machine.web01", "accept_env = [\"DEPLOY_*\"]")?;
    let newest = company.generation(web01)?;
    stop(laptop)?;
    laptop.sh("rm -r /root/malai-home && mv /root/backup /root/malai-home")?.success()?;
    start(laptop)?;
    let alarm = wait_for(SOON, "the alarm is raised", || {
        Ok(company.status(laptop)?.get("alarm").and_then(Value::as_str).map(str::to_owned))
    })?;
    ensure!(alarm.contains(&newest.to_string()) && alarm.contains("--over"), "{alarm}");
    company.set("machine.web01", "users = [\"nobody\"]")?;
    let over = format!("--over {newest}");
    told(company.rescan_with(&[])?, 1, &["signed elsewhere", "-accept_env", &over])?;
    let invited = laptop.run(malai(["cluster", "approve", "company", &company.id52(web01)?, "--name", "web02"]))?;
    ensure!(invited.code() != Some(0), "a machine was enrolled over the alarm");
    assert_eq!(company.generation(web01)?, newest);
    company.ran_remotely(laptop, web01)?;
    told(company.rescan_with(&["--over", "1"])?, 1, &["signed elsewhere"])?;
    told(company.rescan_with(&["--over", &newest.to_string()])?, 0, &["these machines have it: laptop, web01"])?;
    ensure!(company.generation(web01)? > newest, "the new snapshot has no higher number");
    ensure!(company.status(laptop)?.get("alarm").is_some_and(Value::is_null), "the alarm is still there");
    let shown = web01.run(malai(["config", "show"]))?.success()?.text();
    ensure!(shown.contains("users = [\"nobody\"]") && !shown.contains("accept_env ="), "{shown}");
    company.ran_remotely(laptop, web01)
}

fn only_the_manager_can_rescan() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    told(web01.run(malai(["rescan", "company"]))?, 1, &["does not manage company", "on laptop"])?;
    let status = company.status(web01)?;
    assert_eq!((text(&status, "/role")?, text(&company.status(office.laptop())?, "/role")?), ("machine", "manager"));
    Ok(())
}
