//! Detached commands: started, left, found again, read, waited for and ended, on another host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, audit, daemon_status, json, malai, start, stop, text};
use malai_e2e::lab::{Host, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_detached_command_outlives_its_caller_and_everybody_who_may_reads_its_output,
        a_detached_command_outlives_both_daemons,
        a_detached_command_is_signalled_and_ended_from_elsewhere,
        a_detached_command_whose_executor_was_killed_keeps_its_output_and_is_never_a_success,
        an_attachment_outlives_the_network_and_its_end_leaves_the_command_running,
        sessions_of_all_machines_are_listed_and_one_that_is_missing_is_told,
        only_who_is_in_allow_sessions_sees_the_sessions_of_others,
        who_may_only_watch_watches_and_who_may_control_takes_over_until_the_grant_is_withdrawn,
        what_cannot_be_detached_or_found_says_so,
    ]
}

/// Starts it from the laptop, and returns its name.
fn detach<const N: usize>(office: &Office<N>, words: &[&str]) -> Result<String> {
    let name = office.laptop().run(malai(["web01.company", "--detach", "--"].iter().chain(words)))?.exited(0)?.text();
    ensure!(name.starts_with("web01.company/") && name.len() == "web01.company/".len() + 32, "no name: {name:?}");
    Ok(name)
}

fn run(host: &Host, words: &[&str], code: i32) -> Result<String> {
    Ok(host.run(malai(words))?.exited(code)?.text())
}

/// A command that says where it runs, waits for a line in a file, and then ends with 5.
const WAITS: &str = "hostname; until [ -e /root/go ]; do sleep 0.05; done; echo oh >&2; echo end; exit 5";

fn a_detached_command_outlives_its_caller_and_everybody_who_may_reads_its_output() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let name = detach(&office, &["sh", "-c", WAITS])?;
    let waiting = laptop.spawn(malai(["wait", &name]))?;
    let following = laptop.spawn(malai(["attach", &name]))?;
    following.wait_for_line("web01", SOON)?;
    let document = json(&laptop.run(malai(["sessions", "web01.company", "--json"]))?.exited(0)?)?;
    assert_eq!(text(&document, "/sessions/0/session")?, name);
    assert_eq!(text(&document, "/sessions/0/state")?, "running");
    assert_eq!(text(&document, "/sessions/0/owner_name")?, "laptop");

    web01.write("/root/go", "")?;
    let output = following.output_within(SOON)?.exited(5)?;
    assert_eq!((output.text(), output.error_text()), ("web01\nend".into(), "oh".into()));
    waiting.output_within(SOON)?.exited(5)?;
    // Again, when it is over; by a part of its name, too.
    assert_eq!(run(laptop, &["attach", &name], 5)?, "web01\nend");
    let (target, id) = name.split_once('/').context("a name")?;
    assert_eq!(run(laptop, &["attach", target, &id[..6]], 5)?, "web01\nend");
    assert_eq!(run(laptop, &["attach", "--from-end", &name], 5)?, "");
    let shown = run(laptop, &["sessions"], 0)?;
    ensure!(shown.contains(&name) && shown.contains("exited 5"), "{shown}");
    Ok(())
}

fn a_detached_command_outlives_both_daemons() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let name = detach(&office, &["sh", "-c", WAITS])?;
    stop(laptop)?;
    web01.run(malai(["daemon", "stop", "--keep-sessions"]))?.exited(0)?;
    web01.write("/root/go", "")?;
    start(web01)?;
    start(laptop)?;
    office.company.linked(web01)?;
    run(laptop, &["wait", &name], 5)?;
    assert_eq!(run(laptop, &["attach", &name], 5)?, "web01\nend");
    // Its output is on the disk, and outlives the executor.
    stop(web01)?;
    start(web01)?;
    office.company.linked(web01)?;
    assert_eq!(run(laptop, &["attach", &name], 5)?, "web01\nend");
    Ok(())
}

