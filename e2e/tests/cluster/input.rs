//! Standard input of a command that does not start: the next reader has all of it.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::stop;
use malai_e2e::lab::{Cmd, Host};
use malai_e2e::trials;

use crate::Office;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        nothing_is_taken_of_the_input_when_nothing_starts_whatever_the_reason,
        what_the_first_target_did_not_start_with_the_second_gets_whole,
        a_loop_over_lines_gives_each_to_its_own_command,
    ]
}

const INPUT: &str = "first\nsecond\n";
/// Lists ways to make it the standard input of `{ … }`, by name.
const WAYS: [(&str, &str, &str); 3] = [
    ("a file", "printf 'first\\nsecond\\n' >/root/in.txt; ", " </root/in.txt"),
    ("a pipe", "printf 'first\\nsecond\\n' | ", ""),
    ("a here-document", "", " <<'END'\nfirst\nsecond\nEND\n"),
];

/// Runs malai with these words and then `cat`, with the input in each way: `cat` has all of it.
fn leaves_all(host: &Host, words: &str, code: i32) -> Result<()> {
    for (name, before, after) in WAYS {
        let script = format!("{before}{{ malai {words}; echo $? >/root/code; cat; }}{after}");
        let output = host.sh(&script)?.success()?;
        let ended = host.read("/root/code")?;
        ensure!(ended.trim() == code.to_string(), "{words}, {name}: {ended} {}", output.error_text());
        ensure!(output.stdout == INPUT.as_bytes(), "{words}, {name}: {:?} is left", output.text());
    }
    Ok(())
}

fn nothing_is_taken_of_the_input_when_nothing_starts_whatever_the_reason() -> Result<()> {
    let office = Office::open(["web01", "db01"])?;
    let [web01, db01] = &office.machines;
    let laptop = office.laptop();
    stop(db01)?;
    leaves_all(laptop, "nosuch.lab -- wc -l", 255)?;
    leaves_all(laptop, "web02.company -- wc -l", 255)?;
    leaves_all(laptop, "--connect-timeout 1s db01.company -- wc -l", 255)?;
    leaves_all(laptop, "--wait=1s --json db01.company -- wc -l >/dev/null", 255)?;
    leaves_all(laptop, "--no-such-option web01.company -- wc -l", 2)?;
    leaves_all(laptop, "web01.company -- no-such-program", 127)?;
    leaves_all(laptop, "web01.company -- /root", 126)?;
    leaves_all(laptop, "--cwd /none web01.company -- wc -l", 255)?;
    leaves_all(laptop, "--user nobody-of-that-name web01.company -- wc -l", 254)?;
    leaves_all(laptop, "-n web01.company -- wc -l >/dev/null", 0)?;
    leaves_all(web01, "laptop.company -- wc -l", 254)?;
    // On this very machine no network is between.
    leaves_all(laptop, "laptop.company -- no-such-program", 127)?;
    stop(laptop)?;
    leaves_all(laptop, "nosuch.lab -- wc -l", 255)
}

fn what_the_first_target_did_not_start_with_the_second_gets_whole() -> Result<()> {
    let office = Office::open(["web01"])?;
    let both = "{ malai nosuch.lab -- wc -c || malai web01.company -- wc -c; }";
    let laptop = office.laptop();
    // More than a pipe holds, and more than is sent ahead.
    laptop.sh("head -c 3000000 /dev/zero >/root/in")?.success()?;
    assert_eq!(laptop.sh(&format!("{both} </root/in"))?.success()?.text(), "3000000");
    assert_eq!(laptop.sh(&format!("cat /root/in | {both}"))?.success()?.text(), "3000000");
    Ok(())
}

fn a_loop_over_lines_gives_each_to_its_own_command() -> Result<()> {
    let office = Office::open(["web01"])?;
    let each = "while read -r word; do malai -n web01.company -- echo \"got $word\"; done";
    let output = office.laptop().run(Cmd::new(["sh", "-c", each]).stdin("one\ntwo\nthree\n"))?.success()?;
    assert_eq!(output.text(), "got one\ngot two\ngot three");
    Ok(())
}
