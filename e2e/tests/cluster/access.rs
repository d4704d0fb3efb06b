//! What the config allows, at the target; and what happens when it does not any more.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, json, malai, running, start, stop, text};
use malai_e2e::lab::{Cmd, Host, Lab, wait_until};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        withdrawn_access_ends_the_running_session,
        withdrawn_access_ends_a_session_that_is_deaf_to_terminate,
        a_removed_machine_can_run_nothing_any_more,
        a_named_command_has_its_own_list_and_takes_no_words,
        groups_of_groups_and_defaults_allow_whom_they_mean,
        a_daemon_that_is_root_runs_nothing_until_root_is_named,
        a_daemon_that_is_not_root_runs_commands_as_its_own_user_only,
        the_explanation_agrees_with_what_really_happens,
    ]
}

fn withdrawn_access_ends_the_running_session() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(web01, &["admins", "db01"])?;
    company.ran_remotely(db01, web01)?;
    let ended = company.spawn(db01, web01, &["sh", "-c", "hostname; sleep 61.25"])?;
    let kept = company.spawn(office.laptop(), web01, &["sh", "-c", "hostname; sleep 61.75"])?;
    ended.wait_for_line("web01", SOON)?;
    kept.wait_for_line("web01", SOON)?;
    company.allow(web01, &["admins"])?;
    // `rescan` returns when web01 holds the new config.
    let output = ended.output_within(Duration::from_secs(1))?;
    told(output, 253, &["access was withdrawn", "`db01` is not in `allow_from`"])?;
    wait_until(SOON, "the command is gone", || running(web01, "sleep 61.25").is_ok_and(|found| found == 0))?;
    ensure!(!kept.has_ended() && running(web01, "sleep 61.75")? > 0, "a session that is still allowed was ended");
    told(company.run(db01, web01, &["hostname"])?, 254, &["`db01` is not in `allow_from`"])?;
    Ok(())
}

fn withdrawn_access_ends_a_session_that_is_deaf_to_terminate() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let script = "trap '' TERM HUP INT; hostname; while :; do sleep 0.063; done";
    let session = company.spawn(office.laptop(), web01, &["sh", "-c", script])?;
    session.wait_for_line("web01", SOON)?;
    company.allow(web01, &["web01"])?;
    told(session.output_within(Duration::from_secs(1))?, 253, &["access was withdrawn"])?;
    ensure!(running(web01, "sleep 0.063")? == 0, "the caller was told of an end that had not come");
    Ok(())
}

fn a_removed_machine_can_run_nothing_any_more() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.allow(web01, &["*"])?;
    let ended = company.spawn(db01, web01, &["sh", "-c", "hostname; sleep 62.25"])?;
    ended.wait_for_line("web01", SOON)?;
    office.laptop().run(malai(["cluster", "remove", "company", "db01"]))?.success()?;
    told(ended.output_within(Duration::from_secs(1))?, 253, &["access was withdrawn"])?;
    told(company.run(db01, web01, &["hostname"])?, 254, &["malai: error:"])?;
    told(company.run(office.laptop(), db01, &["hostname"])?, 255, &["has no machine db01"])?;
    Ok(())
}

fn a_named_command_has_its_own_list_and_takes_no_words() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    let section = "machine.web01.command.who-are-you";
    company.set(section, "command = [\"sh\", \"-c\", \"hostname; echo 'named  *'; id -un\"]")?;
    company.publish(section, "allow_from = [\"db01\"]")?;
    let named = db01.run(malai(["web01.company", "who-are-you"]))?.success()?;
    assert_eq!(named.text(), "web01\nnamed  *\nroot");
    told(db01.run(malai(["web01.company", "hostname"]))?, 254, &["`db01` is not in `allow_from`"])?;
    told(db01.run(malai(["web01.company", "who-are-you", "now"]))?, 254, &["takes no arguments"])?;
    // After `--` it is an argv, and db01 may run none.
    told(db01.run(malai(["web01.company", "--", "who-are-you"]))?, 254, &["`db01` is not in `allow_from`"])?;
    // The list may be narrower than the machine's, too.
    let narrow = office.laptop().run(malai(["web01.company", "who-are-you"]))?;
    told(narrow, 254, &["`laptop` is not in `allow_from` of [machine.web01.command.who-are-you]"])?;
    let argv = office.laptop().run(malai(["web01.company", "--", "who-are-you"]))?;
    told(argv, 127, &["who-are-you"])?;
    company.ran_remotely(office.laptop(), web01)
}

