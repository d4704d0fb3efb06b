//! The command of the fault table: what it writes, reads and leaves behind shows what was lost, and how often it ran.
//!
//! * `malai-lab-driver run FILE CODE [LINES]`: lines on both streams, 200 a second each, and an answer to each line of
//!   input, until the input ends, or LINES were written on each; then exits with CODE.
//! * `malai-lab-driver bulk FILE CODE LINES`: LINES lines on standard output, as fast as they go.
//! * `malai-lab-driver once FILE CODE`: exits at once.
//!
//! Each appends a line to FILE when it starts. The lines are those of `malai_e2e::survival::lines`.

use std::fs::File;
use std::io::{BufRead as _, BufWriter, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use malai_e2e::survival::lines;

/// 200 lines a second.
const PACE: Duration = Duration::from_millis(5);

/// Whether the last line is written.
static LAST: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match drive() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody is left to be told when standard error is closed.
            drop(writeln!(std::io::stderr(), "malai-lab-driver: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn drive() -> Result<u8> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (how, file, code, count) = match words.as_slice() {
        [how, file, code] => (*how, *file, *code, None),
        [how, file, code, count] => (*how, *file, *code, Some(count.parse().context("LINES is no number")?)),
        _ => bail!("usage: malai-lab-driver run|bulk|once FILE CODE [LINES]"),
    };
    let code = code.parse().context("CODE is no exit code")?;
    // One write, so that several who start at once do not mix.
    let mut started = File::options().create(true).append(true).open(file).context("cannot open FILE")?;
    started.write_all(format!("{}\n", std::process::id()).as_bytes()).context("cannot write FILE")?;
    match (how, count) {
        ("run", count) => run(count)?,
        ("bulk", Some(count)) => bulk(count)?,
        ("once", None) => std::io::stdout().write_all(b"ran\n")?,
        _ => bail!("there is no way {how:?}"),
    }
    Ok(code)
}

/// Output at the pace, answers as they come.
fn run(count: Option<u64>) -> Result<()> {
    static ANSWERED: AtomicU64 = AtomicU64::new(0);
    static ENDED: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        if let Err(error) = answer(&ANSWERED) {
            drop(writeln!(std::io::stderr(), "malai-lab-driver: {error:#}"));
        }
        ENDED.store(true, Ordering::Release);
    });
    let begun = Instant::now();
    let mut written = 0;
    while count.map_or_else(|| !ENDED.load(Ordering::Acquire), |count| written < count) {
        written += 1;
        std::io::stdout().write_all(lines::line('o', written).as_bytes())?;
        std::io::stderr().write_all(lines::line('e', written).as_bytes())?;
        let due = begun + PACE * u32::try_from(written)?;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(lines::end([written, written, ANSWERED.load(Ordering::Acquire)]).as_bytes())?;
    LAST.store(true, Ordering::Release);
    Ok(())
}

/// Answers each line of input, which must be the next one.
fn answer(answered: &AtomicU64) -> Result<()> {
    for text in std::io::stdin().lock().lines() {
        let text = text.context("cannot read the input")?;
        let expected = answered.load(Ordering::Relaxed) + 1;
        let number = lines::number('i', &text).with_context(|| format!("torn input after {expected}: {text:?}"))?;
        ensure!(number == expected, "input {expected} was expected, and {number} came");
        let mut stdout = std::io::stdout().lock();
        // Both are done under the lock: nothing comes after the last line.
        if LAST.load(Ordering::Acquire) {
            return Ok(());
        }
        stdout.write_all(lines::line('a', number).as_bytes())?;
        answered.store(number, Ordering::Release);
    }
    Ok(())
}

/// A buffer's worth at a time.
fn bulk(count: u64) -> Result<()> {
    let mut stdout = BufWriter::with_capacity(64 * 1024, std::io::stdout());
    for number in 1..=count {
        stdout.write_all(lines::line('o', number).as_bytes())?;
    }
    stdout.write_all(lines::end([count, 0, 0]).as_bytes())?;
    stdout.flush().context("cannot write the output")
}