fn a_detached_command_is_signalled_and_ended_from_elsewhere() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let script = "trap 'echo hup' HUP; hostname; while :; do sleep 0.05; done";
    let name = detach(&office, &["sh", "-c", script])?;
    let following = laptop.spawn(malai(["attach", &name]))?;
    following.wait_for_line("web01", SOON)?;
    run(laptop, &["kill", "--signal", "HUP", &name], 0)?;
    following.wait_for_line("hup", SOON)?;
    run(laptop, &["kill", &name], 0)?;
    told(following.output_within(SOON)?, 253, &["was killed by `malai kill`", "from laptop"])?;
    told(laptop.run(malai(["wait", &name]))?, 253, &["was killed by `malai kill`"])?;
    let ended =
        |lines: &[serde_json::Value]| lines.iter().any(|line| line.to_string().contains("`malai kill` from laptop"));
    wait_until(SOON, "the end is in the audit", || audit(web01).is_ok_and(|lines| ended(&lines)))?;
    // There is nothing to signal any more, and to end it again changes nothing.
    told(laptop.run(malai(["kill", "--signal", "9", &name]))?, 255, &["is over"])?;
    run(laptop, &["kill", &name], 0)?;
    Ok(())
}

fn a_detached_command_whose_executor_was_killed_keeps_its_output_and_is_never_a_success() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let name = detach(&office, &["sh", "-c", WAITS])?;
    laptop.spawn(malai(["attach", &name]))?.wait_for_line("web01", SOON)?;
    let executor = daemon_status(web01)?.pointer("/executor_pid").context("an executor")?.to_string();
    web01.sh(&format!("kill -9 {executor}"))?.exited(0)?;
    // By then the next one has it.
    let output = told(laptop.run(malai(["wait", &name]))?, 253, &["the executor died"])?;
    ensure!(output.stdout.is_empty());
    let output = told(laptop.run(malai(["attach", &name]))?, 253, &["the executor died"])?;
    assert_eq!(output.text(), "web01");
    ensure!(run(laptop, &["sessions"], 0)?.contains("unknown"));
    Ok(())
}

fn an_attachment_outlives_the_network_and_its_end_leaves_the_command_running() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let name = detach(&office, &["sh", "-c", WAITS])?;
    let following = laptop.spawn(malai(["attach", &name]))?;
    following.wait_for_line("web01", SOON)?;
    web01.link_down()?;
    following.wait_for_error_line("lost", SOON)?;
    web01.link_up()?;
    following.wait_for_error_line("is back", SOON)?;
    following.signal(Signal::SIGINT)?;
    told(following.output_within(SOON)?, 130, &["goes on", &name])?;
    web01.write("/root/go", "")?;
    run(laptop, &["wait", &name], 5)?;
    Ok(())
}

fn sessions_of_all_machines_are_listed_and_one_that_is_missing_is_told() -> Result<()> {
    let office = Office::open(["web01", "web02"])?;
    let (laptop, [_, web02]) = (office.laptop(), &office.machines);
    let names: Vec<String> = ["web01", "web02"]
        .iter()
        .map(|name| run(laptop, &["--detach", &format!("{name}.company"), "--", "sleep", "1000"], 0))
        .collect::<Result<_>>()?;
    let shown = run(laptop, &["sessions"], 0)?;
    ensure!(names.iter().all(|name| shown.contains(name)), "{shown}");
    stop(web02)?;
    let output = told(laptop.run(malai(["sessions", "--connect-timeout", "2s"]))?, 255, &["web02.company"])?;
    ensure!(output.text().contains(&names[0]) && !output.text().contains(&names[1]), "{}", output.text());
    Ok(())
}

fn only_who_is_in_allow_sessions_sees_the_sessions_of_others() -> Result<()> {
    let office = Office::open(["web01", "ops"])?;
    let (laptop, [web01, ops]) = (office.laptop(), &office.machines);
    let name = run(laptop, &["--detach", "web01.company", "--", "sh", "-c", WAITS], 0)?;
    assert!(!run(ops, &["sessions", "web01.company"], 0)?.contains(&name));
    for command in ["attach", "wait", "kill"] {
        told(ops.run(malai([command, &name]))?, 253, &[])?;
    }
    office.company.publish("machine.web01", "allow_sessions = [\"ops\"]")?;
    ensure!(run(ops, &["sessions", "web01.company"], 0)?.contains(&name));
    web01.write("/root/go", "")?;
    assert_eq!(run(ops, &["attach", &name], 5)?, "web01\nend");
    run(ops, &["wait", &name], 5)?;
    Ok(())
}

