//! What a CLI starts where no daemon runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, audit, daemon_status, malai, running, start, stop};
use malai_e2e::lab::{Lab, wait_until};
use malai_e2e::trials;

use crate::{Office, goes_on, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_command_without_a_daemon_starts_an_agent_and_works,
        several_commands_at_once_share_one_agent,
        a_daemon_takes_over_from_an_agent,
        a_rescan_with_only_an_agent_signs_and_does_not_publish,
        an_agent_that_nobody_needs_leaves,
        an_agents_sessions_outlive_a_change_of_the_config,
        an_agent_is_not_shown_as_online_and_takes_no_command,
        an_agent_runs_what_is_aimed_at_this_very_machine,
        a_pipe_does_not_stay_open_because_of_an_agent,
    ]
}

/// How many agents a host runs.
fn agents(host: &malai_e2e::lab::Host) -> Result<usize> {
    running(host, "malai agent")
}

fn a_command_without_a_daemon_starts_an_agent_and_works() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    told(laptop.run(malai(["daemon", "status"]))?, 1, &[])?;
    ensure!(daemon_status(laptop)?.is_null(), "something runs still");
    company.ran_remotely(laptop, web01)?;
    let status = laptop.run(malai(["daemon", "status"]))?.exited(1)?;
    ensure!(status.text().contains("agent") && status.text().contains("no daemon runs here"), "{}", status.text());
    assert_eq!(daemon_status(laptop)?["agent"], true);
    // The next command goes by the same agent, and over the connection that it has.
    company.ran_remotely(laptop, web01)?;
    assert_eq!(agents(laptop)?, 1);
    Ok(())
}

fn several_commands_at_once_share_one_agent() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    let all: Vec<_> = (0..6)
        .map(|n| company.spawn(laptop, web01, &["sh", "-c", &format!("hostname; exit {n}")]))
        .collect::<Result<_>>()?;
    for (n, one) in all.into_iter().enumerate() {
        let output = one.output_within(SOON)?.exited(i32::try_from(n)?)?;
        assert_eq!(output.text(), "web01");
    }
    assert_eq!(agents(laptop)?, 1);
    Ok(())
}

fn a_daemon_takes_over_from_an_agent() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    let session = company.spawn(laptop, web01, &["sh", "-c", "hostname; sleep 600"])?;
    session.wait_for_line("web01", SOON)?;
    let begun = Instant::now();
    start(laptop)?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "the daemon was ready after {:?}", begun.elapsed());
    session.wait_for_error_line("is back after", SOON)?;
    laptop.run(malai(["daemon", "status"]))?.success()?;
    assert_eq!((daemon_status(laptop)?["agent"].as_bool(), agents(laptop)?), (Some(false), 0));
    company.linked(web01)?;
    company.ran_remotely(laptop, web01)?;
    goes_on(session)
}

fn a_rescan_with_only_an_agent_signs_and_does_not_publish() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    let before = company.generation(web01)?;
    // First with nobody there, then with an agent.
    company.set("machine.web01", "accept_env = [\"A_*\"]")?;
    told(company.rescan_with(&[])?, 1, &["signed", "not published: no daemon runs here", "malai daemon"])?;
    assert_eq!(company.generation(web01)?, before);
    company.ran_remotely(laptop, web01)?;
    assert_eq!(agents(laptop)?, 1);
    company.set("machine.web01", "accept_env = [\"B_*\"]")?;
    told(company.rescan_with(&[])?, 1, &["signed", "not published: no daemon runs here", "malai daemon"])?;
    start(laptop)?;
    company.holds(web01, company.generation(laptop)?)?;
    ensure!(web01.run(malai(["config", "show"]))?.success()?.text().contains("B_*"));
    Ok(())
}

fn an_agent_that_nobody_needs_leaves() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    laptop.write("/root/malai-home/malai.toml", "agent_idle = 1\n")?;
    let session = company.spawn(laptop, web01, &["sh", "-c", "hostname; sleep 3; hostname"])?;
    // A live session keeps it for longer than the idle time.
    assert_eq!(session.output_within(SOON)?.success()?.text(), "web01\nweb01");
    wait_until(SOON, "the agent has left", || agents(laptop).is_ok_and(|found| found == 0))?;
    ensure!(!laptop.exists("/root/malai-home/malai.sock")?, "it left its socket");
    company.ran_remotely(laptop, web01)
}

fn an_agents_sessions_outlive_a_change_of_the_config() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    stop(laptop)?;
    let words = ["web01.company", "--", "sh", "-c", "hostname; read line; echo $line; exit 3"];
    let mut session = laptop.spawn(malai(words).stdin_open())?;
    session.wait_for_line("web01", SOON)?;
    company.set("machine.web01", "accept_env = [\"A_*\"]")?;
    company.rescan_with(&[])?.exited(1)?;
    // The next request has the agent look at the disk.
    company.ran_remotely(laptop, web01)?;
    session.write(b"still there\n")?;
    assert_eq!(session.output_within(SOON)?.exited(3)?.text(), "web01\nstill there");
    Ok(())
}

fn an_agent_is_not_shown_as_online_and_takes_no_command() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01], laptop) = (&office.company, &office.machines, office.laptop());
    company.allow(laptop, &["*"])?;
    company.ran_remotely(web01, laptop)?;
    stop(laptop)?;
    let session = company.spawn(laptop, web01, &["sh", "-c", "hostname; sleep 600"])?;
    session.wait_for_line("web01", SOON)?;
    let seen = company.machine_seen_from(web01, laptop)?;
    ensure!(seen["connection"].is_null(), "an agent is shown as online: {seen}");
    let back = malai(["--connect-timeout", "1s", "laptop.company", "--", "hostname"]);
    told(web01.run(back)?, 255, &["laptop.company cannot be reached"])?;
    Ok(())
}

fn an_agent_runs_what_is_aimed_at_this_very_machine() -> Result<()> {
    let lab = Lab::new("alone")?;
    let company = Cluster::on_disk("company", lab.host("laptop").boot()?, &["--private"])?;
    let laptop = company.manager();
    let output = company.run(laptop, laptop, &["sh", "-c", "hostname; exit 4"])?.exited(4)?;
    assert_eq!((output.text().as_str(), agents(laptop)?), ("laptop", 1));
    wait_until(SOON, "start and end are in the audit", || audit(laptop).is_ok_and(|lines| lines.len() == 2))
}

fn a_pipe_does_not_stay_open_because_of_an_agent() -> Result<()> {
    let office = Office::open(["web01"])?;
    let laptop = office.laptop();
    stop(laptop)?;
    // The reader ends only when nobody holds the pipe any more, the agent that is being started included.
    let pipe = "malai web01.company -- hostname 3>&1 | cat";
    assert_eq!(laptop.sh(pipe)?.success()?.text(), "web01");
    assert_eq!(agents(laptop)?, 1);
    let pid = daemon_status(laptop)?["pid"].to_string();
    let held = laptop.sh(&format!("cd /proc/{pid}; readlink cwd fd/0 fd/1 fd/2; ls -l fd | grep -c pipe:"))?;
    assert_eq!(held.text(), "/\n/dev/null\n/dev/null\n/dev/null\n0");
    Ok(())
}
