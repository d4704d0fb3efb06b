//! The audit on the target: every attempt, refused ones too.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, audit, malai, start, stop, text};
use malai_e2e::lab::wait_until;
use malai_e2e::trials;
use serde_json::{Value, json};

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        every_attempt_is_in_the_audit_of_the_target,
        what_cannot_be_written_down_is_not_run,
        an_audit_line_cannot_drive_a_terminal,
    ]
}

fn every_attempt_is_in_the_audit_of_the_target() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let (company, [web01, db01]) = (&office.company, &office.machines);
    let words = ["--reason", "release 7", "web01.company", "--", "sh", "-c", "hostname; cat >/dev/null; exit 5"];
    office.laptop().run(malai(words).stdin("a secret"))?.exited(5)?;
    told(company.run(db01, web01, &["rm", "-rf", "/"])?, 254, &[])?;
    wait_until(SOON, "three lines are in the audit", || audit(web01).is_ok_and(|lines| lines.len() == 3))?;
    let lines = audit(web01)?;
    let (laptop, db01) = (company.id52(office.laptop())?, company.id52(db01)?);
    let show = |line: &Value| -> Value {
        ["event", "cluster", "who", "id52", "user", "reason", "code", "stdout_bytes"]
            .iter()
            .map(|key| line.get(*key).cloned().unwrap_or_default())
            .collect()
    };
    let mut shown: Vec<Value> = lines.iter().map(show).collect();
    shown.sort_by_key(ToString::to_string);
    let mut wanted = vec![
        json!(["start", "company", "laptop", laptop, "root", "release 7", null, null]),
        json!(["end", "company", "laptop", laptop, "root", "release 7", 5, 6]),
        json!(["refused", "company", "db01", db01, null, null, 254, null]),
    ];
    wanted.sort_by_key(ToString::to_string);
    assert_eq!(shown, wanted);
    let refused = lines.iter().find(|line| line["event"] == "refused");
    assert_eq!(refused.map(|line| &line["words"]), Some(&json!(["rm", "-rf", "/"])));
    ensure!(!web01.read("/root/malai-home/audit.jsonl")?.contains("a secret"), "standard input is in the audit");
    let recent = |since: &str| -> Result<usize> {
        Ok(web01.run(malai(["audit", "--json", "--since", since]))?.success()?.text().lines().count())
    };
    assert_eq!((recent("1h")?, recent("2100-01-01")?), (3, 0));
    assert_eq!((audit(office.laptop())?.len(), audit(&office.machines[1])?.len()), (0, 0), "only the target writes");
    Ok(())
}

fn what_cannot_be_written_down_is_not_run() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.ran_remotely(office.laptop(), web01)?;
    // A full disk, of which the daemon notices only that it cannot write.
    web01.run(["rm", "/root/malai-home/audit.jsonl"])?.success()?;
    web01.run(["ln", "-s", "/dev/full", "/root/malai-home/audit.jsonl"])?.success()?;
    stop(web01)?;
    start(web01)?;
    company.linked(web01)?;
    let refused = company.run(office.laptop(), web01, &["touch", "/root/it-ran"])?;
    told(refused, 255, &["refused, since the target's audit cannot be written"])?;
    ensure!(!web01.exists("/root/it-ran")?);
    Ok(())
}

fn an_audit_line_cannot_drive_a_terminal() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.run(office.laptop(), web01, &["printf", "%s", "\x1b[2J\nforged line"])?.success()?;
    let output = web01.run(malai(["audit"]))?.success()?;
    ensure!(!output.stdout.contains(&0x1b), "{}", output.text());
    ensure!(!output.text().lines().any(|line| line.starts_with("forged")), "{}", output.text());
    let line = audit(web01)?.remove(0);
    assert_eq!(text(&line, "/words/2")?, "\x1b[2J\nforged line");
    Ok(())
}
