//! Numbered lines with a sum, by which a missing, doubled or misplaced byte is noticed.
//!
//! The driver writes `o N SUM` on standard output and `e N SUM` on standard error, and answers `i N SUM` on its standard
//! input by `a N SUM`. Its last line on standard output is `end O E I SUM`: how many of each there were.

use anyhow::{Context as _, Result, ensure};

/// Words of malai's own on standard error begin so.
const OWN: &[u8] = b"malai: ";

/// The line of this number of a series.
#[must_use]
pub fn line(series: char, number: u64) -> String {
    format!("{series} {number} {:08x}\n", sum(&[u64::from(series), number]))
}

/// The number that a line of this series has, when its sum is right.
#[must_use]
pub fn number(series: char, text: &str) -> Option<u64> {
    let number = text.split(' ').nth(1)?.parse().ok()?;
    (line(series, number).trim_end() == text).then_some(number)
}

/// The last line: how many lines of output, of errors and of input there were.
#[must_use]
pub fn end(counts: [u64; 3]) -> String {
    let [output, errors, input] = counts;
    format!("end {output} {errors} {input} {:08x}\n", sum(&counts))
}

fn counts(text: &str) -> Option<[u64; 3]> {
    let mut words = text.split(' ').skip(1).map(str::parse);
    let counts = [words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?];
    (end(counts).trim_end() == text).then_some(counts)
}

/// FNV-1a over the numbers, folded to 32 bits.
fn sum(numbers: &[u64]) -> u32 {
    let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
    let sum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u32::try_from((sum ^ (sum >> 32)) & u64::from(u32::MAX)).unwrap_or(0)
}

/// Numbers that look random, the same for the same seed.
#[must_use]
pub fn draw(seed: u64, turn: u64, below: u64) -> u64 {
    u64::from(sum(&[seed, turn, seed ^ turn.rotate_left(32)])) % below.max(1)
}

/// What arrived, after it was found to be without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Lines of standard output.
    pub output: u64,
    /// Lines of standard error.
    pub errors: u64,
    /// Answers to lines of standard input.
    pub answers: u64,
    /// Whether the last line came, and it counts what is here.
    pub whole: bool,
}

/// Checks that both streams are a prefix of what the driver wrote, and whole if its last line is there.
///
/// # Errors
/// Says which line is missing, doubled, misplaced or torn.
pub fn check(stdout: &[u8], stderr: &[u8]) -> Result<Arrived> {
    let mut arrived = Arrived::default();
    let mut end = None;
    for text in complete(stdout) {
        ensure!(end.is_none(), "standard output goes on after its last line, with {text:?}");
        match text.split(' ').next() {
            Some("a") => arrived.answers = next('a', arrived.answers, text)?,
            Some("end") => end = Some(counts(text).with_context(|| format!("the last line is torn: {text:?}"))?),
            _ => arrived.output = next('o', arrived.output, text)?,
        }
    }
    for text in complete(&without_own(stderr)) {
        arrived.errors = next('e', arrived.errors, text)?;
    }
    if let Some(counts) = end {
        let here = [arrived.output, arrived.errors, arrived.answers];
        ensure!(here == counts, "the driver wrote {counts:?} lines (output, errors, answers), and {here:?} arrived");
        let (out, err) = (stdout.last(), without_own(stderr).last().copied());
        ensure!(out == Some(&b'\n') && err.is_none_or(|last| last == b'\n'), "a piece of a line follows the last one");
        arrived.whole = true;
    }
    Ok(arrived)
}

/// The lines that came with their end. What comes after them is not there yet.
fn complete(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.map(|line| std::str::from_utf8(line).unwrap_or("(not UTF-8)").trim_end_matches('\n'))
}

fn next(series: char, last: u64, text: &str) -> Result<u64> {
    let found = number(series, text).with_context(|| format!("torn, after {series} {last}: {text:?}"))?;
    ensure!(found == last + 1, "{series} {last} is followed by {series} {found}");
    Ok(found)
}

