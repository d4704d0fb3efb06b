//! The daemon's life: one at a time, ready or not, stopped in good order; and homes in which something is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, daemon_status, malai, running, start, stop};
use malai_e2e::lab::{Cmd, Host, Lab, wait_until};
use malai_e2e::trials;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Office, goes_on, told};

const SOCKET: &str = "/root/malai-home/malai.sock";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_second_daemon_is_refused_with_the_pid_of_the_first,
        a_stopped_daemon_leaves_neither_socket_nor_executor,
        terminate_ends_a_daemon_within_five_seconds,
        a_stop_ends_sessions_and_daemon_in_time_although_a_command_is_deaf_to_it,
        a_daemon_that_was_killed_does_not_stop_the_next,
        a_broken_cluster_is_reported_and_the_others_run,
        a_key_that_others_can_read_is_refused,
        a_home_too_deep_for_a_socket_is_refused,
        a_home_that_cannot_be_written_is_refused_and_stays_readable,
        other_users_get_nothing_from_the_socket,
        a_users_daemon_works_although_only_root_reads_its_memory_and_root_does_not_use_its_home,
    ]
}

/// A host with a cluster of its own that is connected to nobody.
fn alone(lab: &Lab) -> Result<Cluster> {
    Cluster::init("company", lab.host("laptop").boot()?)
}

fn pid(host: &Host) -> Result<u64> {
    daemon_status(host)?.get("pid").and_then(Value::as_u64).context("no pid")
}

fn a_second_daemon_is_refused_with_the_pid_of_the_first() -> Result<()> {
    let lab = Lab::new("second")?;
    let company = alone(&lab)?;
    let first = pid(company.manager())?;
    for words in [&["daemon"][..], &["daemon", "--foreground"]] {
        let second = company.manager().run(malai(words))?;
        told(second, 255, &["daemon runs already", &first.to_string(), "malai daemon stop"])?;
    }
    assert_eq!(pid(company.manager())?, first);
    Ok(())
}

fn a_stopped_daemon_leaves_neither_socket_nor_executor() -> Result<()> {
    let lab = Lab::new("stop")?;
    let company = alone(&lab)?;
    let host = company.manager();
    company.run(host, host, &["true"])?.success()?;
    ensure!(host.exists(SOCKET)?);
    stop(host)?;
    ensure!(!host.exists(SOCKET)?, "the socket is still there");
    assert_eq!(running(host, "malai ")?, 0, "a process is still there");
    host.run(malai(["daemon", "status"]))?.exited(1)?;
    // Stopped twice is stopped.
    stop(host)
}

fn terminate_ends_a_daemon_within_five_seconds() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    stop(web01)?;
    let daemon = web01.spawn(malai(["daemon", "--foreground"]))?;
    daemon.wait_for_error_line("daemon ready", SOON)?;
    company.linked(web01)?;
    let session = company.spawn(office.laptop(), web01, &["sh", "-c", "hostname; sleep 600"])?;
    session.wait_for_line("web01", SOON)?;
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM)?;
    daemon.output_within(SOON)?.success()?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    ensure!(!web01.exists(SOCKET)?, "the socket is still there");
    // What it ran is left to the next daemon.
    start(web01)?;
    company.linked(web01)?;
    goes_on(session)
}

fn a_stop_ends_sessions_and_daemon_in_time_although_a_command_is_deaf_to_it() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = "trap '' TERM; hostname; while :; do sleep 0.064; done";
    let session = company.spawn(office.laptop(), web01, &["sh", "-c", script])?;
    session.wait_for_line("web01", SOON)?;
    let begun = Instant::now();
    stop(web01)?;
    wait_until(SOON, "no process of malai is left", || running(web01, "malai ").is_ok_and(|found| found == 0))?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    told(session.output_within(SOON)?, 253, &["stopped"])?;
    assert_eq!(running(web01, "sleep 0.064")?, 0);
    Ok(())
}

fn a_daemon_that_was_killed_does_not_stop_the_next() -> Result<()> {
    let lab = Lab::new("killed")?;
    let company = alone(&lab)?;
    let host = company.manager();
    for _ in 0..3 {
        company.run(host, host, &["true"])?.success()?;
        host.run(["kill", "-KILL", &pid(host)?.to_string()])?.success()?;
        ensure!(host.exists(SOCKET)?, "a killed daemon has removed its socket");
        start(host)?;
    }
    let output = company.run(host, host, &["hostname"])?.success()?;
    assert_eq!(output.text(), "laptop");
    Ok(())
}

fn a_broken_cluster_is_reported_and_the_others_run() -> Result<()> {
    let office = Office::open(["web01"])?;
    let laptop = office.laptop();
    for (name, wreck) in [("torn", "echo torn > snapshot"), ("keyless", "rm machine.key"), ("odd", "mkdir x; rm -f *")]
    {
        laptop.run(malai(["cluster", "init", name, "--private"]))?.success()?;
        laptop.sh(&format!("cd /root/malai-home/clusters/{name} && {wreck}"))?;
    }
    stop(laptop)?;
    let started = laptop.run(malai(["daemon"]))?.success()?;
    for name in ["torn", "keyless", "odd"] {
        ensure!(started.error_text().contains(&format!("cluster {name} cannot be used")), "{}", started.error_text());
    }
    told(
        laptop.run(malai(["laptop.torn", "true"]))?,
        255,
        &["cluster torn cannot be used on this machine", "snapshot"],
    )?;
    let status = laptop.run(malai(["status"]))?.success()?;
    ensure!(status.error_text().contains("keyless") && status.text().contains("company"), "{}", status.error_text());
    let [web01] = &office.machines;
    office.company.linked(web01)?;
    office.company.ran_remotely(laptop, web01)
}

