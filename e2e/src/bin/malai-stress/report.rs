//! Writes the results as a document: facts of the machine, sums, a line for each row.

use std::fmt;
use std::time::Duration;

use anyhow::{Error, Result};
use malai_e2e::survival::Evidence;

/// Collects the results of rows and of the soak.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Vec<(&'static str, String)>,
    times: usize,
    rows: Vec<Row>,
    all: Evidence,
    /// Counts the runs of rows and the rounds of the soak that sent messages there and back.
    message_runs: u64,
    soak: Option<Soak>,
}

#[derive(Debug)]
struct Row {
    name: String,
    held: usize,
    failures: Vec<String>,
    evidence: Evidence,
}

#[derive(Debug)]
struct Soak {
    hours: f64,
    rounds: u64,
    evidence: Evidence,
    failure: Option<String>,
}

impl Report {
    /// Makes a report in which each row will be played this many times.
    pub(crate) fn new(times: usize) -> Result<Self> {
        Ok(Self { facts: facts()?, times, rows: Vec::new(), all: Evidence::default(), message_runs: 0, soak: None })
    }

    /// Adds a row that is going to be played.
    pub(crate) fn row(&mut self, name: &str) {
        self.rows.push(Row { name: name.to_owned(), held: 0, failures: Vec::new(), evidence: Evidence::default() });
    }

    /// Notes the result of one run of a row.
    pub(crate) fn played(&mut self, name: &str, played: Result<Evidence>) {
        let Some(row) = self.rows.iter_mut().find(|row| row.name == name) else { return };
        match played {
            Ok(evidence) => {
                row.held += 1;
                row.evidence.add(&evidence);
                self.all.add(&evidence);
                self.message_runs += u64::from(!evidence.messages.is_empty());
            }
            Err(error) => row.failures.push(format!("{error:#}")),
        }
    }

    /// Notes the result of the soak.
    pub(crate) fn soak(&mut self, hours: f64, rounds: u64, evidence: Evidence, failure: Option<Error>) {
        self.all.add(&evidence);
        self.message_runs += rounds;
        self.soak = Some(Soak { hours, rounds, evidence, failure: failure.map(|error| format!("{error:#}")) });
    }

    /// Returns whether every run held, and at least one was played.
    pub(crate) fn all_held(&self) -> bool {
        let rows = self.rows.iter().all(|row| row.failures.is_empty() && row.held > 0);
        rows && !self.rows.is_empty() && self.soak.as_ref().is_none_or(|soak| soak.failure.is_none())
    }

    fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        let rows = self.rows.iter().flat_map(|row| row.failures.iter().map(|failure| (row.name.as_str(), failure)));
        let soak = self.soak.as_ref().and_then(|soak| soak.failure.as_ref()).map(|failure| ("the soak", failure));
        rows.chain(soak).map(|(name, failure)| (name, failure.as_str()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Reliability\n\nWritten by `scripts/stress`, which plays the whole fault table; do not edit.\n")?;
        writeln!(f, "| | |\n|---|---|")?;
        for (name, value) in &self.facts {
            writeln!(f, "| {name} | {value} |")?;
        }
        let held: usize = self.rows.iter().map(|row| row.held).sum();
        let (rows, runs) = (self.rows.len(), self.rows.len() * self.times);
        writeln!(f, "| rows, times each was played | {rows}, {} |\n| runs that held | {held} of {runs} |", self.times)?;
        sums(f, &self.all, self.message_runs)?;
        writeln!(
            f,
            "\n## Rows\n\n| what must hold | held | failed | longest silence after a repair |\n|---|---|---|---|"
        )?;
        for Row { name, held, failures, evidence } in &self.rows {
            let longest = seconds(evidence.percentile(100));
            writeln!(f, "| {} | {held} | {} | {longest} |", name.replace('_', " "), failures.len())?;
        }
        if let Some(Soak { hours, rounds, evidence, failure }) = &self.soak {
            let held = if failure.is_none() { "held" } else { "FAILED" };
            writeln!(f, "\n## Soak\n\n{held}: {hours} h, {rounds} rounds.\n\n| | |\n|---|---|")?;
            sums(f, evidence, *rounds)?;
        }
        for (name, failure) in self.failures() {
            writeln!(f, "\n## Failed: {}\n\n```\n{failure}\n```", name.replace('_', " "))?;
        }
        Ok(())
    }
}

/// Writes the sums, without those of which nothing was played: a table that sent no message does not report 0 of them.
fn sums(f: &mut fmt::Formatter<'_>, all: &Evidence, message_runs: u64) -> fmt::Result {
    let faults = all.recoveries.len();
    if faults > 0 {
        let share = |percent| seconds(all.percentile(percent));
        writeln!(f, "| faults that were repaired under a session | {faults} |")?;
        writeln!(f, "| until output flowed again: p50, p95, p99 | {}, {}, {} |", share(50), share(95), share(99))?;
        writeln!(f, "| times that the user was told of a lost connection | {} |", all.losses)?;
        writeln!(f, "| connections that were made meanwhile | {} |", all.handshakes)?;
    }
    if let (Some(shortest), Some(longest)) = (all.messages.iter().min(), all.messages.iter().max()) {
        let (count, shortest, longest) = (all.messages.len(), size(*shortest), size(*longest));
        writeln!(f, "| messages that came back whole, of {shortest} to {longest} | {count} |")?;
        writeln!(f, "| runs that sent them | {message_runs} |")?;
    }
    let [ran, not_run, unknown] = all.requests;
    let sent = ran + not_run + unknown;
    if sent > 0 {
        let outcomes = format!("{ran} ran once, {not_run} were reported as not run, {unknown} as unknown");
        writeln!(f, "| requests sent right before a fault | {sent}: {outcomes} |")?;
    }
    writeln!(f, "| bytes that arrived, none lost or doubled | {} |", all.bytes)
}

/// Returns a length in the largest unit that leaves no rest.
fn size(bytes: u64) -> String {
    let units = [(1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{} {name}", bytes / unit))
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.1} s", duration.as_secs_f64()))
}

/// Returns what the results depend on.
fn facts() -> Result<Vec<(&'static str, String)>> {
    let mut facts = malai_e2e::facts::facts()?;
    facts.push(("hosts", "network namespaces on this machine, four rows side by side".to_owned()));
    Ok(facts)
}
