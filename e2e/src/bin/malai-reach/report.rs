//! Writes the results as a document: facts of the machine, the matrix, a table for each other row.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use malai_e2e::reach::{KINDS, Trip, Way};

/// Collects the results of the rows.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Vec<(&'static str, String)>,
    times: usize,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    held: usize,
    failures: Vec<String>,
    pairs: Vec<Pair>,
}

/// Holds all trips from one machine to another.
#[derive(Debug)]
struct Pair {
    from: String,
    to: String,
    firsts: Vec<Duration>,
    directs: Vec<Duration>,
    relayed: bool,
}

impl Report {
    /// Makes a report in which each row will be played this many times.
    pub(crate) fn new(times: usize) -> Result<Self> {
        Ok(Self { facts: facts()?, times, rows: Vec::new() })
    }

    /// Notes the result of one run of a row.
    pub(crate) fn played(&mut self, name: &str, played: Result<Vec<Trip>>) {
        if self.rows.last().is_none_or(|row| row.name != name) {
            let (name, failures, pairs) = (name.to_owned(), Vec::new(), Vec::new());
            self.rows.push(Row { name, held: 0, failures, pairs });
        }
        let Some(row) = self.rows.last_mut() else { return };
        match played {
            Ok(trips) => {
                row.held += 1;
                trips.iter().for_each(|trip| row.add(trip));
            }
            Err(error) => row.failures.push(format!("{error:#}")),
        }
    }

    /// Returns whether every run held, and at least one was played.
    pub(crate) fn all_held(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.failures.is_empty() && row.held > 0)
    }
}

impl Row {
    fn add(&mut self, trip: &Trip) {
        let Trip { from, to, first, way } = trip;
        if !self.pairs.iter().any(|pair| pair.from == *from && pair.to == *to) {
            let (from, to) = (from.clone(), to.clone());
            self.pairs.push(Pair { from, to, firsts: Vec::new(), directs: Vec::new(), relayed: false });
        }
        let Some(pair) = self.pairs.iter_mut().find(|pair| pair.from == *from && pair.to == *to) else { return };
        pair.firsts.push(*first);
        match way {
            Way::Direct(after) => pair.directs.push(*after),
            Way::Relayed => pair.relayed = true,
            Way::Unknown => {}
        }
    }

    /// Returns whether it is a row of the matrix.
    fn is_of_matrix(&self) -> bool {
        let is_kind = |name: &str| KINDS.iter().any(|(kind, _)| *kind == name);
        self.pairs.iter().any(|pair| is_kind(&pair.from) && is_kind(&pair.to))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Reach\n\nWritten by `scripts/reach`, which plays the whole table of networks; do not edit.\n")?;
        writeln!(
            f,
            "The hosts are in network namespaces, with a relay and a DNS server of the cluster's own. By the kernel's \
             count, no packet\ngoes to an address outside the cluster. Times begin when the client starts on the caller. \
             They end at the first output of\n`hostname`, and when a ping, ten a second, is first answered without a relay.\n"
        )?;
        writeln!(f, "| | |\n|---|---|")?;
        for (name, value) in &self.facts {
            writeln!(f, "| {name} | {value} |")?;
        }
        sums(f, self)?;
        writeln!(f, "\n## Rows\n\n| what must hold | held | failed |\n|---|---|---|")?;
        for Row { name, held, failures, .. } in &self.rows {
            writeln!(f, "| {} | {held} | {} |", name.replace('_', " "), failures.len())?;
        }
        matrix(f, &self.rows)?;
        for row in self.rows.iter().filter(|row| !row.is_of_matrix() && !row.pairs.is_empty()) {
            other(f, row)?;
        }
        for row in &self.rows {
            for failure in &row.failures {
                writeln!(f, "\n## Failed: {}\n\n```\n{failure}\n```", row.name.replace('_', " "))?;
            }
        }
        Ok(())
    }
}

/// Writes how much was played and how much of it held.
fn sums(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Report { times, rows, .. } = report;
    let held: usize = rows.iter().map(|row| row.held).sum();
    let (count, runs) = (rows.len(), rows.len() * times);
    let pairs: Vec<&Pair> = rows.iter().flat_map(|row| &row.pairs).collect();
    let commands: usize = pairs.iter().map(|pair| pair.firsts.len()).sum();
    let direct: usize = pairs.iter().map(|pair| pair.directs.len()).sum();
    writeln!(f, "| rows, times each was played, one after the other | {count}, {times} |")?;
    writeln!(f, "| runs that held | {held} of {runs} |")?;
    writeln!(f, "| pairs of caller and target, first commands between them | {}, {commands} |", pairs.len())?;
    writeln!(f, "| of these, with a direct path soon after | {direct} |")
}

/// Writes the matrix: callers down, targets across.
fn matrix(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    if !rows.iter().any(Row::is_of_matrix) {
        return Ok(());
    }
    writeln!(
        f,
        "\n## Address translation\n\nEach row is a caller, each column a target. The two have a round trip of 40 ms, and have \
         not talked before. A cell has the\ntime to the first output, then the path. Each time is the median.\n"
    )?;
    let kinds = KINDS.map(|(kind, _)| kind);
    writeln!(f, "| | {} |\n|---|---|---|---|---|---|", kinds.join(" | "))?;
    for from in kinds {
        write!(f, "| **{from}** |")?;
        for to in kinds {
            let mut pairs = rows.iter().flat_map(|row| &row.pairs);
            let cell = pairs.find(|pair| pair.from == from && pair.to == to).map_or_else(String::new, Pair::cell);
            write!(f, " {cell} |")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn other(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let title = row.name.replace('_', " ");
    writeln!(
        f,
        "\n## {title}\n\n| caller | target | samples | first output: median, max | direct path: median, max |"
    )?;
    writeln!(f, "|---|---|---|---|---|")?;
    for pair in &row.pairs {
        let Pair { from, to, firsts, directs, .. } = pair;
        let direct = if directs.is_empty() { "-".to_owned() } else { span(directs, 1) };
        writeln!(f, "| {from} | {to} | {} | {} | {direct} |", firsts.len(), span(firsts, 2))?;
    }
    Ok(())
}

impl Pair {
    fn cell(&self) -> String {
        let first = seconds(middle(&self.firsts), 2);
        if self.relayed {
            return format!("{first}, relay");
        }
        format!("{first}, direct after {}", seconds(middle(&self.directs), 1))
    }
}

fn middle(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

fn span(times: &[Duration], digits: usize) -> String {
    format!("{}, {}", seconds(middle(times), digits), seconds(times.iter().max().copied(), digits))
}

fn seconds(time: Option<Duration>, digits: usize) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.digits$} s", time.as_secs_f64()))
}

/// Returns what the results depend on.
fn facts() -> Result<Vec<(&'static str, String)>> {
    let mut facts = malai_e2e::facts::facts()?;
    let build = if cfg!(debug_assertions) { "debug: a release build is faster" } else { "release" };
    facts.push(("build", build.to_owned()));
    Ok(facts)
}