fn a_key_that_others_can_read_is_refused() -> Result<()> {
    let lab = Lab::new("mode")?;
    let company = alone(&lab)?;
    let host = company.manager();
    for key in ["machine.key", "cluster.key"] {
        stop(host)?;
        host.run(["chmod", "644", &company.path(key)])?.success()?;
        let hint = format!("chmod 600 {}", company.path(key));
        told(host.run(malai(["daemon"]))?, 0, &["cluster company cannot be used", &hint])?;
        told(company.run(host, host, &["true"])?, 255, &[&hint])?;
        stop(host)?;
        host.run(["chmod", "600", &company.path(key)])?.success()?;
        start(host)?;
        company.run(host, host, &["true"])?.success()?;
    }
    Ok(())
}

fn a_home_too_deep_for_a_socket_is_refused() -> Result<()> {
    let lab = Lab::new("deep")?;
    let host = lab.host("laptop").boot()?;
    let home = format!("/root/{}", "deep/".repeat(30));
    let output = host.run(malai(["daemon"]).env("MALAI_HOME", home))?;
    told(output, 255, &["executor.sock", "107", "MALAI_HOME=/short/path"])?;
    ensure!(!host.exists("/root/deep")?, "it was made all the same");
    Ok(())
}

fn a_home_that_cannot_be_written_is_refused_and_stays_readable() -> Result<()> {
    let lab = Lab::new("readonly")?;
    let company = alone(&lab)?;
    let host = company.manager();
    stop(host)?;
    let before = company.config()?;
    host.sh("mount --bind /root/malai-home /root/malai-home && mount -o remount,ro,bind /root/malai-home")?
        .success()?;
    let refused = host.run(malai(["daemon"]))?;
    told(refused, 255, &["malai: error:", "Read-only file system", "findmnt -T /root/malai-home", "remount it"])?;
    let shown = host.run(malai(["config", "show"]))?.success()?;
    assert_eq!(shown.text(), before.trim_end());
    host.run(["umount", "/root/malai-home"])?.success()?;
    start(host)?;
    company.run(host, host, &["true"])?.success()?;
    Ok(())
}

fn other_users_get_nothing_from_the_socket() -> Result<()> {
    let lab = Lab::new("uid")?;
    let host = lab.host("laptop").boot()?;
    for user in ["ada", "bob"] {
        host.add_user(user)?;
    }
    let home = "/home/of-ada";
    let remove = || host.run(["rm", "-rf", home]);
    let as_user = |user: &str, words: &[&str]| host.run(malai(words).user(user).env("MALAI_HOME", home));
    host.run(["install", "-d", "-o", "ada", home])?.success()?;
    as_user("ada", &["cluster", "init", "company", "--private"])?.success()?;
    as_user("ada", &["daemon"])?.success()?;
    // Even where the directory and the socket are opened by mistake, the daemon serves its own user and root only.
    host.sh(&format!("chmod 755 {home} && chmod 666 {home}/malai.sock"))?.success()?;
    let refused = as_user("bob", &["laptop.company", "--", "id", "-un"])?;
    ensure!(refused.code() == Some(255) && refused.stdout.is_empty(), "{refused:?}");
    let own = as_user("ada", &["laptop.company", "--", "id", "-un"])?.success()?;
    assert_eq!(own.text(), "ada");
    as_user("ada", &["daemon", "stop"])?.success()?;
    remove()?.success()?;
    Ok(())
}

fn a_users_daemon_works_although_only_root_reads_its_memory_and_root_does_not_use_its_home() -> Result<()> {
    let lab = Lab::new("memory")?;
    let host = lab.host("laptop").boot()?;
    host.add_user("ada")?;
    let home = "/home/of-ada";
    let remove = || host.run(["rm", "-rf", home]);
    let ada = |words: &[&str]| host.run(malai(words).user("ada").env("MALAI_HOME", home));
    host.run(["install", "-d", "-o", "ada", home])?.success()?;
    ada(&["cluster", "init", "company", "--name", "laptop", "--private"])?.success()?;
    ada(&["daemon"])?.success()?;
    for round in ["a daemon", "a daemon that was restarted"] {
        let own = ada(&["laptop.company", "--", "id", "-un"])?.success()?;
        assert_eq!(own.text(), "ada", "{round}");
        let status: Value = serde_json::from_str(&ada(&["daemon", "status", "--json"])?.success()?.text())?;
        let read = |process: &str, file: &str| {
            let pid = status.pointer(&format!("/daemon/{process}")).and_then(Value::as_u64).context("no pid")?;
            host.run(Cmd::new(["head", "-c", "1", &format!("/proc/{pid}/{file}")]).user("ada"))
        };
        for file in ["environ", "mem", "maps"] {
            let refused = read("pid", file)?;
            ensure!(refused.error_text().contains("Permission denied"), "{round}: {file}: {refused:?}");
        }
        // The executor holds no key. What it shows of itself shows that the daemon's refusal is the daemon's doing.
        read("executor_pid", "environ")?.success()?;
        ada(&["doctor"])?;
        ada(&["daemon", "restart"])?.success()?;
    }
    for words in [&["daemon", "status"][..], &["laptop.company", "--", "id", "-un"], &["daemon"], &["daemon", "stop"]] {
        let refused = host.run(malai(words).env("MALAI_HOME", home))?;
        told(refused, 255, &[home, "belongs to ada", "sudo -u ada malai", "chown -R root: "])?;
    }
    ada(&["daemon", "stop"])?.success()?;
    host.run(["chmod", "500", home])?.success()?;
    told(ada(&["daemon"])?, 255, &["Permission denied", &format!("chmod u+rwX {home}")])?;
    remove()?.success()?;
    Ok(())
}
