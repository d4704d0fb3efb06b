//! The manager is away: what was published still gets about.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, start, stop};
use malai_e2e::lab::wait_for;
use malai_e2e::trials;
use serde_json::Value;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        commands_run_while_the_manager_is_away,
        a_snapshot_spreads_from_a_machine_that_has_it,
        a_machine_that_just_joined_introduces_itself_while_the_manager_is_away,
        a_withdrawal_that_the_target_had_not_heard_of_arrives_with_the_command,
        machines_restart_from_their_stored_snapshot,
        a_machine_that_is_off_is_not_called_connected,
    ]
}

fn commands_run_while_the_manager_is_away() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(db01, &["web01"])?;
    office.laptop().power_cut();
    company.ran_remotely(web01, db01)?;
    told(company.run(db01, web01, &["hostname"])?, 254, &["`db01` is not in `allow_from`"])?;
    Ok(())
}

fn a_snapshot_spreads_from_a_machine_that_has_it() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    let old = company.generation(db01)?;
    stop(db01)?;
    company.allow(db01, &["web01"])?;
    let new = company.generation(web01)?;
    ensure!(new > old, "nothing new was published");
    office.laptop().power_cut();
    start(db01)?;
    // By the old snapshot db01 would refuse this.
    company.ran_remotely(web01, db01)?;
    assert_eq!(company.generation(db01)?, new);
    Ok(())
}

fn a_machine_that_just_joined_introduces_itself_while_the_manager_is_away() -> Result<()> {
    let office = Office::open(["db01"])?;
    let (company, [db01]) = (&office.company, &office.machines);
    company.allow(db01, &["*"])?;
    stop(db01)?;
    let web02 = office.lab.host("web02").on(&office.lan).boot()?;
    company.join(&web02)?;
    let new = company.generation(&web02)?;
    office.laptop().power_cut();
    start(db01)?;
    ensure!(company.machine_seen_from(db01, &web02).is_err(), "db01 has heard of web02 already");
    company.ran_remotely(&web02, db01)?;
    assert_eq!(company.generation(db01)?, new);
    Ok(())
}

fn a_withdrawal_that_the_target_had_not_heard_of_arrives_with_the_command() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(db01, &["web01"])?;
    stop(db01)?;
    company.allow(db01, &["laptop"])?;
    let new = company.generation(web01)?;
    office.laptop().power_cut();
    start(db01)?;
    // Meeting web01 is what tells db01 of the withdrawal; from then on nothing of web01 runs there.
    let session = company.spawn(web01, db01, &["sh", "-c", "hostname; exec sleep 600"])?;
    company.holds(db01, new)?;
    let output = session.output_within(SOON)?;
    ensure!(matches!(output.code(), Some(253 | 254)), "{output:?}");
    told(company.run(web01, db01, &["hostname"])?, 254, &["`web01` is not in `allow_from`"])?;
    Ok(())
}

fn machines_restart_from_their_stored_snapshot() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(db01, &["web01"])?;
    let generation = company.generation(web01)?;
    office.laptop().power_cut();
    for host in [web01, db01] {
        host.power_cut();
        host.boot()?;
        start(host)?;
        assert_eq!(company.generation(host)?, generation);
    }
    company.ran_remotely(web01, db01)?;
    told(company.run(db01, web01, &["hostname"])?, 254, &["`db01` is not in `allow_from`"])?;
    Ok(())
}

fn a_machine_that_is_off_is_not_called_connected() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    let seen = company.machine_seen_from(laptop, web01)?;
    ensure!(seen.pointer("/connection/path").is_some_and(Value::is_string), "{seen}");
    web01.power_cut();
    // No packet tells that it is off. Whoever asks gets no answer from it, and says so.
    let seen = company.machine_seen_from(laptop, web01)?;
    ensure!(seen.get("connection").is_some_and(Value::is_null), "{seen}");
    ensure!(seen.get("last_seen_ms").is_some_and(Value::is_u64), "{seen}");
    web01.boot()?;
    start(web01)?;
    wait_for(SOON, "web01 is seen again", || {
        let seen = company.machine_seen_from(laptop, web01)?;
        Ok(seen.get("connection").filter(|connection| !connection.is_null()).map(|_| ()))
    })
}
