//! Joining by invite, and the first commands.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, start, stop};
use malai_e2e::lab::{Host, Lab};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        three_machines_join_by_invite_and_run_what_is_allowed,
        joining_waits_for_the_managers_daemon_and_says_so,
        a_machine_joins_a_manager_whose_address_nobody_told_it,
        a_newcomers_name_comes_from_its_host_name,
        an_invite_is_bound_to_the_first_key_that_redeems_it,
        a_fixed_name_means_one_use,
        a_removed_machine_does_not_come_back_by_an_invite_that_was_revoked_with_it,
        a_token_comes_from_standard_input_or_the_environment,
        a_machine_that_leaves_has_forgotten_the_cluster,
    ]
}

fn three_machines_join_by_invite_and_run_what_is_allowed() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.ran_remotely(office.laptop(), web01)?;
    company.ran_remotely(office.laptop(), db01)?;
    company.allow(db01, &["admins", "web01"])?;
    company.ran_remotely(web01, db01)?;
    let refused = company.run(db01, web01, &["hostname"])?;
    let refused =
        told(refused, 254, &["malai: error:", "`db01` is not in `allow_from`", "malai: hint:", "malai rescan"])?;
    ensure!(refused.stdout.is_empty(), "it ran: {}", refused.text());
    Ok(())
}

fn joining_waits_for_the_managers_daemon_and_says_so() -> Result<()> {
    let lab = Lab::new("waits")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::on_disk("company", lab.host("laptop").on(&lan).boot()?, &["--private"])?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    start(company.manager())?;
    stop(company.manager())?;
    let token = company.invite(&["--name", "web01"])?;
    let joining = web01.spawn(malai(["machine", "join", &token]))?;
    joining.wait_for_error_line("waiting for the cluster manager of company", SOON)?;
    start(company.manager())?;
    told(joining.output_within(SOON)?, 0, &["joined company as web01.company"])?;
    start(&web01)?;
    company.linked(&web01)?;
    company.ran_remotely(company.manager(), &web01)
}

fn a_machine_joins_a_manager_whose_address_nobody_told_it() -> Result<()> {
    let lab = Lab::new("mdns")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::on_disk("company", lab.host("laptop").on(&lan).boot()?, &["--private"])?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    // The manager's daemon has never run, so that its token has no address.
    let invite = malai(["cluster", "invite", "company", "--name", "web01", "--username", "root"]);
    let token = told(company.manager().run(invite)?, 0, &["no daemon runs here", "malai daemon"])?.text();
    let joining = web01.spawn(malai(["machine", "join", &token]))?;
    joining.wait_for_error_line("waiting for the cluster manager of company", SOON)?;
    start(company.manager())?;
    joining.output_within(SOON)?.success()?;
    start(&web01)?;
    company.linked(&web01)?;
    company.ran_remotely(company.manager(), &web01)
}

fn a_newcomers_name_comes_from_its_host_name() -> Result<()> {
    let lab = Lab::new("names")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let token = company.invite(&["--uses", "3"])?;
    for (hostname, name) in [("Web_01", "web-01"), ("web-01.example.com", "web-01-2"), ("laptop.example", "laptop-2")] {
        let host = lab.host(hostname).on(&lan).boot()?;
        told(host.run(malai(["machine", "join", &token]))?, 0, &[&format!("as {name}.company")])?;
        start(&host)?;
        let target = format!("{name}.company");
        let output = company.manager().run(malai([&target, "--", "hostname"]))?.success()?;
        assert_eq!(output.text(), hostname);
    }
    Ok(())
}

fn an_invite_is_bound_to_the_first_key_that_redeems_it() -> Result<()> {
    let lab = Lab::new("invite")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let (web01, thief) = (lab.host("web01").on(&lan).boot()?, lab.host("thief").on(&lan).boot()?);
    let token = company.invite(&["--name", "web01"])?;
    web01.run(malai(["machine", "join", &token]))?.success()?;
    let key = company.id52(&web01)?;
    // As after a reply that was lost on the way: the key is there, the config is not.
    stop(&web01)?;
    web01.run(["rm", "/root/malai-home/clusters/company/snapshot"])?.success()?;
    web01.run(malai(["machine", "join", &token]))?.success()?;
    assert_eq!(company.id52(&web01)?, key);
    let refused = thief.run(malai(["machine", "join", &token]))?;
    told(refused, 254, &["used already, by another machine", "malai cluster invite"])?;
    start(&web01)?;
    company.linked(&web01)?;
    company.ran_remotely(company.manager(), &web01)
}

