//! A network that comes and goes under a running command, and a lid that is closed for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, start, stop};
use malai_e2e::lab::{Child, Host, wait_for, wait_until};
use malai_e2e::trials;

use crate::{Office, goes_on, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_short_loss_of_the_network_loses_nothing,
        a_lid_that_is_closed_for_a_while_loses_nothing,
        many_commands_at_once_each_have_their_own_output_and_code,
        a_change_of_the_network_settings_keeps_the_cluster_together,
        a_command_waits_for_a_machine_that_is_about_to_start,
    ]
}

/// A command on web01 that counts to 40, in about four seconds, and says when it is half way.
fn counting(office: &Office<1>) -> Result<Child> {
    let [web01] = &office.machines;
    let script =
        "hostname; i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.1; done; touch /run/counted; exit 6";
    let session = office.company.spawn(office.laptop(), web01, &["sh", "-c", script])?;
    session.wait_for_line("5", SOON)?;
    Ok(session)
}

/// Every number arrived, once, and so did the code.
fn counted(session: Child) -> Result<()> {
    let output = session.output_within(SOON)?.exited(6)?;
    let wanted: String = (1..=40).map(|n| format!("{n}\n")).collect();
    assert_eq!(output.text(), format!("web01\n{}", wanted.trim_end()));
    Ok(())
}

fn a_short_loss_of_the_network_loses_nothing() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let session = counting(&office)?;
    office.laptop().link_down()?;
    wait_until(SOON, "the command has ended", || web01.exists("/run/counted").unwrap_or(false))?;
    ensure!(!session.has_ended(), "the caller has ended without a network");
    office.laptop().link_up()?;
    counted(session)
}

fn a_lid_that_is_closed_for_a_while_loses_nothing() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let session = counting(&office)?;
    office.laptop().freeze()?;
    wait_until(SOON, "the command has ended", || web01.exists("/run/counted").unwrap_or(false))?;
    office.laptop().thaw()?;
    counted(session)
}

fn many_commands_at_once_each_have_their_own_output_and_code() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = "cat; hostname; exit $1";
    let sessions: Vec<Child> = (0..40)
        .map(|n: i32| {
            let line = format!("echo {n} | malai web01.company -- sh -c '{script}' sh {n}");
            office.laptop().spawn(["sh", "-c", &line])
        })
        .collect::<Result<_>>()?;
    for (n, session) in sessions.into_iter().enumerate() {
        let output = session.output_within(SOON)?.exited(i32::try_from(n)?)?;
        assert_eq!(output.text(), format!("{n}\nweb01"));
    }
    company.ran_remotely(office.laptop(), web01)
}

/// Whether a host listens for multicast DNS.
fn listens_to_mdns(host: &Host) -> Result<bool> {
    let sockets = host.inside(|| Ok(std::fs::read_to_string("/proc/1/net/udp")?))?;
    // Port 5353.
    Ok(sockets.contains(":14E9 "))
}

fn a_change_of_the_network_settings_keeps_the_cluster_together() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(web01)?;
    web01.write("/root/malai-home/malai.toml", format!("listen = \"{}:4001\"\n", web01.ip()))?;
    start(web01)?;
    company.linked(web01)?;
    let distant = company.spawn(laptop, web01, &["sh", "-c", "hostname; sleep 600"])?;
    let local = company.spawn(laptop, laptop, &["sh", "-c", "hostname; sleep 600"])?;
    distant.wait_for_line("web01", SOON)?;
    local.wait_for_line("laptop", SOON)?;
    company.publish("network", "discovery = []")?;
    company.holds(web01, company.generation(laptop)?)?;
    // Endpoints are bound anew meanwhile. Whoever asks at such a moment waits, and is never told that there is no cluster.
    wait_for(SOON, "nobody listens to multicast DNS any more", || {
        company.run(laptop, laptop, &["true"])?.success()?;
        Ok((!listens_to_mdns(laptop)? && !listens_to_mdns(web01)?).then_some(()))
    })?;
    company.linked(web01)?;
    company.ran_remotely(laptop, web01)?;
    goes_on(distant)?;
    ensure!(!local.has_ended(), "a command of this very machine was lost with the network");
    company.allow(laptop, &["web01"])?;
    told(local.output_within(Duration::from_secs(1))?, 253, &["access was withdrawn"])?;
    Ok(())
}

fn a_command_waits_for_a_machine_that_is_about_to_start() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    stop(web01)?;
    let early = company.spawn(office.laptop(), web01, &["hostname"])?;
    start(web01)?;
    assert_eq!(early.output_within(Duration::from_secs(10))?.success()?.text(), "web01");
    told(company.run(web01, office.laptop(), &["hostname"])?, 254, &["`web01` is not in `allow_from`"])?;
    Ok(())
}
