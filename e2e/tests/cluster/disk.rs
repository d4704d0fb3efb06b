//! A disk that is full: what the config takes away is taken away all the same, and the machine says what it lacks.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{Cluster, SOON, daemon_status, json, malai, running, start, stop, text};
use malai_e2e::lab::{Cmd, Host, Lab, wait_until};
use malai_e2e::trials;
use serde_json::Value;

use crate::told;

const HOME: &str = "/root/malai-home";
/// Bounds how long some hundreds of commands may take, one after the other.
const LONG: Duration = Duration::from_secs(600);

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_withdrawal_on_a_full_disk_holds_at_once_and_after_a_restart_and_is_stored_with_room_again,
        a_withdrawal_holds_over_a_daemon_that_is_killed_on_a_full_disk,
        without_a_reserve_a_withdrawal_on_a_full_disk_holds_as_long_as_the_daemon_lives,
        a_daemon_whose_log_has_no_room_answers_all_the_same,
        a_full_disk_is_told_by_the_doctor_and_a_daemon_starts_on_it,
        a_full_disk_lets_whoever_makes_room_in_and_says_the_truth_when_it_takes_nothing_more,
        a_daemon_and_an_executor_that_start_on_a_full_disk_let_whoever_makes_room_in,
        refusals_on_a_full_disk_leave_the_reserve_to_commands,
        on_a_full_disk_the_audit_does_not_leave_a_part_that_has_room_for_one_that_has_none,
    ]
}

/// A manager, and web01, whose home is a file system of 3 MB.
fn small() -> Result<(Lab, Cluster, Host)> {
    let lab = Lab::new("small-disk")?;
    let lan = lab.segment("lan")?;
    let company = Cluster::init("company", lab.host("laptop").on(&lan).boot()?)?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    web01.sh(&format!("mkdir -p {HOME} && mount -t tmpfs -o size=3m,mode=700 tmpfs {HOME}"))?.success()?;
    company.join(&web01)?;
    Ok((lab, company, web01))
}

/// Takes all the room that there is in a host's home.
fn fill(host: &Host) -> Result<()> {
    host.sh(&format!(
        "cat /dev/zero > {HOME}/filler 2>/dev/null; test \"$(df --output=avail {HOME} | tail -1)\" -eq 0"
    ))?
    .success()?;
    Ok(())
}

fn alarm(company: &Cluster, host: &Host) -> Result<String> {
    Ok(company.status(host)?["alarm"].as_str().unwrap_or_default().to_owned())
}

/// The finding of the doctor that has these words.
fn finding(host: &Host, words: &str) -> Result<Option<Value>> {
    let document = json(&host.run(malai(["doctor", "--json"]))?)?;
    let findings = document["findings"].as_array().context("no findings")?;
    Ok(findings.iter().find(|found| found["what"].as_str().is_some_and(|what| what.contains(words))).cloned())
}

/// The config that is stored where it belongs.
fn stored(host: &Host, words: &str) -> Result<bool> {
    let bytes = host.inside(|| Ok(std::fs::read(format!("{HOME}/clusters/company/snapshot"))?))?;
    Ok(bytes.windows(words.len()).any(|part| part == words.as_bytes()))
}