fn a_fixed_name_means_one_use() -> Result<()> {
    let lab = Lab::new("uses")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let twice = malai(["cluster", "invite", "company", "--name", "web01", "--uses", "2"]);
    told(company.manager().run(twice)?, 2, &["--name", "one use"])?;
    let token = company.invite(&["--uses", "2"])?;
    for name in ["one", "two"] {
        let host = lab.host(name).on(&lan).boot()?;
        told(host.run(malai(["machine", "join", &token]))?, 0, &[&format!("as {name}.company")])?;
    }
    let third = lab.host("three").on(&lan).boot()?;
    told(third.run(malai(["machine", "join", &token]))?, 254, &["used already"])?;
    Ok(())
}

fn a_removed_machine_does_not_come_back_by_an_invite_that_was_revoked_with_it() -> Result<()> {
    let lab = Lab::new("revoke")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let laptop = company.manager();
    let hosts = [lab.host("web01").on(&lan).boot()?, lab.host("web02").on(&lan).boot()?];
    let [web01, web02] = &hosts;
    let token = company.invite(&["--uses", "5", "--username", "root"])?;
    for host in &hosts {
        host.run(malai(["machine", "join", &token]))?.success()?;
        start(host)?;
        company.linked(host)?;
    }
    company.ran_remotely(laptop, web01)?;
    let shown = laptop.run(malai(["cluster", "invites", "company"]))?.success()?.text();
    let row = shown.lines().find(|line| line.contains("3 of 5")).unwrap_or_default();
    let id = row.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(id.len() == 8 && row.contains("web01") && row.contains("web02"), "{shown}");
    // Without the word for it, the removal only tells of the invite, and the host comes back with another key.
    let left = |uses| format!("joined with the invite {id}; {uses} uses are left");
    let end = format!("malai cluster revoke company {id}");
    told(laptop.run(malai(["cluster", "remove", "company", "web01"]))?, 0, &[&left(3), &end])?;
    let again = |host: &Host| {
        host.run(malai(["machine", "leave", "company"]))?.success()?;
        host.run(malai(["machine", "join", &token]))
    };
    told(again(web01)?, 0, &["as web01.company"])?;
    let removal = laptop.run(malai(["cluster", "remove", "company", "web01", "--revoke-invite"]))?;
    told(removal, 0, &[&format!("revoked the invite {id}, with which web01 joined")])?;
    told(again(web01)?, 254, &["unknown invite"])?;
    // Who came by it and was not removed stays, and what is ended is ended.
    company.ran_remotely(laptop, web02)?;
    told(laptop.run(malai(["cluster", "revoke", "company", &id]))?, 255, &["was revoked before"])?;
    let shown = laptop.run(malai(["cluster", "invites", "company"]))?.success()?.text();
    ensure!(shown.contains("revoked") && shown.contains("web01 (removed)"), "{shown}");
    Ok(())
}

fn a_token_comes_from_standard_input_or_the_environment() -> Result<()> {
    let lab = Lab::new("token")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let (web01, db01) = (lab.host("web01").on(&lan).boot()?, lab.host("db01").on(&lan).boot()?);
    let token = company.invite(&["--name", "web01"])?;
    web01.run(malai(["machine", "join", "-"]).stdin(format!("{token}\n")))?.success()?;
    let token = company.invite(&["--name", "db01"])?;
    db01.run(malai(["machine", "join"]).env("MALAI_INVITE", &token))?.success()?;
    for host in [&web01, &db01] {
        start(host)?;
        company.linked(host)?;
        company.ran_remotely(company.manager(), host)?;
    }
    told(db01.run(malai(["machine", "join", "no-token"]))?, 2, &["malai cluster invite"])?;
    Ok(())
}

fn a_machine_that_leaves_has_forgotten_the_cluster() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let key = company.id52(web01)?;
    web01.run(malai(["machine", "leave", "company"]))?.success()?;
    ensure!(!web01.exists("/root/malai-home/clusters/company")?, "the key is still there");
    told(company.run(web01, office.laptop(), &["hostname"])?, 255, &["in no cluster", "malai machine join"])?;
    office.laptop().run(malai(["cluster", "remove", "company", "web01"]))?.success()?;
    stop(web01)?;
    company.join(web01)?;
    ensure!(company.id52(web01)? != key, "a machine that left came back with the same key");
    company.ran_remotely(office.laptop(), web01)
}
