//! What is wrong with a config, and where.

use std::fmt;

use crate::failure::{Failure, Kind};

/// Bounds the problems that one check reports: nobody corrects more at once, and a hostile text could have any number.
pub const MAX_PROBLEMS: usize = 20;

/// Describes one thing that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, in one sentence without a final full stop.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Problem {
    /// Makes a problem at this byte of the text.
    pub fn at(text: &str, byte: usize, message: String, hint: Option<String>) -> Self {
        let (line, column) = position(text, byte);
        Self { line, column, message, hint }
    }

    /// Returns the problem with its place, and in parentheses what to write instead.
    pub fn with_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{self} ({hint})"),
            None => self.to_string(),
        }
    }

    /// Joins all problems of a text to the one failure that travels; `what` is the text's name for a person.
    pub fn failure(problems: &[Problem], what: &str) -> Failure {
        let lines: Vec<String> = problems.iter().map(Problem::with_hint).collect();
        Failure::new(Kind::BadConfig, format!("{what}: {}", lines.join("; ")))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Returns line and column of a byte, both from 1, the column in characters.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let mut end = byte.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = text.get(..end).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a\nüb\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 2), (2, 1));
        assert_eq!(position(text, 3), (2, 1), "inside a character");
        assert_eq!(position(text, 4), (2, 2));
        assert_eq!(position(text, 99), (3, 1));
    }

    #[test]
    fn a_failure_names_every_problem_with_its_position() {
        let problem = |line, hint: Option<&str>| Problem {
            line,
            column: 5,
            message: "wrong".into(),
            hint: hint.map(str::to_owned),
        };
        let failure = Problem::failure(&[problem(3, None), problem(4, Some("write x"))], "cluster.toml");
        assert_eq!(failure.message, "cluster.toml: line 3, column 5: wrong; line 4, column 5: wrong (write x)");
    }
}
