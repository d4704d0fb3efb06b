//! What came of it, as a document: facts of the machine, sums, a line for each row.

use std::fmt;
use std::time::Duration;

use anyhow::{Error, Result};
use malai_e2e::survival::Evidence;

/// All that was played.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Vec<(&'static str, String)>,
    rows: Vec<Row>,
    all: Evidence,
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
    /// Nothing was played yet.
    pub(crate) fn new(times: usize) -> Result<Self> {
        let mut facts = facts()?;
        facts.push(("each row", format!("{times} times")));
        Ok(Self { facts, rows: Vec::new(), all: Evidence::default(), soak: None })
    }

    /// Adds a row that is going to be played.
    pub(crate) fn row(&mut self, name: &str) {
        self.rows.push(Row { name: name.to_owned(), held: 0, failures: Vec::new(), evidence: Evidence::default() });
    }

    /// Notes what came of a row.
    pub(crate) fn played(&mut self, name: &str, played: Result<Evidence>) {
        let Some(row) = self.rows.iter_mut().find(|row| row.name == name) else { return };
        match played {
            Ok(evidence) => {
                row.held += 1;
                row.evidence.add(&evidence);
                self.all.add(&evidence);
            }
            Err(error) => row.failures.push(format!("{error:#}")),
        }
    }

    /// Notes what came of the soak.
    pub(crate) fn soak(&mut self, hours: f64, rounds: u64, evidence: Evidence, failure: Option<Error>) {
        self.all.add(&evidence);
        self.soak = Some(Soak { hours, rounds, evidence, failure: failure.map(|error| format!("{error:#}")) });
    }

    /// Whether everything held, and something was played at all.
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
        writeln!(f, "# Reliability\n\nWritten by `scripts/stress`, which plays the fault table anew; do not edit.\n")?;
        writeln!(f, "| | |\n|---|---|")?;
        for (name, value) in &self.facts {
            writeln!(f, "| {name} | {value} |")?;
        }
        sums(f, &self.all)?;
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
            sums(f, evidence)?;
        }
        for (name, failure) in self.failures() {
            writeln!(f, "\n## Failed: {}\n\n```\n{failure}\n```", name.replace('_', " "))?;
        }
        Ok(())
    }
}

fn sums(f: &mut fmt::Formatter<'_>, all: &Evidence) -> fmt::Result {
    let [ran, not_run, unknown] = all.requests;
    let share = |percent| seconds(all.percentile(percent));
    writeln!(f, "| handshakes | {} |", all.handshakes)?;
    writeln!(f, "| reconnects that were told to the user | {} |", all.losses)?;
    writeln!(f, "| bytes that arrived, none lost or doubled | {} |", all.bytes)?;
    writeln!(f, "| messages of 1 B to 64 MiB, there and back | {} |", all.messages)?;
    writeln!(f, "| requests cut: ran once, said not to have run, unknown | {ran}, {not_run}, {unknown} |")?;
    writeln!(f, "| repairs of a fault | {} |", all.recoveries.len())?;
    writeln!(f, "| recovery p50, p95, p99 | {}, {}, {} |", share(50), share(95), share(99))
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.1} s", duration.as_secs_f64()))
}

/// What the figures depend on.
fn facts() -> Result<Vec<(&'static str, String)>> {
    let mut facts = malai_e2e::facts::facts()?;
    facts.push(("hosts", "network namespaces on this machine, four rows side by side".to_owned()));
    Ok(facts)
}