fn groups_of_groups_and_defaults_allow_whom_they_mean() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    told(company.run(db01, web01, &["hostname"])?, 254, &["of [defaults]"])?;
    company.set("group.staff", "members = [\"databases\", \"laptop\"]")?;
    company.set("group.databases", "members = [\"db01\"]")?;
    company.publish("defaults", "allow_from = [\"staff\"]")?;
    company.ran_remotely(db01, web01)?;
    company.ran_remotely(office.laptop(), web01)?;
    told(company.run(web01, db01, &["hostname"])?, 254, &["`web01` is not in `allow_from` of [defaults]"])?;
    // A machine's own list takes the place of the defaults.
    company.allow(web01, &["laptop"])?;
    told(company.run(db01, web01, &["hostname"])?, 254, &["of [machine.web01]"])?;
    company.unset("machine.web01", "allow_from")?;
    company.unset("defaults", "allow_from")?;
    company.rescan()?;
    told(company.run(office.laptop(), web01, &["hostname"])?, 254, &["no machine may run commands on `web01`"])?;
    company.allow(web01, &["*"])?;
    company.ran_remotely(db01, web01)
}

fn a_daemon_that_is_root_runs_nothing_until_root_is_named() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.unset("machine.web01", "username")?;
    company.rescan()?;
    let refused = company.run(office.laptop(), web01, &["hostname"])?;
    told(refused, 254, &["no `username`", "[machine.web01]", "username = \"root\"", "malai rescan"])?;
    web01.add_user("deploy")?;
    company.publish("machine.web01", "username = \"deploy\"")?;
    let output =
        company.run(office.laptop(), web01, &["sh", "-c", "hostname; id -un; id -Gn; pwd; umask"])?.success()?;
    assert_eq!(output.text(), "web01\ndeploy\ndeploy\n/home/deploy\n0022");
    company.publish("machine.web01", "username = \"root\"")?;
    company.ran_remotely(office.laptop(), web01)
}

fn a_daemon_that_is_not_root_runs_commands_as_its_own_user_only() -> Result<()> {
    let lab = Lab::new("user")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    for user in ["deploy", "other"] {
        web01.add_user(user)?;
    }
    let as_deploy = |words: &[&str]| -> Result<Cmd> { Ok(malai(words).user("deploy")) };
    let token = company.invite(&["--name", "web01", "--username", "deploy"])?;
    web01.run(as_deploy(&["machine", "join", &token])?)?.success()?;
    web01.run(as_deploy(&["daemon"])?)?.success()?;
    company.linked(&web01)?;
    let who = |target: &str| company.manager().run(malai([target, "--", "sh", "-c", "hostname; id -un; pwd"]));
    assert_eq!(who("web01.company")?.success()?.text(), "web01\ndeploy\n/home/deploy");
    assert_eq!(who("deploy@web01.company")?.success()?.text(), "web01\ndeploy\n/home/deploy");
    company.publish("machine.web01", "users = [\"other\"]")?;
    told(who("other@web01.company")?, 254, &["not as root", "`other`"])?;
    company.publish("machine.web01", "username = \"root\"")?;
    told(who("web01.company")?, 254, &["not as root", "`root`"])?;
    Ok(())
}

/// Whether a command is allowed by the words of `malai can`, asked on the laptop.
fn can(laptop: &Host, who: &str, target: &str, words: &[&str]) -> Result<bool> {
    let output = laptop.run(malai(["can", "--json", who, target].iter().chain(words)))?;
    let verdict = json(&output)?;
    let allowed = verdict.get("allowed").and_then(serde_json::Value::as_bool);
    ensure!(allowed.is_some() && output.code() == Some(i32::from(allowed != Some(true))), "{verdict}");
    ensure!(allowed == Some(true) || !text(&verdict, "/hint")?.is_empty(), "{verdict}");
    Ok(allowed == Some(true))
}

fn the_explanation_agrees_with_what_really_happens() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    company.set("machine.web01", "allow_from = [\"ops\"]")?;
    company.set("machine.web01.command.host", "command = [\"hostname\"]")?;
    company.set("machine.web01.command.host", "allow_from = [\"*\"]")?;
    company.publish("group.ops", "members = [\"admins\"]")?;
    let mut seen = [false; 2];
    for (who, name) in [(office.laptop(), "laptop"), (db01, "db01"), (web01, "web01")] {
        let cases = [
            ("web01.company", &["--", "hostname"][..]),
            ("web01.company", &["host"]),
            ("db01.company", &["hostname"]),
            ("web01.company", &["host", "x"]),
        ];
        for (target, words) in cases {
            let foreseen = can(office.laptop(), name, target, words)?;
            let output = who.run(malai([target].iter().chain(words)))?;
            let wanted = if foreseen { 0 } else { 254 };
            ensure!(output.code() == Some(wanted), "{name} {target} {words:?}: foreseen {foreseen}, came {output:?}");
            seen[usize::from(foreseen)] = true;
        }
    }
    ensure!(seen == [true; 2], "not both ways");
    // Asked without a daemon, the answer is the same.
    stop(office.laptop())?;
    ensure!(
        can(office.laptop(), "laptop", "web01.company", &[])? && !can(office.laptop(), "db01", "web01.company", &[])?
    );
    start(office.laptop())
}