/// Standard error without malai's own words, which may stand in the middle of a line of the command.
#[must_use]
pub fn without_own(stderr: &[u8]) -> Vec<u8> {
    let mut rest = stderr;
    let mut kept = Vec::with_capacity(stderr.len());
    while let Some(at) = find_own(rest) {
        let (before, own) = rest.split_at(at);
        kept.extend_from_slice(before);
        let end = own.iter().position(|byte| *byte == b'\n').map_or(own.len(), |end| end + 1);
        rest = own.get(end..).unwrap_or_default();
    }
    kept.extend_from_slice(rest);
    kept
}

/// malai's own words on standard error, line by line.
#[must_use]
pub fn own(stderr: &[u8]) -> Vec<String> {
    let mut rest = stderr;
    let mut found = Vec::new();
    while let Some(at) = find_own(rest) {
        let own = rest.get(at..).unwrap_or_default();
        let end = own.iter().position(|byte| *byte == b'\n').map_or(own.len(), |end| end + 1);
        let (line, after) = own.split_at(end);
        found.push(String::from_utf8_lossy(line).trim_end().to_owned());
        rest = after;
    }
    found
}

fn find_own(bytes: &[u8]) -> Option<usize> {
    bytes.windows(OWN.len()).position(|window| window == OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> (String, String) {
        let stdout = [line('o', 1), line('a', 1), line('o', 2), line('o', 3), end([3, 2, 1])].concat();
        (stdout, [line('e', 1), line('e', 2)].concat())
    }

    fn refused(stdout: &str, stderr: &str) -> String {
        format!("{:#}", check(stdout.as_bytes(), stderr.as_bytes()).expect_err("it is not in order"))
    }

    #[test]
    fn whole_streams_and_prefixes_of_them_are_in_order() {
        let (stdout, stderr) = streams();
        let whole = Arrived { output: 3, errors: 2, answers: 1, whole: true };
        assert_eq!(check(stdout.as_bytes(), stderr.as_bytes()).unwrap(), whole);
        for cut in 0..stdout.len() {
            assert!(!check(&stdout.as_bytes()[..cut], stderr.as_bytes()).unwrap().whole);
        }
    }

    #[test]
    fn a_line_that_is_missing_doubled_or_misplaced_is_noticed() {
        let (stdout, stderr) = streams();
        assert_eq!(refused(&stdout.replace(&line('o', 2), ""), &stderr), "o 1 is followed by o 3");
        assert_eq!(refused(&stdout.replace(&line('o', 2), &line('o', 2).repeat(2)), &stderr), "o 2 is followed by o 2");
        assert_eq!(refused(&stdout.replace(&line('a', 1), &line('a', 2)), &stderr), "a 0 is followed by a 2");
        assert_eq!(refused(&stdout, &(line('e', 2) + &line('e', 1))), "e 0 is followed by e 2");
        assert!(refused(&stdout, &line('e', 1)).contains("[3, 2, 1]"));
        assert!(refused(&(stdout + &line('o', 4)), &stderr).contains("after its last line"));
    }

    #[test]
    fn every_missing_or_doubled_byte_is_noticed() {
        let (stdout, stderr) = streams();
        for at in 0..stdout.len() {
            let (head, tail) = stdout.split_at(at);
            let missing = format!("{head}{}", &tail[1..]);
            let doubled = format!("{head}{}{tail}", &tail[..1]);
            for wrong in [missing, doubled] {
                let checked = check(wrong.as_bytes(), stderr.as_bytes());
                assert!(checked.is_err() || checked.is_ok_and(|all| !all.whole), "{wrong}");
            }
        }
    }

    #[test]
    fn words_of_malai_are_told_apart_even_within_a_line() {
        let (stdout, stderr) = streams();
        let mixed = format!("{}malai: lost\n{}malai: back\n", &stderr[..5], &stderr[5..]);
        assert!(check(stdout.as_bytes(), mixed.as_bytes()).unwrap().whole);
        assert_eq!(own(mixed.as_bytes()), ["malai: lost", "malai: back"]);
    }
}