fn a_withdrawal_on_a_full_disk_holds_at_once_and_after_a_restart_and_is_stored_with_room_again() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    company.ran_remotely(laptop, &web01)?;
    let session = company.spawn(laptop, &web01, &["sh", "-c", "hostname; sleep 777"])?;
    session.wait_for_line("web01", SOON)?;
    fill(&web01)?;

    company.allow(&web01, &[])?;
    told(session.output_within(SOON)?, 253, &["access was withdrawn"])?;
    wait_until(SOON, "the command is gone", || running(&web01, "sleep 777").is_ok_and(|found| found == 0))?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    ensure!(!stored(&web01, "allow_from = []")?, "there was room");

    wait_until(SOON, "the alarm is raised", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    let raised = alarm(&company, &web01)?;
    for word in ["clusters/company/snapshot: No space left", "snapshot.reserve", "after a restart", "df -h"] {
        ensure!(raised.contains(word), "{word:?} is not in {raised:?}");
    }
    let found = finding(&web01, "cannot be stored")?.context("the doctor does not see it")?;
    ensure!(found["level"] == "broken" && text(&found, "/mend")?.contains("df -h"), "{found}");

    // Nobody is there who could tell it what is held now.
    stop(laptop)?;
    stop(&web01)?;
    start(&web01)?;
    let shown = web01.run(malai(["config", "show", "company"]))?.success()?.text();
    ensure!(shown.contains("allow_from = []"), "{shown}");
    wait_until(SOON, "it is still said", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    start(laptop)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;

    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    wait_until(SOON * 3, "it is stored", || stored(&web01, "allow_from = []").unwrap_or(false))?;
    wait_until(SOON, "the alarm is over", || alarm(&company, &web01).is_ok_and(|alarm| alarm.is_empty()))?;
    ensure!(finding(&web01, "cannot be stored")?.is_none());
    Ok(())
}

fn a_withdrawal_holds_over_a_daemon_that_is_killed_on_a_full_disk() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    fill(&web01)?;
    company.allow(&web01, &[])?;
    wait_until(SOON, "the alarm is raised", || alarm(&company, &web01).is_ok_and(|alarm| !alarm.is_empty()))?;
    stop(laptop)?;
    let pid = malai_e2e::cluster::daemon_status(&web01)?["pid"].as_u64().context("a pid")?;
    web01.sh(&format!("kill -9 {pid}"))?.success()?;
    wait_until(SOON, "it is gone", || {
        web01.sh(&format!("kill -0 {pid} 2>/dev/null")).is_ok_and(|it| it.success().is_err())
    })?;
    start(&web01)?;
    let shown = web01.run(malai(["config", "show", "company"]))?.success()?.text();
    ensure!(shown.contains("allow_from = []"), "{shown}");
    start(laptop)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    Ok(())
}

