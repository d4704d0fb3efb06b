//! The first byte of standard input: what it costs that a pipe is not read before the command has started.

use anyhow::{Context as _, Result};
use malai_e2e::lab::Wire;

use crate::place::{Place, millis};
use crate::report::Report;
use crate::ssh::Ssh;
use crate::warm::{DELAY_MS, RUNS, WARM_UP_RUNS, typical};

/// What takes the byte on web01.
const READS_ONE: &str = "head -c 1 >/dev/null";

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.section(
        "The first byte of standard input",
        format!(
            "`head -c 1` on web01 ends when it has a byte of standard input. Measured is the time from the start of the \
             client's process, which has the byte in a pipe or a file, to its exit: median of {RUNS}, after {WARM_UP_RUNS} \
             that do not count, over the long wire ({} ms there and back). A pipe is read when the command has started, a round \
             trip later, so that nothing is lost when it does not start. `--eager-stdin` reads it at once, and a file is \
             read ahead without moving its position. ssh goes through a ControlMaster.",
            2 * DELAY_MS
        ),
    );
    let place = Place::open(Some(&Wire::delay_ms(DELAY_MS)))?;
    let malai = |options: &str| format!("malai {options} web01.company -- sh -c '{READS_ONE}'");
    let piped = |client: &str| format!("printf x | {client}");
    place.laptop().write("/root/byte", "x")?;
    let rows = [
        ("a byte in a pipe, malai", piped(&malai(""))),
        ("a byte in a pipe, malai --eager-stdin", piped(&malai("--eager-stdin"))),
        ("a byte in a file, malai", format!("{} </root/byte", malai(""))),
    ];
    for (what, line) in rows {
        report.figure(what, millis(typical(&place, &["sh", "-c", &line])?));
    }
    let measured = match Ssh::open(&place).context("ssh")? {
        Some(ssh) => {
            let line = piped(&format!("{} '{READS_ONE}'", ssh.words.join(" ")));
            millis(typical(&place, &["sh", "-c", &line])?)
        }
        None => "not installed".to_owned(),
    };
    report.figure("a byte in a pipe, ssh", measured);
    Ok(())
}
