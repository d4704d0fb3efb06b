//! Exit codes, and the words on standard error that go with them.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, malai, start, stop};
use malai_e2e::lab::Lab;
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_command_that_ends_by_itself_passes_its_status_on,
        a_program_that_cannot_run_is_126_or_127_as_in_a_shell,
        what_is_no_program_there_is_127_and_then_a_hint_says_what_was_meant,
        a_command_killed_by_its_timeout_is_252,
        a_command_whose_daemon_is_stopped_is_253_and_says_why,
        what_cannot_be_started_is_255_and_each_reason_has_its_own_words,
        a_shell_is_said_to_come_later,
        a_usage_error_is_2,
    ]
}

fn a_command_that_ends_by_itself_passes_its_status_on() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.ran_remotely(office.laptop(), web01)?;
    let codes = [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("exit 2", 2),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ];
    for (line, code) in codes {
        let output = company.run(office.laptop(), web01, &["sh", "-c", &format!("hostname; {line}")])?;
        ensure!(output.exited(code)?.text() == "web01", "{line} did not run on web01");
    }
    // What the command itself makes of a code is told from malai's own use of it.
    let own = company.run(office.laptop(), web01, &["sh", "-c", "exit 254"])?.exited(254)?;
    ensure!(own.stderr.is_empty(), "malai says something about a command's own 254: {}", own.error_text());
    Ok(())
}

fn a_program_that_cannot_run_is_126_or_127_as_in_a_shell() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    web01.write("/root/only-here", "not a program")?;
    told(company.run(office.laptop(), web01, &["/root/only-here"])?, 126, &["/root/only-here"])?;
    told(company.run(office.laptop(), web01, &["/root"])?, 126, &["/root"])?;
    told(company.run(office.laptop(), web01, &["no-such-program"])?, 127, &["no-such-program", "not found"])?;
    Ok(())
}

fn what_is_no_program_there_is_127_and_then_a_hint_says_what_was_meant() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (laptop, [web01]) = (office.laptop(), &office.machines);
    let cases = [
        (&["web01.company", "-n", "echo", "hi"][..], "malai -n web01.company echo hi"),
        (&["web01.company", "--", "ls /tmp"], "malai web01.company -- ls /tmp"),
        (&["web01.company", "--", "export", "A=1"], "malai -c 'export A=1' web01.company"),
        (&["web01.company", "FOO=1", "env"], "malai --env FOO=1 web01.company -- env"),
        (
            &["web01.company", "web02.company", "--", "uptime"],
            "for m in web01.company web02.company; do malai -n \"$m\" -- uptime; done",
        ),
    ];
    for (words, meant) in cases {
        let output = told(laptop.run(malai(words))?, 127, &["not found"])?;
        let errors = output.error_text();
        ensure!(errors.lines().last().is_some_and(|line| line.ends_with(meant)), "{words:?}: {errors}");
    }
    // The proposed command works, and a program that has such a name runs without a hint.
    ensure!(laptop.run(malai(["-n", "web01.company", "echo", "hi"]))?.success()?.text() == "hi");
    web01
        .sh("printf '#!/bin/sh\nhostname\nexit 127\n' >'/usr/local/bin/ls tmp'; chmod 755 '/usr/local/bin/ls tmp'")?
        .success()?;
    let own = laptop.run(malai(["web01.company", "--", "/usr/local/bin/ls tmp"]))?.exited(127)?;
    ensure!(own.text() == "web01" && own.stderr.is_empty(), "{}", own.error_text());
    Ok(())
}

fn a_command_killed_by_its_timeout_is_252() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let words = ["--timeout", "300ms", "web01.company", "--", "sh", "-c", "hostname; sleep 600"];
    let output = told(office.laptop().run(malai(words))?, 252, &["web01.company", "--timeout"])?;
    assert_eq!(output.text(), web01.hostname());
    Ok(())
}

fn a_command_whose_daemon_is_stopped_is_253_and_says_why() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let session = company.spawn(office.laptop(), web01, &["sh", "-c", "hostname; sleep 600"])?;
    session.wait_for_line("web01", SOON)?;
    stop(web01)?;
    told(session.output_within(SOON)?, 253, &["web01.company", "stopped"])?;
    start(web01)?;
    company.linked(web01)?;
    company.ran_remotely(office.laptop(), web01)
}

fn what_cannot_be_started_is_255_and_each_reason_has_its_own_words() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let laptop = office.laptop();
    let stranger = office.lab.host("stranger").on(&office.lan).boot()?;
    stop(web01)?;
    laptop.run(malai(["cluster", "init", "other", "--private"]))?.success()?;
    let quick = |target: &str| laptop.run(malai(["--connect-timeout", "1s", target, "--", "hostname"]));
    let told_of = [
        told(quick("web01.company")?, 255, &["web01.company cannot be reached", "malai daemon"])?,
        told(quick("web02.company")?, 255, &["has no machine web02", "is it web01.company?", "malai status"])?,
        told(quick("web01.firm")?, 255, &["there is no cluster firm here", "company, other"])?,
        told(
            quick("laptop")?,
            255,
            &["more than one cluster", "laptop.company, laptop.other", "malai laptop.company"],
        )?,
        told(stranger.run(malai(["web01.company", "--", "hostname"]))?, 255, &["in no cluster", "malai machine join"])?,
        told(laptop.run(malai(["--cwd", "/none", "laptop.company", "--", "pwd"]))?, 255, &["/none"])?,
    ];
    let mut messages = HashSet::new();
    for output in told_of {
        ensure!(output.stdout.is_empty(), "{}", output.text());
        let errors = output.error_text();
        ensure!(errors.lines().next().is_some_and(|line| line.starts_with("malai: error: ")), "{errors}");
        ensure!(messages.insert(errors.clone()), "two reasons, the same words: {errors}");
    }
    Ok(())
}

fn a_shell_is_said_to_come_later() -> Result<()> {
    let lab = Lab::new("shell")?;
    let company = Cluster::init("company", lab.host("laptop").boot()?)?;
    told(
        company.manager().run(malai(["web01.company"]))?,
        255,
        &["malai has no shells yet", "malai web01.company -- "],
    )?;
    Ok(())
}

fn a_usage_error_is_2() -> Result<()> {
    let lab = Lab::new("usage")?;
    let laptop = lab.host("laptop").boot()?;
    for words in [
        &["--no-such-option", "web01.company", "true"][..],
        &["Web 01", "true"],
        &["rescan", "--over"],
        &["--timeout", "5 parsecs", "web01.company", "true"],
    ] {
        told(laptop.run(malai(words))?, 2, &["malai: error:"])?;
    }
    Ok(())
}
