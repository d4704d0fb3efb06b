//! `scripts/multi-server`: commands between daemons that are killed are right, a wrong one fails, and nothing is left.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::json;
use malai_e2e::lab::{Host, Lab};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{LONG, Possessions, install, script};

pub(crate) fn trials() -> Vec<Trial> {
    malai_e2e::trials![
        three_daemons_run_commands_on_each_other_while_daemons_are_killed,
        a_wrong_exit_code_between_daemons_fails_the_run,
        a_command_that_ran_twice_fails_the_run,
        an_interrupted_run_leaves_no_daemon,
    ]
}

/// A host alone with the scripts, and what it has.
fn host(lab: &Lab) -> Result<(Host, Possessions)> {
    let host = lab.host("alone").on(&lab.segment("lan")?).boot()?;
    install(&host)?;
    let before = Possessions::of(&host)?;
    Ok((host, before))
}

fn three_daemons_run_commands_on_each_other_while_daemons_are_killed() -> Result<()> {
    let lab = Lab::new("multi")?;
    let (host, before) = host(&lab)?;
    // With this seed both kinds of restart come.
    let words = ["3", "--churn", "4", "--seed", "5", "--json"];
    let document = json(&host.run(script("multi-server", &words))?.success()?)?;
    let cells = document.get("cells").and_then(Value::as_array).context("no cells")?;
    ensure!(cells.len() == 6, "{document}");
    for cell in cells {
        let path = cell.get("path").and_then(Value::as_str).unwrap_or_default();
        ensure!(path.starts_with("direct ") && number(cell, "rtt_us") > 0, "no path or time: {cell}");
        ensure!(number(cell, "commands") >= 3, "a command before, one meanwhile, and one after: {cell}");
    }
    ensure!(document.get("wrong") == Some(&Value::Array(Vec::new())), "{document}");
    ensure!(number(&document, "restarts") == 4 && (1..4).contains(&number(&document, "killed")), "{document}");
    before.are_all_of(&host)
}

fn number(document: &Value, key: &str) -> u64 {
    document.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// Does as malai does, but for one thing that it does to commands on m2.
fn fault(host: &Host, what: &str) -> Result<()> {
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*' m2.multi -- '*) {what} ;;\n*) exec /usr/local/bin/malai \"$@\" ;;\nesac\n"
    );
    host.write("/root/fault", script)?;
    host.run(["chmod", "755", "/root/fault"])?.success()?;
    Ok(())
}

fn a_wrong_exit_code_between_daemons_fails_the_run() -> Result<()> {
    let lab = Lab::new("multi-code")?;
    let (host, _) = host(&lab)?;
    fault(&host, "/usr/local/bin/malai \"$@\"; exit 0")?;
    let before = Possessions::of(&host)?;
    let output = host.run(script("multi-server", &[]).env("MALAI_BIN", "/root/fault"))?.exited(1)?;
    ensure!(output.error_text().contains("wrong: m1 m2") && output.error_text().contains("not 7"), "{output:?}");
    ensure!(!output.error_text().contains("wrong: m2 m1"), "{output:?}");
    before.are_all_of(&host)
}

fn a_command_that_ran_twice_fails_the_run() -> Result<()> {
    let lab = Lab::new("multi-twice")?;
    let (host, _) = host(&lab)?;
    fault(&host, "/usr/local/bin/malai \"$@\" >/dev/null; exec /usr/local/bin/malai \"$@\"")?;
    let before = Possessions::of(&host)?;
    let output = host.run(script("multi-server", &["2"]).env("MALAI_BIN", "/root/fault"))?.exited(1)?;
    ensure!(output.error_text().contains("the audits have it 2 times"), "{output:?}");
    before.are_all_of(&host)
}

fn an_interrupted_run_leaves_no_daemon() -> Result<()> {
    let lab = Lab::new("multi-int")?;
    let (host, before) = host(&lab)?;
    let run = host.spawn(script("multi-server", &["2", "--churn", "1000"]))?;
    run.wait_for_error_line("restart 2:", LONG)?;
    run.signal(Signal::SIGINT)?;
    run.output_within(Duration::from_secs(60))?.exited(130)?;
    before.are_all_of(&host)
}
