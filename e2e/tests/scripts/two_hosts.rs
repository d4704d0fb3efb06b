//! `scripts/e2e-two-hosts`: every line passes, a fault is a failed line, and nothing is left on the hosts.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::lab::{Host, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{LONG, Stage, document};

/// The lines of a whole report.
const LINES: usize = 41;

pub(crate) fn trials() -> Vec<Trial> {
    malai_e2e::trials![
        every_line_passes_between_two_hosts_and_nothing_is_left_on_them,
        an_interrupted_run_leaves_nothing_and_passes_nothing_that_it_did_not_do,
        a_program_that_does_not_run_ends_the_run_at_its_version,
        a_config_that_is_not_obeyed_fails_its_lines_and_the_run,
        a_host_that_is_not_reached_is_a_failed_line,
        two_names_of_one_host_are_no_two_hosts,
    ]
}

/// The outcomes of a report, by the id of the line.
struct Report(Value);

impl Report {
    fn of(driver: &Host) -> Result<Self> {
        document(driver, "/root/report/report.json").map(Self)
    }

    fn lines(&self) -> Result<Vec<(&str, &str, &str)>> {
        let lines = self.0.get("lines").and_then(Value::as_array).context("no lines")?;
        let text = |line: &'_ Value, key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
        lines.iter().map(|line| line_of(line).with_context(|| format!("{:?}", text(line, "id")))).collect()
    }

    fn outcome(&self, id: &str) -> Result<&str> {
        let lines = self.lines()?;
        let found = lines.iter().find(|line| line.0 == id);
        found.map(|line| line.1).with_context(|| format!("no line {id}: {lines:?}"))
    }

    fn with_outcome(&self, outcome: &str) -> Result<Vec<String>> {
        let lines = self.lines()?;
        Ok(lines.iter().filter(|line| line.1 == outcome).map(|line| format!("{}: {}", line.0, line.2)).collect())
    }

    fn text(&self, pointer: &str) -> Result<&str> {
        self.0.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {}", self.0))
    }
}

fn line_of(line: &Value) -> Result<(&str, &str, &str)> {
    let text = |key: &str| line.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {line}"));
    Ok((text("id")?, text("outcome")?, text("detail")?))
}

fn every_line_passes_between_two_hosts_and_nothing_is_left_on_them() -> Result<()> {
    let stage = Stage::open("two-hosts")?;
    let ended = stage.driver.run(Stage::two_hosts(&[]))?;
    let report = Report::of(&stage.driver).with_context(|| format!("{ended:?}"))?;
    ensure!(ended.code() == Some(0), "{:?}: {}", report.with_outcome("fail")?, ended.text());
    let lines = report.lines()?;
    ensure!(lines.len() == LINES && lines.iter().all(|line| line.1 == "pass"), "{} lines: {lines:?}", lines.len());
    ensure!((report.text("/hosts/a/name")?, report.text("/hosts/b/name")?) == ("north", "south"), "{}", report.0);
    ensure!(report.text("/hosts/a/version")? == report.text("/hosts/b/version")?, "{}", report.0);
    ensure!(report.text("/hosts/a/id52")? != report.text("/hosts/b/id52")?, "one key: {}", report.0);
    let figures = report.0.get("figures").and_then(Value::as_array).context("no figures")?;
    for name in ["connect_a", "connect_b", "exec_a_p50", "exec_b_p50", "pull_a", "pull_b", "push_a", "push_b", "rtt_a"]
    {
        let figure = figures.iter().find(|figure| figure.get("name") == Some(&name.into()));
        let value = figure.and_then(|figure| figure.get("value")).and_then(Value::as_f64);
        ensure!(value.is_some_and(|value| value > 0.0), "no figure {name}: {figures:?}");
    }
    let markdown = stage.driver.read("/root/report/report.md")?;
    for words in ["41 passed, 0 failed, 0 not run", "north", "south", "| A on B: 100 MB of output | pass |"] {
        ensure!(markdown.contains(words), "no {words:?} in {markdown}");
    }
    stage.is_as_before()
}

