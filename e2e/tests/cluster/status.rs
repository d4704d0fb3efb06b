//! Which machines are there, by evidence alone; and what a daemon counts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, start, stop, text};
use malai_e2e::lab::{Host, wait_for, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Office, told};

/// A machine that went without a word is known to have gone within so long.
const NOTICED: Duration = Duration::from_secs(20);
/// What a status may take: two seconds of asking, and a busy machine.
const STATUS: Duration = Duration::from_secs(4);

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_machine_that_lost_power_is_never_shown_as_connected_and_is_known_to_have_gone_within_20_s,
        a_machine_without_a_connection_is_found_by_asking_it,
        what_is_counted_grows_by_what_was_done,
    ]
}

/// What a host's `malai status` says of another, after asking it.
fn asked(company: &Cluster, from: &Host, machine: &Host) -> Result<Value> {
    let begun = Instant::now();
    let status = json(&from.run(malai(["status", "--json"]))?.success()?)?;
    ensure!(begun.elapsed() < STATUS, "it took {:?}", begun.elapsed());
    let clusters = status["clusters"].as_array().context("no clusters")?;
    let machines = clusters.iter().find(|cluster| cluster["alias"] == "company").context("no company")?;
    let machines = machines["machines"].as_array().with_context(|| company.target(machine))?;
    let found = machines.iter().find(|one| one["name"] == machine.hostname());
    found.cloned().with_context(|| format!("no {} in {status}", machine.hostname()))
}

/// A number of `malai metrics`.
pub(crate) fn counted(host: &Host, sample: &str) -> Result<u64> {
    let text = host.run(malai(["metrics"]))?.success()?.text();
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.with_context(|| format!("no {sample} in:\n{text}"))?.parse().with_context(|| format!("{sample} is no number"))
}

fn a_machine_that_lost_power_is_never_shown_as_connected_and_is_known_to_have_gone_within_20_s() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    ensure!(asked(company, laptop, web01)?["connection"].is_object(), "it is there at first");
    web01.power_cut();
    let cut = Instant::now();
    // At once, although the connection does not know it yet.
    let seen = asked(company, laptop, web01)?;
    ensure!(seen["connection"].is_null() && seen["probed"] == true, "{seen}");
    let table = laptop.run(malai(["status"]))?.success()?.text();
    let row = table.lines().find(|line| line.contains("web01")).context("no web01")?;
    ensure!(row.contains("no answer, last seen "), "{row}");
    // And nobody has to ask for it.
    wait_until(NOTICED, "the daemon knows that web01 has gone", || {
        counted(laptop, "malai_connections{cluster=\"company\"}").is_ok_and(|count| count == 0)
    })?;
    ensure!(cut.elapsed() < NOTICED, "noticed after {:?}", cut.elapsed());
    let quick = company.machine_seen_from(laptop, web01)?;
    ensure!(quick["connection"].is_null() && quick["probed"] == false && quick["last_seen_ms"].is_u64(), "{quick}");
    Ok(())
}

fn a_machine_without_a_connection_is_found_by_asking_it() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    let before = company.machine_seen_from(web01, db01)?;
    ensure!(before["connection"].is_null() && before["probed"] == false, "nobody asked yet: {before}");
    let seen = asked(company, web01, db01)?;
    ensure!(text(&seen, "/connection/path")?.starts_with(&format!("direct {}:", db01.ip())), "{seen}");
    for number in ["rtt_us", "sent_bytes", "received_bytes"] {
        ensure!(seen["connection"][number].as_u64().is_some_and(|n| n > 0), "{number}: {seen}");
    }
    let own = company.status(web01)?;
    ensure!(seen["generation"] == own["generation"], "{seen} and {own}");
    let version = web01.run(malai(["--version"]))?.success()?.text();
    assert_eq!(Some(version.as_str()), seen["malai"].as_str().map(|malai| format!("malai {malai}")).as_deref());
    Ok(())
}

fn what_is_counted_grows_by_what_was_done() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, laptop, [web01]) = (&office.company, office.laptop(), &office.machines);
    let called = "malai_sessions_total{cluster=\"company\",role=\"caller\"}";
    let served = "malai_sessions_total{cluster=\"company\",role=\"target\"}";
    let now = |role: &str| format!("malai_sessions{{cluster=\"company\",role=\"{role}\"}}");
    assert_eq!((counted(laptop, called)?, counted(web01, served)?), (0, 0));
    let sent = counted(laptop, "malai_sent_bytes_total{cluster=\"company\"}")?;
    for _ in 0..3 {
        company.ran_remotely(laptop, web01)?;
    }
    let long = company.spawn(laptop, web01, &["sh", "-c", "hostname; sleep 600"])?;
    long.wait_for_line("web01", SOON)?;
    assert_eq!((counted(laptop, called)?, counted(web01, served)?), (4, 4));
    assert_eq!((counted(laptop, &now("caller"))?, counted(web01, &now("target"))?), (1, 1));
    assert_eq!((counted(laptop, served)?, counted(web01, called)?), (0, 0), "the other way nothing ran");
    long.signal(Signal::SIGINT)?;
    long.output_within(SOON)?.exited(130)?;
    wait_until(SOON, "no session is left", || {
        counted(laptop, &now("caller")).is_ok_and(|n| n == 0) && counted(web01, &now("target")).is_ok_and(|n| n == 0)
    })?;
    ensure!(counted(laptop, "malai_sent_bytes_total{cluster=\"company\"}")? > sent, "bytes were sent");
    told(company.run(web01, laptop, &["true"])?, 254, &[])?;
    assert_eq!(counted(laptop, "malai_refusals_total{cluster=\"company\",what=\"session\"}")?, 1);
    assert_eq!((counted(laptop, served)?, counted(web01, called)?), (0, 1));
    let generation = company.generation(laptop)?;
    assert_eq!(counted(web01, "malai_config_generation{cluster=\"company\"}")?, generation);
    assert_eq!(counted(web01, "malai_link_up{cluster=\"company\"}")?, 1);
    let reconnects = || counted(laptop, "malai_reconnects_total{cluster=\"company\"}");
    assert_eq!(reconnects()?, 0);
    stop(web01)?;
    wait_for(SOON, "the link is gone", || {
        Ok((counted(laptop, "malai_connections{cluster=\"company\"}")? == 0).then_some(()))
    })?;
    start(web01)?;
    company.linked(web01)?;
    assert_eq!(reconnects()?, 1);
    assert_eq!(counted(web01, served)?, 0, "another daemon counts from its own start");
    stop(laptop)?;
    told(laptop.run(malai(["metrics"]))?, 255, &["needs a daemon", "hint: malai daemon"])?;
    Ok(())
}
