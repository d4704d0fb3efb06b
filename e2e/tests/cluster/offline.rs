//! Commands to machines that are not there: how soon they fail, what they say, and how they wait.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, audit, malai, start, stop};
use malai_e2e::lab::{Host, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::status::counted;
use crate::{Office, told};

/// A machine that went without a word is known to have gone within so long.
const NOTICED: Duration = Duration::from_secs(20);
/// How long a machine may take that boots, with its daemon.
const COMING: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_command_to_a_machine_that_is_known_to_have_gone_fails_after_a_second_and_says_when_it_was_seen,
        a_command_that_waits_runs_exactly_once_when_the_machine_comes,
        a_command_that_waits_takes_its_input_when_the_machine_comes,
        a_waiting_that_is_interrupted_starts_nothing,
        a_waiting_that_takes_too_long_is_a_machine_that_was_not_reached,
    ]
}

fn has_gone(laptop: &Host) -> Result<()> {
    wait_until(NOTICED, "the daemon knows that web01 has gone", || {
        counted(laptop, "malai_connections{cluster=\"company\"}").is_ok_and(|count| count == 0)
    })
}

fn a_command_to_a_machine_that_is_known_to_have_gone_fails_after_a_second_and_says_when_it_was_seen() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    web01.power_cut();
    has_gone(laptop)?;
    let begun = Instant::now();
    let words = ["web01.company cannot be reached", "; last seen ", " s ago", "--wait", "--connect-timeout 10s"];
    told(company.run(laptop, web01, &["true"])?, 255, &words)?;
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "it was dialled for {took:?}");
    let begun = Instant::now();
    let patient = malai(["--connect-timeout", "4s", "web01.company", "--", "true"]);
    told(laptop.run(patient)?, 255, &["; last seen "])?;
    ensure!(begun.elapsed() >= Duration::from_secs(4), "a time that is given is kept: {:?}", begun.elapsed());
    // It is dialled all the same: one that came back is reached before anybody was told that it did.
    web01.boot()?;
    start(web01)?;
    company.ran_remotely(laptop, web01)
}

fn a_command_that_waits_runs_exactly_once_when_the_machine_comes() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    web01.power_cut();
    let words = ["--wait=60s", "-n", "web01.company", "--", "sh", "-c", "echo ran >>/root/ran; hostname"];
    let waiting = laptop.spawn(malai(words))?;
    let line = waiting.wait_for_error_line("web01.company is not there", SOON)?;
    ensure!(line.starts_with("malai: web01.company is not there (last seen "), "{line}");
    ensure!(line.ends_with(" ago); waiting for it to come…"), "{line}");
    // Its connection looked as if it were there at first, and nothing was sent over it.
    has_gone(laptop)?;
    ensure!(!waiting.has_ended(), "it waits on");
    web01.boot()?;
    start(web01)?;
    let output = waiting.output_within(COMING)?.success()?;
    assert_eq!(output.text(), "web01");
    ensure!(output.error_text().matches("is not there").count() == 1, "it is said once: {}", output.error_text());
    assert_eq!(web01.read("/root/ran")?, "ran\n");
    let starts = audit(web01)?.iter().filter(|line| line["event"] == "start").count();
    assert_eq!(starts, 1);
    Ok(())
}

fn a_command_that_waits_takes_its_input_when_the_machine_comes() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    stop(web01)?;
    // More than any socket or daemon holds while nobody takes it.
    let line = "head -c 3000000 /dev/zero | malai --wait web01.company -- sh -c 'hostname; wc -c'";
    let waiting = laptop.spawn(["sh", "-c", line])?;
    waiting.wait_for_error_line("web01.company is not there", SOON)?;
    start(web01)?;
    assert_eq!(waiting.output_within(COMING)?.success()?.text(), "web01\n3000000");
    Ok(())
}

fn a_waiting_that_is_interrupted_starts_nothing() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    stop(web01)?;
    let line = "exec malai --wait web01.company -- touch /root/ran </dev/zero";
    let waiting = laptop.spawn(["sh", "-c", line])?;
    waiting.wait_for_error_line("waiting for it to come", SOON)?;
    waiting.signal(Signal::SIGINT)?;
    let begun = Instant::now();
    told(waiting.output_within(SOON)?, 130, &["interrupted; nothing was started on web01.company"])?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it left after {:?}", begun.elapsed());
    start(web01)?;
    company.linked(web01)?;
    company.ran_remotely(laptop, web01)?;
    ensure!(!web01.exists("/root/ran")?, "the command ran");
    ensure!(audit(web01)?.iter().all(|line| line["words"][0] != "touch"), "it was asked for");
    Ok(())
}

fn a_waiting_that_takes_too_long_is_a_machine_that_was_not_reached() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    stop(web01)?;
    let begun = Instant::now();
    let output = laptop.run(malai(["--json", "--wait=4s", "web01.company", "--", "true"]))?;
    let output = told(output, 255, &["is not there", "web01.company cannot be reached"])?;
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(4) && took < Duration::from_secs(8), "it waited for {took:?}");
    let events: Vec<serde_json::Value> = output.text().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let events: Vec<_> = events.iter().map(|line| (&line["event"], &line["error"]["kind"])).collect();
    let (null, waiting, error) = (serde_json::Value::Null, "waiting".into(), "error".into());
    assert_eq!(events, [(&waiting, &null), (&error, &"unreachable".into())]);
    Ok(())
}