fn an_interrupted_run_leaves_nothing_and_passes_nothing_that_it_did_not_do() -> Result<()> {
    let stage = Stage::open("two-hosts-int")?;
    let run = stage.driver.spawn(Stage::two_hosts(&["--size", "500"]))?;
    run.wait_for_line("a command that takes too long", LONG)?;
    wait_until(LONG, "output flows", || {
        stage.b.sh("ps -A -o args=").is_ok_and(|all| all.text().contains("cat /tmp/malai-e2e"))
    })?;
    run.signal(Signal::SIGINT)?;
    run.output_within(Duration::from_secs(60))?.exited(130)?;
    let report = Report::of(&stage.driver)?;
    ensure!(report.outcome("ab-timeout")? == "pass" && report.outcome("clean-a")? == "pass", "{}", report.0);
    ensure!(report.with_outcome("fail")?.is_empty() && report.lines()?.len() == LINES, "{}", report.0);
    for id in ["ab-pull", "refused-ba", "path-ba"] {
        ensure!(report.outcome(id)? == "not run", "{id}: {}", report.0);
    }
    stage.is_as_before()
}

fn a_program_that_does_not_run_ends_the_run_at_its_version() -> Result<()> {
    let stage = Stage::open("two-hosts-version")?;
    stage.driver.write("/root/not-a-program", "\u{7f}ELF, and nothing that could be run\n")?;
    stage.driver.run(Stage::two_hosts(&["--binary-b", "/root/not-a-program"]))?.exited(1)?;
    let report = Report::of(&stage.driver)?;
    ensure!(report.with_outcome("fail")?.len() == 1, "{}", report.0);
    ensure!(report.outcome("version-a")? == "pass" && report.outcome("version-b")? == "fail", "{}", report.0);
    // All that comes after it, but for the cleaning: nothing else is done.
    ensure!(report.with_outcome("not run")?.len() == LINES - 7, "{}", report.0);
    stage.is_as_before()
}

/// Says that it has published, and has not.
const LIAR: &str = r#"#!/bin/sh
case $1 in
rescan) echo '[{"alias":"e2e","outcome":{"published":{"generation":1,"holding":["a","b"],"missing":[]}}}]' ;;
*) exec /usr/local/bin/malai "$@" ;;
esac
"#;

fn a_config_that_is_not_obeyed_fails_its_lines_and_the_run() -> Result<()> {
    let stage = Stage::open("two-hosts-liar")?;
    stage.driver.write("/root/liar", LIAR)?;
    stage.driver.run(Stage::two_hosts(&["--size", "1", "--binary-a", "/root/liar"]))?.exited(1)?;
    let report = Report::of(&stage.driver)?;
    for id in ["ba-output", "ba-pull", "refused-ab", "restart", "after-ba", "latency-ba"] {
        ensure!(report.outcome(id)? == "fail", "{id}: {}", report.0);
    }
    for id in ["ab-output", "ab-push", "refused-ba", "again-ab", "after-ab", "clean-a", "clean-b"] {
        ensure!(report.outcome(id)? == "pass", "{id}: {}", report.0);
    }
    stage.is_as_before()
}

fn a_host_that_is_not_reached_is_a_failed_line() -> Result<()> {
    let stage = Stage::open("two-hosts-away")?;
    let words = ["-F", "/root/ssh_config", "--private", "--report", "/root/report", "a", "127.0.0.1"];
    stage.driver.run(crate::stage::script("e2e-two-hosts", &words))?.exited(1)?;
    let report = Report::of(&stage.driver)?;
    ensure!(report.outcome("reach-a")? == "pass" && report.outcome("reach-b")? == "fail", "{}", report.0);
    ensure!(report.outcome("version-a")? == "not run" && report.outcome("clean-b")? == "not run", "{}", report.0);
    stage.is_as_before()
}

fn two_names_of_one_host_are_no_two_hosts() -> Result<()> {
    let stage = Stage::open("two-hosts-one")?;
    let words = ["-F", "/root/ssh_config", "--private", "--report", "/root/report", "a", "a"];
    stage.driver.run(crate::stage::script("e2e-two-hosts", &words))?.exited(1)?;
    let report = Report::of(&stage.driver)?;
    ensure!(report.outcome("differ")? == "fail" && report.outcome("version-a")? == "not run", "{}", report.0);
    stage.is_as_before()
}