fn who_may_only_watch_watches_and_who_may_control_takes_over_until_the_grant_is_withdrawn() -> Result<()> {
    let office = Office::open(["web01", "ops"])?;
    let (laptop, company, [web01, ops]) = (office.laptop(), &office.company, &office.machines);
    company.publish("machine.web01", "allow_sessions = [\"ops\"]")?;
    let script = "trap 'echo hup' HUP; hostname; until [ -e /root/go ]; do sleep 0.05; done; exit 5";
    let name = detach(&office, &["sh", "-c", script])?;

    let watching = ops.spawn(malai(["attach", &name]))?;
    watching.wait_for_line("web01", SOON)?;
    watching.wait_for_error_line("may only watch", SOON)?;
    watching.signal(Signal::SIGINT)?;
    told(watching.output_within(SOON)?, 130, &["`allow_control` of [machine.web01]", "goes on"])?;
    told(ops.run(malai(["kill", "--signal", "HUP", &name]))?, 254, &["allow_control = [\"ops\"]"])?;
    let waiting = ops.spawn(malai(["wait", &name]))?;

    // The owner takes its place back, and keeps it.
    let watching = ops.spawn(malai(["attach", &name]))?;
    watching.wait_for_line("web01", SOON)?;
    let following = laptop.spawn(malai(["attach", &name]))?;
    following.wait_for_line("web01", SOON)?;
    told(watching.output_within(SOON)?, 253, &["followed from elsewhere", "of machine laptop.company;"])?;
    told(ops.run(malai(["attach", &name]))?, 255, &["follows this session already", "allow_control"])?;

    company.publish("machine.web01", "allow_control = [\"ops\"]")?;
    let taking = ops.spawn(malai(["attach", &name]))?;
    taking.wait_for_line("web01", SOON)?;
    told(following.output_within(SOON)?, 253, &["followed from elsewhere", "of machine ops.company;"])?;
    run(ops, &["kill", "--signal", "HUP", &name], 0)?;
    taking.wait_for_line("hup", SOON)?;
    company.publish("machine.web01", "allow_control = []")?;
    // `rescan` returns when web01 holds the new config.
    let output = told(taking.output_within(Duration::from_secs(1))?, 254, &["`ops` is not in `allow_control`"])?;
    ensure!(!output.error_text().contains("may only watch"), "{}", output.error_text());
    ensure!(!waiting.has_ended(), "`allow_sessions` has it still");
    company.publish("machine.web01", "allow_sessions = []")?;
    told(waiting.output_within(Duration::from_secs(1))?, 254, &["`ops` is not in `allow_sessions`"])?;

    let theirs: Vec<String> = (audit(web01)?.iter())
        .filter(|line| line["who"] == "ops" && line["owner_name"] == "laptop")
        .map(|line| line["event"].as_str().unwrap_or_default().to_owned())
        .collect();
    let wanted = ["attach", "refused", "attach", "attach", "refused", "take-over", "signal", "refused", "refused"];
    assert_eq!(theirs, wanted);
    let shown = run(web01, &["audit"], 0)?;
    ensure!(shown.contains("take-over ops.company owner=laptop"), "{shown}");
    ensure!(shown.contains("signal    ops.company owner=laptop signal=1"), "{shown}");
    web01.write("/root/go", "")?;
    run(laptop, &["wait", &name], 5)?;
    Ok(())
}

fn what_cannot_be_detached_or_found_says_so() -> Result<()> {
    let office = Office::open(["web01"])?;
    let laptop = office.laptop();
    told(laptop.run(malai(["--detach", "--kill-on-lost", "web01.company", "--", "true"]))?, 2, &["--kill-on-lost"])?;
    told(laptop.run(malai(["--detach", "web01.company", "--", "no-such-program"]))?, 127, &["no-such-program"])?;
    told(laptop.run(malai(["attach", "web01.company/0123"]))?, 255, &["0123"])?;
    let unknown = format!("web01.company/{}", "0".repeat(32));
    told(laptop.run(malai(["wait", &unknown]))?, 253, &["does not know this session"])?;
    // Of a command that was not started nothing is left.
    ensure!(!run(laptop, &["sessions"], 0)?.contains("no-such-program"));
    Ok(())
}
