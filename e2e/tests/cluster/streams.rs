//! Standard input, output and error.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, audit, json, malai, running, text};
use malai_e2e::lab::{Cmd, Host, wait_until};
use malai_e2e::trials;
use serde_json::Value;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        the_end_of_input_is_told_and_output_goes_on,
        a_megabyte_of_any_bytes_goes_there_and_back,
        output_and_errors_stay_apart,
        without_input_the_command_has_none,
        a_reader_that_leaves_ends_the_writer_there,
        json_tells_where_it_ran_what_it_printed_and_how_it_ended,
        output_that_a_background_process_holds_is_waited_for_when_asked,
        a_target_that_is_this_very_machine_is_decided_and_audited_all_the_same,
    ]
}

fn on_web01(office: &Office<1>, script: &str) -> Cmd {
    let [web01] = &office.machines;
    malai([&office.company.target(web01), "--", "sh", "-c", script])
}

fn the_end_of_input_is_told_and_output_goes_on() -> Result<()> {
    let office = Office::open(["web01"])?;
    let sorted = office.laptop().run(on_web01(&office, "sort; hostname").stdin("c\na\nb\n"))?.success()?;
    assert_eq!(sorted.text(), "a\nb\nc\nweb01");
    let mut cat = office.laptop().spawn(on_web01(&office, "hostname; cat; echo over").stdin_open())?;
    cat.wait_for_line("web01", SOON)?;
    cat.write(b"first\n")?;
    cat.wait_for_line("first", SOON)?;
    cat.write(b"last, without an end of line")?;
    cat.close_stdin();
    let output = cat.output_within(SOON)?.success()?;
    assert_eq!(output.text(), "web01\nfirst\nlast, without an end of lineover");
    Ok(())
}

fn a_megabyte_of_any_bytes_goes_there_and_back() -> Result<()> {
    let office = Office::open(["web01"])?;
    let bytes: Vec<u8> = (0..1_000_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let output = office.laptop().run(on_web01(&office, "hostname >&2; cat").stdin(bytes.clone()))?.success()?;
    ensure!(output.stdout == bytes, "{} bytes came back of {}", output.stdout.len(), bytes.len());
    assert_eq!(output.error_text(), "web01");
    Ok(())
}

fn output_and_errors_stay_apart() -> Result<()> {
    let office = Office::open(["web01"])?;
    let script = "i=0; while [ $i -lt 500 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done; hostname";
    let output = office.laptop().run(on_web01(&office, script))?.success()?;
    let lines = |name: &str| (0..500).map(|n| format!("{name}{n}\n")).collect::<String>();
    assert_eq!(output.text(), format!("{}web01", lines("out")));
    assert_eq!(output.error_text(), lines("err").trim_end());
    Ok(())
}

fn without_input_the_command_has_none() -> Result<()> {
    let office = Office::open(["web01"])?;
    let words = ["-n", "web01.company", "--", "sh", "-c", "cat; readlink /proc/self/fd/0; hostname"];
    let output = office.laptop().run(malai(words).stdin("not to be sent"))?.success()?;
    assert_eq!(output.text(), "/dev/null\nweb01");
    Ok(())
}

fn a_reader_that_leaves_ends_the_writer_there() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let pipe = "malai web01.company -- sh -c 'hostname; exec yes endless-words' | head -n 2";
    assert_eq!(office.laptop().sh(pipe)?.success()?.text(), "web01\nendless-words");
    wait_until(SOON, "the writer is gone", || running(web01, "endless-words").is_ok_and(|found| found == 0))
}

/// The objects of a stream, one a line.
fn objects(output: &[u8]) -> Result<Vec<Value>> {
    let lines = std::str::from_utf8(output)?.lines();
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn json_tells_where_it_ran_what_it_printed_and_how_it_ended() -> Result<()> {
    let office = Office::open(["web01"])?;
    let script = "echo out; echo err >&2; exit 3";
    let words = ["--json", "web01.company", "--", "sh", "-c", script];
    let all = objects(&office.laptop().run(malai(words))?.exited(3)?.stdout)?;
    let [reached, first, ..] = &all[..] else { anyhow::bail!("{all:?}") };
    assert_eq!((text(reached, "/event")?, text(reached, "/found_by")?), ("reached", "it dialled"));
    ensure!(text(reached, "/path")?.starts_with("direct ") && reached["rtt_us"].is_u64(), "{reached}");
    assert_eq!(
        (text(first, "/event")?, text(first, "/hostname")?, text(first, "/user")?),
        ("started", "web01", "root")
    );
    let of = |event: &str| -> String {
        let found = all.iter().filter(|one| one.get("event") == Some(&event.into()));
        found.filter_map(|one| one.get("text").and_then(Value::as_str)).collect()
    };
    assert_eq!((of("stdout"), of("stderr")), ("out\n".to_owned(), "err\n".to_owned()));
    let last = all.last().context("nothing")?;
    assert_eq!((text(last, "/event")?, text(last, "/ended_by")?), ("exit", "self"));
    assert_eq!(last.pointer("/status/exited/code"), Some(&3.into()));
    let refused = office.laptop().run(malai(["--json", "web09.company", "true"]))?.exited(255)?;
    assert_eq!(text(&json(&refused)?, "/error/kind")?, "unknown-target");
    Ok(())
}

fn output_that_a_background_process_holds_is_waited_for_when_asked() -> Result<()> {
    let office = Office::open(["web01"])?;
    let script = "hostname; (sleep 2; echo late) &";
    let at_once = office.laptop().run(on_web01(&office, script))?.success()?;
    assert_eq!(at_once.text(), "web01");
    ensure!(at_once.error_text().contains("malai:"), "malai does not say that the output is still open");
    let words = ["--wait-output", "web01.company", "--", "sh", "-c", script];
    let waited = office.laptop().run(malai(words).timeout(Duration::from_secs(20)))?.success()?;
    assert_eq!((waited.text().as_str(), waited.error_text().as_str()), ("web01\nlate", ""));
    Ok(())
}

fn a_target_that_is_this_very_machine_is_decided_and_audited_all_the_same() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    let events = |host: &Host| -> Result<Vec<String>> {
        audit(host)?.iter().map(|line| text(line, "/event").map(str::to_owned)).collect()
    };
    let itself = company.run(web01, web01, &["hostname"])?;
    told(itself, 254, &["`web01` is not in `allow_from` of [defaults]"])?;
    assert_eq!(events(web01)?, ["refused"]);
    company.allow(web01, &["web01"])?;
    let output = company.run(web01, web01, &["sh", "-c", "hostname; exit 9"])?.exited(9)?;
    assert_eq!(output.text(), "web01");
    wait_until(SOON, "the end is in web01's audit", || {
        events(web01).is_ok_and(|all| all == ["refused", "start", "end"])
    })?;
    assert_eq!(audit(office.laptop())?.len(), 0, "the laptop had no part in it");
    Ok(())
}
