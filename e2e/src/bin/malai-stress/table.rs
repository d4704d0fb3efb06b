//! Plays the rows of the table, several side by side, and each of them again.

use std::sync::{Mutex, PoisonError};
use std::thread;

use malai_e2e::survival::{Scale, rows};

use crate::report::Report;
use crate::say;

/// How many rows run side by side: for most of their time they wait until a fault ends.
const ROWS_AT_ONCE: usize = 4;

/// Plays each row whose name contains the word, this many times.
pub(crate) fn play(scale: Scale, times: usize, word: &str, report: &mut Report) {
    let rows: Vec<_> = rows(scale).into_iter().filter(|row| row.name.contains(word)).collect();
    for row in &rows {
        report.row(&row.name);
    }
    let queue = Mutex::new((0..times).flat_map(|_| &rows));
    let report = Mutex::new(report);
    thread::scope(|scope| {
        for _ in 0..ROWS_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(row) = next else { return };
                    let played = row.play();
                    match &played {
                        Ok(evidence) => say(&format!("held: {} {:.1?}", row.name, evidence.recoveries)),
                        Err(error) => say(&format!("FAILED: {}\n{error:#}", row.name)),
                    }
                    report.lock().unwrap_or_else(PoisonError::into_inner).played(&row.name, played);
                }
            });
        }
    });
}
