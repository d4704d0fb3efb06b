//! What `malai ping` shows of a machine, and of the way to it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, running, stop};
use malai_e2e::lab::{Child, Lab, Output, Services, wait_for};
use malai_e2e::trials;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::network::behind_nat;
use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        each_answer_has_its_time_and_path_and_an_interrupt_sums_up,
        a_lost_network_shows_as_losses_and_then_answers_again,
        a_machine_that_only_a_relay_reaches_is_answered_by_the_relay,
        pings_work_without_a_daemon_and_end_with_their_reader,
        a_ping_that_reaches_nobody_says_why,
    ]
}

/// What `malai --json ping` printed, line by line.
fn lines(output: &Output) -> Result<Vec<Value>> {
    output.text().lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

fn interrupted(pings: Child, code: i32, words: &[&str]) -> Result<Output> {
    pings.signal(Signal::SIGINT)?;
    told(pings.output_within(SOON)?, code, words)
}

fn each_answer_has_its_time_and_path_and_an_interrupt_sums_up() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let pings = office.laptop().spawn(malai(["ping", "--interval", "100ms", "web01.company"]))?;
    let line = pings.wait_for_line("answer 3 from web01.company: ", SOON)?;
    ensure!(line.contains(&format!(" ms, direct {}:", web01.ip())), "{line}");
    interrupted(pings, 0, &["answered, 0% lost; ", " ms (min/mean/max)"])?;
    // web01 has no grant on the laptop, and needs none.
    let counted = web01.run(malai(["--json", "ping", "-c", "2", "laptop.company"]))?.success()?;
    let lines = lines(&counted)?;
    let events: Vec<_> = lines.iter().map(|line| (&line["event"], &line["seq"], &line["direct"])).collect();
    let answer = Value::from("answer");
    assert_eq!(events, [(&answer, &Value::from(1), &true.into()), (&answer, &Value::from(2), &true.into())]);
    ensure!(counted.error_text().contains("malai: 2 sent, 2 answered, 0% lost; "), "{}", counted.error_text());
    let direct = office.laptop().run(malai(["ping", "--until-direct", "web01.company"]))?.success()?;
    ensure!(direct.text().lines().count() == 1, "{}", direct.text());
    let here = office.laptop().run(malai(["ping", "-c", "1", "laptop.company"]))?.success()?;
    assert_eq!(here.text(), "answer 1 from laptop.company: 0.0 ms, this machine");
    Ok(())
}

fn a_lost_network_shows_as_losses_and_then_answers_again() -> Result<()> {
    let office = Office::open(["web01"])?;
    let pings = office.laptop().spawn(malai(["ping", "--interval", "200ms", "web01.company"]))?;
    pings.wait_for_line("answer 1 from", SOON)?;
    office.laptop().link_down()?;
    let lost = pings.wait_for_line("no answer ", SOON)?;
    ensure!(lost.ends_with(" from web01.company within 1 s"), "{lost}");
    office.laptop().link_up()?;
    let printed = || String::from_utf8_lossy(&pings.stdout()).into_owned();
    wait_for(SOON, "it is answered again", || {
        let after = printed().rsplit_once("no answer ").map(|(_, after)| after.contains("\nanswer "));
        Ok(after.unwrap_or(false).then_some(()))
    })?;
    let output = interrupted(pings, 0, &["answered, "])?;
    ensure!(!output.error_text().contains(" 0% lost"), "{}", output.error_text());
    Ok(())
}

fn a_machine_that_only_a_relay_reaches_is_answered_by_the_relay() -> Result<()> {
    let lab = Lab::new("relayed")?;
    let internet = lab.internet()?;
    let server = lab.host("services").on(&internet).boot()?;
    let services = Services::start(&server)?;
    let (laptop, _router) = behind_nat(&lab, &internet, "laptop")?;
    let (web01, _other_router) = behind_nat(&lab, &internet, "web01")?;
    let company = Cluster::init_at("company", laptop, &services)?;
    company.join(&web01)?;
    let relayed = company.manager().run(malai(["--json", "ping", "-c", "3", "web01.company"]))?.success()?;
    for line in lines(&relayed)? {
        let path = line["path"].as_str().unwrap_or_default();
        ensure!(path.starts_with("relay ") && path.contains(&services.relay), "{line}");
        ensure!(line["direct"] == false, "{line}");
    }
    let words = ["ping", "-c", "3", "--interval", "100ms", "--until-direct", "web01.company"];
    let output = company.manager().run(malai(words))?;
    told(output, 1, &["3 sent, 3 answered", "no answer came over a direct path"])?;
    Ok(())
}

fn pings_work_without_a_daemon_and_end_with_their_reader() -> Result<()> {
    let office = Office::open(["web01"])?;
    let laptop = office.laptop();
    stop(laptop)?;
    let first = laptop.sh("malai ping --interval 100ms web01.company | head -n 1")?.success()?;
    ensure!(first.text().starts_with("answer 1 from web01.company: "), "{}", first.text());
    assert_eq!((running(laptop, "malai agent")?, running(laptop, "malai ping")?), (1, 0));
    Ok(())
}

fn a_ping_that_reaches_nobody_says_why() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    told(laptop.run(malai(["ping", "wbe01.company"]))?, 255, &["no machine wbe01", "hint: "])?;
    told(laptop.run(malai(["ping", "--interval", "99ms", "web01.company"]))?, 2, &["at least 100ms"])?;
    told(laptop.run(malai(["ping", "-c", "0", "web01.company"]))?, 2, &["0"])?;
    let pings = laptop.spawn(malai(["ping", "--interval", "100ms", "-c", "20", "web01.company"]))?;
    pings.wait_for_line("answer 1 from", SOON)?;
    stop(web01)?;
    let quick = ["--json", "ping", "--connect-timeout", "1s", "web01.company"];
    let unreachable = told(laptop.run(malai(quick))?, 255, &["web01.company cannot be reached", "hint: "])?;
    assert_eq!(lines(&unreachable)?.iter().map(|line| &line["error"]["kind"]).collect::<Vec<_>>(), ["unreachable"]);
    told(pings.output_within(Duration::from_secs(10))?, 0, &["20 sent, "])?;
    Ok(())
}
