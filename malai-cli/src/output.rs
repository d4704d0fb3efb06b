//! The only file that prints. Data goes to standard output, malai's own words to standard error, prefixed `malai:`.
//!
//! Whatever is printed may contain another machine's words, so everything is escaped here and nowhere else.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use malai_protocol::failure::{Failure, Kind};
use nix::poll::PollTimeout;
use serde::Serialize;

use crate::{escape, stdio};

/// Bounds how long the last words wait for a stream that nobody reads.
const LAST_WORDS_TIMEOUT_MS: u16 = 1000;

/// Holds whether the reader of standard output left before everything was written.
static READER_LEFT: AtomicBool = AtomicBool::new(false);
/// Is the exit code of a run whose reader left, as if SIGPIPE had ended it.
const EXIT_READER_LEFT: u8 = 128 + 13;

/// Returns the exit code of a run, given what it would be otherwise: 0 only when its results were written.
pub(crate) fn exit_code(code: u8) -> u8 {
    if code == 0 && has_lost_its_reader() { EXIT_READER_LEFT } else { code }
}

/// Tells whether the reader of standard output left before everything was written.
pub(crate) fn has_lost_its_reader() -> bool {
    READER_LEFT.load(Ordering::Relaxed)
}

/// Prints for this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Data as JSON: exactly one document on standard output, or one object a line where it is a stream.
    pub(crate) json: bool,
}

impl Output {
    /// Says something to the user: `malai: …`.
    pub(crate) fn note(self, text: &str) {
        to_stderr(&note(text));
    }

    /// Says what to do next.
    pub(crate) fn hint(self, text: &str) {
        to_stderr(&note(&format!("hint: {text}")));
    }

    /// Reports a failure, as a document too if `--json` was given, and returns its exit code.
    pub(crate) fn failure(self, failure: &Failure) -> u8 {
        self.explain(failure);
        if self.json {
            let document = serde_json::json!({ "error": failure });
            // Standard error has the failure. A standard output that fails too changes nothing about it.
            drop(self.document(&document));
        }
        failure.kind.exit_code()
    }

    /// Reports a failure on standard error only.
    pub(crate) fn explain(self, failure: &Failure) {
        to_stderr(&note(&format!("error: {}", failure.message)));
        failure.hint.iter().for_each(|hint| self.hint(hint));
    }

    /// Reports a failure at the end of a run that gives up, unless standard error takes nothing: its reader may be the very
    /// reason for giving up.
    pub(crate) fn last_words(self, failure: &Failure) {
        if takes_last_words(&io::stderr()) {
            self.explain(failure);
        }
    }

    /// Says something in the same place.
    pub(crate) fn last_note(self, text: &str) {
        if takes_last_words(&io::stderr()) {
            self.note(text);
        }
    }

    /// Prints a failure as a document if `--json` was given and standard output takes something.
    pub(crate) fn last_document(self, failure: &Failure) {
        if self.json && takes_last_words(&io::stdout()) {
            // Standard error has it too.
            drop(self.document(&serde_json::json!({ "error": failure })));
        }
    }

    /// Prints text as data: escaped when a person's terminal gets it, else exactly.
    pub(crate) fn data(self, text: &str) -> Result<(), Failure> {
        if io::stdout().is_terminal() { to_stdout(&escape::text(text)) } else { to_stdout(text) }
    }

    /// Prints one line as data, for a person; escaped in any case.
    pub(crate) fn row(self, line: &str) -> Result<(), Failure> {
        to_stdout(&format!("{}\n", escape::line(line)))
    }

    /// Prints lines as data, as [`Output::row`] does.
    pub(crate) fn rows(self, lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
        lines.into_iter().try_for_each(|line| self.row(&line))
    }

    /// Prints one JSON document, or one object of a stream, as a line.
    pub(crate) fn document<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        to_stdout(&json_line(value)?)
    }

    /// Prints what clap says: help on standard output, with 0; errors on standard error, with 2.
    pub(crate) fn usage(self, error: &clap::Error) -> u8 {
        let text = error.render().to_string();
        if !error.use_stderr() {
            return self.data(&text).map_or_else(|failure| self.failure(&failure), |()| 0);
        }
        if self.json {
            let first = text.lines().next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let document = serde_json::json!({ "error": Failure::new(Kind::Usage, message) });
            // Standard error gets it below.
            drop(self.document(&document));
        }
        let prefix = if text.starts_with("error:") { "malai: " } else { "" };
        to_stderr(&escape::text(&format!("{prefix}{text}")));
        Kind::Usage.exit_code()
    }
}

/// Returns a value as one line of JSON that is safe for a terminal.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    let document = serde_json::to_string(value)
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot write the answer as JSON: {e}")))?;
    Ok(escape::json(&document) + "\n")
}

/// Returns a line of malai's own for standard error. Further lines are indented, so that none can pass for another
/// message.
pub(crate) fn note(text: &str) -> String {
    format!("malai: {}\n", escape::text(text).trim_end().replace('\n', "\n  "))
}

/// Tells whether a stream takes something.
fn takes_last_words(stream: &impl AsFd) -> bool {
    stdio::is_writable(stream, PollTimeout::from(LAST_WORDS_TIMEOUT_MS))
}

fn to_stderr(text: &str) {
    // When even standard error fails, nobody is left to read why.
    drop(io::stderr().write_all(text.as_bytes()));
}

fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that left, such as `head`, has what it wanted. But not all results were written, which the exit code says.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            READER_LEFT.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(e) => Err(Failure::new(Kind::Internal, format!("standard output cannot be written: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Returns lines with columns as wide as their widest cell, two spaces between; the last one is not padded.
pub(crate) fn table<const N: usize>(
    heads: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> impl Iterator<Item = String> {
    let escaped = |row: [String; N]| row.map(|cell| escape::line(&cell));
    let rows: Vec<[String; N]> = [heads.map(String::from)].into_iter().chain(rows.into_iter().map(escaped)).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    rows.into_iter().map(move |row| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    })
}

/// Returns a cell of a table: a dash where there is nothing.
pub(crate) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machines_words_cannot_forge_a_line_or_drive_the_terminal() {
        assert_eq!(note("a\nmalai: all is well\x1b[1A"), "malai: a\n  malai: all is well\\x1b[1A\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["grün", "c"].map(String::from)];
        assert_eq!(table(["a", "b"], rows).collect::<Vec<_>>(), ["a     b", "grün  c"]);
    }
}