fn without_a_reserve_a_withdrawal_on_a_full_disk_holds_as_long_as_the_daemon_lives() -> Result<()> {
    let (_lab, company, web01) = small()?;
    let laptop = company.manager();
    web01.sh(&format!("rm {HOME}/clusters/company/snapshot.reserve"))?.success()?;
    fill(&web01)?;
    company.allow(&web01, &[])?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    let said = || alarm(&company, &web01).is_ok_and(|alarm| alarm.contains("not in the reserve either"));
    wait_until(SOON, "the alarm is raised", said)?;
    // The endpoint is bound again, and the cluster taken in from the disk, which has the older config.
    company.publish("network", "discovery = []")?;
    let generation = company.generation(laptop)?;
    company.holds(&web01, generation)?;
    company.linked(&web01)?;
    told(company.run(laptop, &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    ensure!(company.generation(&web01)? == generation && !stored(&web01, "allow_from = []")?);
    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    wait_until(SOON * 3, "it is stored", || stored(&web01, "allow_from = []").unwrap_or(false))?;
    wait_until(SOON, "the alarm is over", || alarm(&company, &web01).is_ok_and(|alarm| alarm.is_empty()))?;
    web01.sh(&format!("test -s {HOME}/clusters/company/snapshot.reserve"))?.success()?;
    Ok(())
}

fn a_daemon_whose_log_has_no_room_answers_all_the_same() -> Result<()> {
    let (_lab, company, web01) = small()?;
    company.allow(&web01, &[])?;
    fill(&web01)?;
    // The log's last block is filled as well.
    web01.sh(&format!("cat /dev/zero >> {HOME}/daemon.log 2>/dev/null; true"))?.success()?;
    let lost = || Ok::<_, anyhow::Error>(daemon_status(&web01)?["lost_log"]["lines"].as_u64().unwrap_or(0));
    let before = lost()?;
    for _ in 0..50 {
        told(company.run(company.manager(), &web01, &["hostname"])?, 254, &["`laptop` is not in `allow_from`"])?;
    }
    wait_until(SOON, "what the log lacks is known", || lost().is_ok_and(|lost| lost > before))?;
    ensure!(finding(&web01, "lines were not written")?.is_some_and(|found| found["area"] == "log"));
    Ok(())
}

fn a_full_disk_is_told_by_the_doctor_and_a_daemon_starts_on_it() -> Result<()> {
    let (_lab, company, web01) = small()?;
    ensure!(finding(&web01, "is full")?.is_none());
    stop(&web01)?;
    fill(&web01)?;
    start(&web01)?;
    company.linked(&web01)?;
    let found = finding(&web01, "is full")?.context("the doctor does not see it")?;
    ensure!(found["level"] == "broken" && text(&found, "/mend")?.contains("df -h"), "{found}");
    Ok(())
}

/// Runs a command again and again until it fails once; returns how often it did not, and how it failed.
fn until_refused(host: &Host, words: &str) -> Result<(usize, String)> {
    let script = format!("n=0; while said=$(malai {words} 2>&1); do n=$((n+1)); done; echo $n; echo \"$said\"");
    let output = host.run(Cmd::new(["sh", "-c", &script]).timeout(LONG))?.success()?;
    let text = output.text();
    let (number, said) = text.split_once('\n').context("no number")?;
    Ok((number.parse()?, said.to_owned()))
}

/// How many bytes of room a file of a host's home has beyond its end.
fn lead(host: &Host, name: &str) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    host.inside(|| {
        let meta = std::fs::metadata(format!("{HOME}/{name}"))?;
        Ok((meta.blocks() * 512).saturating_sub(meta.len()))
    })
}

/// Checks that each start in the audit has its one end after it, and that the times do not go back.
fn each_start_has_its_end(host: &Host) -> Result<usize> {
    let mut open = std::collections::BTreeSet::new();
    let (mut ended, mut at_ms) = (0, 0);
    for line in malai_e2e::cluster::audit(host)? {
        let session = text(&line, "/session")?.to_owned();
        let at = line["at_ms"].as_u64().context("no time")?;
        ensure!(at + 1000 >= at_ms, "{line} is out of order");
        at_ms = at;
        match text(&line, "/event")? {
            "start" => ensure!(open.insert(session), "{line} again"),
            "end" => {
                ensure!(open.remove(&session), "{line} without a start");
                ended += 1;
            }
            _ => {}
        }
    }
    ensure!(open.is_empty(), "no end: {open:?}");
    Ok(ended)
}

/// Waits until audit and journal have their reserves again.
fn reserves_are_whole(host: &Host) -> Result<()> {
    wait_until(SOON * 3, "the reserves are whole", || {
        lead(host, "audit.jsonl").is_ok_and(|left| left > 200_000)
            && lead(host, "sessions/journal").is_ok_and(|left| left > 850_000)
    })
}

fn a_full_disk_lets_whoever_makes_room_in_and_says_the_truth_when_it_takes_nothing_more() -> Result<()> {
    let (_lab, company, web01) = room_for_reserves()?;
    let laptop = company.manager();
    company.ran_remotely(laptop, &web01)?;
    fill(&web01)?;
    let df = laptop.run(malai(["web01.company", "--", "df", "--output=avail", HOME]))?.success()?.text();
    ensure!(df.trim_end().ends_with(" 0") || df.trim_end().ends_with("\n0"), "{df:?}");
    let found = finding(&web01, "is full")?.context("the doctor does not see it")?;
    for word in [&format!("tmpfs on {HOME}"), "the reserve of the audit is enough for about "] {
        ensure!(text(&found, "/what")?.contains(word), "{word:?} is not in {found}");
    }

    let (ran, said) = until_refused(laptop, "web01.company -- true")?;
    ensure!((200..1000).contains(&ran), "{ran} commands ran: {said}");
    for _ in 0..120 {
        // Not "too many attempts", however often it is tried.
        let refused = laptop.run(malai(["web01.company", "--", "true"]))?;
        told(
            refused,
            255,
            &["refused, since the target's audit cannot be written", "No space left on device", "df -h"],
        )?;
    }
    wait_until(SOON, "the alarm is raised", || {
        alarm(&company, &web01).is_ok_and(|it| it.contains("the disk is full"))
    })?;
    ensure!(said.contains("No space left on device"), "{said}");
    each_start_has_its_end(&web01)?;
    let journal = web01.inside(|| Ok(std::fs::read_to_string(format!("{HOME}/sessions/journal"))?))?;
    let spoilt = journal.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).count();
    ensure!(spoilt == 0 && journal.ends_with('\n'), "{spoilt} lines of the journal do not read");

    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    company.ran_remotely(laptop, &web01)?;
    wait_until(SOON, "the alarm is over", || alarm(&company, &web01).is_ok_and(|alarm| alarm.is_empty()))?;
    reserves_are_whole(&web01)?;
    let before = each_start_has_its_end(&web01)?;

    // The administrator, who has no other way in than malai, makes the room.
    fill(&web01)?;
    laptop.run(malai(["web01.company", "--", "rm", &format!("{HOME}/filler")]))?.success()?;
    reserves_are_whole(&web01)?;
    ensure!(each_start_has_its_end(&web01)? == before + 1);
    Ok(())
}

/// As [`small`], with enough room for whole reserves.
fn room_for_reserves() -> Result<(Lab, Cluster, Host)> {
    let (lab, company, web01) = small()?;
    web01.sh(&format!("mount -o remount,size=8m {HOME}"))?.success()?;
    stop(&web01)?;
    start(&web01)?;
    company.linked(&web01)?;
    company.ran_remotely(company.manager(), &web01)?;
    reserves_are_whole(&web01)?;
    Ok((lab, company, web01))
}

