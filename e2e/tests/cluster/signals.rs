//! Signals at the CLI reach the command's process group.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, running};
use malai_e2e::lab::{Child, Cmd, Output, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;

use crate::Office;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        interrupt_terminate_and_hang_up_reach_the_whole_process_group,
        a_command_that_ignores_an_interrupt_is_ended_by_a_second,
        the_interrupt_of_timeout_reaches_the_command_once_and_its_own_end_is_told,
        a_command_that_ignores_terminate_is_ended_after_a_while,
    ]
}

fn interrupt_terminate_and_hang_up_reach_the_whole_process_group() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    for (signal, name) in [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP")] {
        // The outer shell runs its trap when the inner one, which it waits for, has ended.
        let inner = format!("trap \"echo inner got {name}; exit\" {name}; hostname; while :; do sleep 0.05; done");
        let outer = format!("trap 'echo outer got {name}' {name}; sh -c '{inner}'; exit 42");
        let session = company.spawn(office.laptop(), web01, &["sh", "-c", &outer])?;
        session.wait_for_line("web01", SOON)?;
        session.signal(signal)?;
        let output = session.output_within(SOON)?.exited(42)?;
        for who in ["inner", "outer"] {
            ensure!(
                output.text().contains(&format!("{who} got {name}")),
                "{who} did not get {name}: {}",
                output.text()
            );
        }
    }
    Ok(())
}

/// A command on web01 that says what it got of these signals and goes on.
fn deaf(office: &Office<1>, signal: &str) -> Result<Child> {
    let [web01] = &office.machines;
    let script = format!("trap 'echo deaf to {signal}' {signal}; hostname; while :; do sleep 0.05; done");
    let session = office.company.spawn(office.laptop(), web01, &["sh", "-c", &script])?;
    session.wait_for_line("web01", SOON)?;
    Ok(session)
}

/// The caller counts as gone: 253, and nothing stays behind.
fn gone(office: &Office<1>, session: Child) -> Result<Output> {
    let [web01] = &office.machines;
    let output = session.output_within(SOON)?.exited(253)?;
    wait_until(SOON, "the command is gone", || running(web01, "deaf to").is_ok_and(|found| found == 0))?;
    Ok(output)
}

fn a_command_that_ignores_an_interrupt_is_ended_by_a_second() -> Result<()> {
    let office = Office::open(["web01"])?;
    let session = deaf(&office, "INT")?;
    session.signal(Signal::SIGINT)?;
    session.wait_for_line("deaf to INT", SOON)?;
    // A second one at once would count as the first one again.
    std::thread::sleep(Duration::from_millis(150));
    session.signal(Signal::SIGINT)?;
    gone(&office, session)?;
    Ok(())
}

/// GNU `timeout` sends its signal to malai, and then to the group that malai is in.
fn the_interrupt_of_timeout_reaches_the_command_once_and_its_own_end_is_told() -> Result<()> {
    let office = Office::open(["web01"])?;
    let counts = "n=0; trap 'n=$((n+1))' INT; hostname; while [ $n = 0 ]; do sleep 0.05; done; \
        i=0; while [ $i -lt 20 ]; do sleep 0.05; i=$((i+1)); done; echo interrupted $n times; exit 42";
    let words = ["timeout", "--preserve-status", "-s", "INT", "1", "malai", "web01.company", "--", "sh", "-c", counts];
    let output = office.laptop().run(Cmd::new(words))?.exited(42)?;
    assert_eq!(output.text(), "web01\ninterrupted 1 times");
    Ok(())
}

fn a_command_that_ignores_terminate_is_ended_after_a_while() -> Result<()> {
    let office = Office::open(["web01"])?;
    let session = deaf(&office, "TERM")?;
    session.signal(Signal::SIGTERM)?;
    let output = gone(&office, session)?;
    ensure!(output.error_text().contains("did not react to the signal"), "{}", output.error_text());
    Ok(())
}
