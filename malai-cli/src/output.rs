//! The only file that prints. Data goes to standard output, malai's own words to standard error, prefixed `malai:`.
//!
//! Whatever is printed may contain another machine's words, so everything is escaped here and nowhere else.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use malai_protocol::failure::{Failure, Kind};
use nix::poll::PollTimeout;
use serde::Serialize;

use crate::{escape, stdio};

/// How long the last words wait for a standard error that nobody reads, in milliseconds.
const LAST_WORDS_MS: u16 = 1000;

/// Notes that the reader of standard output left before everything was written.
static READER_LEFT: AtomicBool = AtomicBool::new(false);
/// Is the exit code of a run whose reader left, as if SIGPIPE had ended it.
const READER_LEFT_CODE: u8 = 128 + 13;

/// Returns the exit code of a run, given what it would be otherwise: 0 only when its results were written.
pub(crate) fn exit_code(code: u8) -> u8 {
    if code == 0 && has_lost_its_reader() { READER_LEFT_CODE } else { code }
}

/// Whether the reader of standard output left before everything was written.
pub(crate) fn has_lost_its_reader() -> bool {
    READER_LEFT.load(Ordering::Relaxed)
}

/// How this run prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Data as JSON: exactly one document on standard output, or one object a line where it is a stream.
    pub(crate) json: bool,
}

impl Output {
    /// Says something to the person: `malai: …`.
    pub(crate) fn note(self, text: &str) {
        to_stderr(&note(text));
    }

    /// Says what to do next.
    pub(crate) fn hint(self, text: &str) {
        to_stderr(&note(&format!("hint: {text}")));
    }

    /// Tells a failure, as a document too if `--json` was given, and returns the exit code that it means.
    pub(crate) fn failure(self, failure: &Failure) -> u8 {
        self.explain(failure);
        if self.json {
            let document = serde_json::json!({ "error": failure });
            // The failure was told above; a standard output that fails too changes nothing about it.
            drop(self.document(&document));
        }
        failure.kind.exit_code()
    }

    /// Tells a failure on standard error only.
    pub(crate) fn explain(self, failure: &Failure) {
        to_stderr(&note(&format!("error: {}", failure.message)));
        failure.hint.iter().for_each(|hint| self.hint(hint));
    }

    /// The last words of a run that gives up: not printed when standard error takes nothing, because its reader may be
    /// the very reason for giving up.
    pub(crate) fn last_words(self, failure: &Failure) {
        if stdio::is_writable(&io::stderr(), PollTimeout::from(LAST_WORDS_MS)) {
            self.explain(failure);
        }
    }

    /// Prints a hint at what was probably meant, after the last words, if standard error takes something.
    pub(crate) fn last_hint(self, text: &str) {
        if stdio::is_writable(&io::stderr(), PollTimeout::from(LAST_WORDS_MS)) {
            self.hint(text);
        }
    }

    /// Says something at the end of a run that gives up, as [`Output::last_words`] does.
    pub(crate) fn last_note(self, text: &str) {
        if stdio::is_writable(&io::stderr(), PollTimeout::from(LAST_WORDS_MS)) {
            self.note(text);
        }
    }

    /// Prints a failure as a document if `--json` was given and standard output takes something.
    pub(crate) fn last_document(self, failure: &Failure) {
        if self.json && stdio::is_writable(&io::stdout(), PollTimeout::from(LAST_WORDS_MS)) {
            // Standard error has it too.
            drop(self.document(&serde_json::json!({ "error": failure })));
        }
    }

    /// Prints text as data: escaped when a person's terminal gets it, else exactly.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn data(self, text: &str) -> Result<(), Failure> {
        if io::stdout().is_terminal() { to_stdout(&escape::text(text)) } else { to_stdout(text) }
    }

    /// Prints one line as data, for a person; escaped in any case.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn row(self, line: &str) -> Result<(), Failure> {
        to_stdout(&format!("{}\n", escape::line(line)))
    }

    /// Prints one JSON document, or one object of a stream, as a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn document<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        to_stdout(&json_line(value)?)
    }

    /// What clap has to say: help to standard output, with 0; errors to standard error, with 2.
    pub(crate) fn usage(self, error: &clap::Error) -> u8 {
        let text = error.render().to_string();
        if !error.use_stderr() {
            return self.data(&text).map_or_else(|failure| self.failure(&failure), |()| 0);
        }
        if self.json {
            let first = text.lines().next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let document = serde_json::json!({ "error": Failure::new(Kind::Usage, message) });
            // The error is told on standard error below.
            drop(self.document(&document));
        }
        let said = if text.starts_with("error:") { format!("malai: {text}") } else { text };
        to_stderr(&escape::text(&said));
        Kind::Usage.exit_code()
    }
}

/// A value as one line of JSON that is safe for a terminal.
///
/// # Errors
/// When it has no form in JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    let document = serde_json::to_string(value)
        .map_err(|e| Failure::new(Kind::Internal, format!("the answer has no form in JSON: {e}")))?;
    Ok(escape::json(&document) + "\n")
}

/// A line of malai's own on standard error. Further lines are indented, so that none can pass for another message.
pub(crate) fn note(text: &str) -> String {
    format!("malai: {}\n", escape::text(text).trim_end().replace('\n', "\n  "))
}

fn to_stderr(text: &str) {
    // When even standard error fails there is nobody left to tell.
    drop(io::stderr().write_all(text.as_bytes()));
}

fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that left, such as `head`, has what it wanted. But not all results are written, and the exit code
        // says so.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            READER_LEFT.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(e) => Err(Failure::new(Kind::Internal, format!("standard output cannot be written: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Columns as wide as their widest cell, two spaces between; the last one is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| escape::line(cell).chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{:width$}", escape::line(cell))).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
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
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("a", "b"), row("grün", "c")]), ["a     b", "grün  c"]);
    }
}