fn a_daemon_and_an_executor_that_start_on_a_full_disk_let_whoever_makes_room_in() -> Result<()> {
    let (_lab, company, web01) = room_for_reserves()?;
    let laptop = company.manager();
    fill(&web01)?;
    for _ in 0..2 {
        company.ran_remotely(laptop, &web01)?;
        // Daemon and executor, in good order.
        stop(&web01)?;
        start(&web01)?;
        company.linked(&web01)?;
        company.ran_remotely(laptop, &web01)?;
        // And neither in good order.
        let status = malai_e2e::cluster::daemon_status(&web01)?;
        let pids: Vec<u64> = ["pid", "executor_pid"].iter().filter_map(|pid| status[*pid].as_u64()).collect();
        ensure!(pids.len() == 2, "{status}");
        web01.sh(&format!("kill -9 {} {}", pids[0], pids[1]))?.success()?;
        for pid in pids {
            wait_until(SOON, "it is gone", || {
                web01.sh(&format!("kill -0 {pid} 2>/dev/null")).is_ok_and(|it| it.success().is_err())
            })?;
        }
        start(&web01)?;
        company.linked(&web01)?;
    }
    laptop.run(malai(["web01.company", "--", "rm", &format!("{HOME}/filler")]))?.success()?;
    reserves_are_whole(&web01)?;
    each_start_has_its_end(&web01)?;
    Ok(())
}

fn refusals_on_a_full_disk_leave_the_reserve_to_commands() -> Result<()> {
    let (_lab, company, web01) = room_for_reserves()?;
    let laptop = company.manager();
    fill(&web01)?;
    let before = lead(&web01, "audit.jsonl")?;
    // What the config does not allow is refused, and each refusal would be a line.
    let script = "for i in $(seq 400); do malai --user nobody-there web01.company -- true 2>/dev/null; done; true";
    laptop.run(Cmd::new(["sh", "-c", script]).timeout(LONG))?.success()?;
    let left = lead(&web01, "audit.jsonl")?;
    ensure!(left < before && left > 256 * 1024 / 2, "{before} bytes before, {left} after");
    laptop.run(malai(["web01.company", "--", "rm", &format!("{HOME}/filler")]))?.success()?;
    reserves_are_whole(&web01)?;
    wait_until(SOON * 2, "what was left out is counted", || {
        malai_e2e::cluster::audit(&web01).is_ok_and(|lines| lines.iter().any(|line| line["event"] == "left-out"))
    })?;
    Ok(())
}

fn on_a_full_disk_the_audit_does_not_leave_a_part_that_has_room_for_one_that_has_none() -> Result<()> {
    const PART_BYTES: usize = 10 * 1024 * 1024;
    let (_lab, company, web01) = room_for_reserves()?;
    let laptop = company.manager();
    web01.sh(&format!("mount -o remount,size=24m {HOME}"))?.success()?;
    stop(&web01)?;
    let line = format!(
        "{{\"at_ms\":1,\"event\":\"refused\",\"cluster\":\"company\",\"session\":\"00\",\"id52\":\"x\",\"words\":[\"{}\"]}}\n",
        "x".repeat(900)
    );
    let text = line.repeat((PART_BYTES - 12_000) / line.len());
    web01.inside(|| Ok(std::fs::write(format!("{HOME}/audit.jsonl"), &text)?))?;
    start(&web01)?;
    company.linked(&web01)?;
    fill(&web01)?;
    for _ in 0..60 {
        company.ran_remotely(laptop, &web01)?;
    }
    let length = || web01.inside(|| Ok(std::fs::metadata(format!("{HOME}/audit.jsonl"))?.len()));
    ensure!(length()? > PART_BYTES as u64, "{} bytes are no more than a part has", length()?);
    ensure!(web01.sh(&format!("test -e {HOME}/audit.jsonl.1"))?.success().is_err(), "it was left");
    web01.sh(&format!("rm {HOME}/filler"))?.success()?;
    company.ran_remotely(laptop, &web01)?;
    wait_until(SOON, "the next part is begun", || length().is_ok_and(|length| length < 100_000))?;
    company.ran_remotely(laptop, &web01)?;
    ensure!(each_start_has_its_end(&web01)? == 62);
    reserves_are_whole(&web01)?;
    Ok(())
}
