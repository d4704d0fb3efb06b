//! Writes the figures as a document: facts of the machine, then a table for each measurement.

use std::fmt;
use std::fs;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use malai_e2e::facts;

/// Collects the figures.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Vec<(&'static str, String)>,
    sections: Vec<Section>,
}

/// Holds the figures of one measurement.
#[derive(Debug)]
struct Section {
    title: &'static str,
    how: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    bar: Option<(String, bool)>,
}

impl Report {
    /// Makes a report without figures.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { facts: facts()?, sections: Vec::new() })
    }

    /// Says on standard error what is being measured.
    pub(crate) fn progress(&self, what: &str) {
        // When standard error is closed, nobody reads it.
        drop(writeln!(std::io::stderr(), "measuring: {what}"));
    }

    /// Begins a measurement, and says how it is done.
    pub(crate) fn section(&mut self, title: &'static str, how: impl Into<String>) {
        self.sections.push(Section { title, how: how.into(), rows: Vec::new() });
    }

    /// Adds a figure without a bar.
    pub(crate) fn figure(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        self.row(what.into(), measured.into(), None);
    }

    /// Adds a figure with its bar, and whether that is met.
    pub(crate) fn barred(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        bar: impl Into<String>,
        met: bool,
    ) {
        self.row(what.into(), measured.into(), Some((bar.into(), met)));
    }

    fn row(&mut self, what: String, measured: String, bar: Option<(String, bool)>) {
        self.progress(&format!("{what}: {measured}{}", bar.as_ref().map_or("", |(_, met)| verdict(*met))));
        if let Some(section) = self.sections.last_mut() {
            section.rows.push(Row { what, measured, bar });
        }
    }

    /// Returns whether every bar is met.
    pub(crate) fn all_met(&self) -> bool {
        self.rows().all(|row| row.bar.as_ref().is_none_or(|(_, met)| *met))
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|section| &section.rows)
    }
}

fn verdict(met: bool) -> &'static str {
    if met { " (pass)" } else { " (FAIL)" }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Figures\n\nWritten by `scripts/figures`, which measures all of them; do not edit.\n")?;
        writeln!(f, "| | |\n|---|---|")?;
        for (name, value) in &self.facts {
            writeln!(f, "| {name} | {value} |")?;
        }
        let bars: Vec<bool> = self.rows().filter_map(|row| row.bar.as_ref()).map(|(_, met)| *met).collect();
        let met = bars.iter().filter(|met| **met).count();
        writeln!(f, "| figures | {} |", self.rows().count())?;
        if !bars.is_empty() {
            writeln!(f, "| bars that are met | {met} of {} |", bars.len())?;
        }
        for Section { title, how, rows } in &self.sections {
            writeln!(f, "\n## {title}\n\n{how}\n\n| what | measured | bar | |\n|---|---|---|---|")?;
            for Row { what, measured, bar } in rows {
                let (bar, met) = bar.as_ref().map_or(("", ""), |(bar, met)| (bar, verdict(*met)));
                writeln!(f, "| {what} | {measured} | {bar} | {} |", met.trim_matches([' ', '(', ')']))?;
            }
        }
        Ok(())
    }
}

/// Returns what the figures depend on.
fn facts() -> Result<Vec<(&'static str, String)>> {
    let cpu = line_of("/proc/cpuinfo", "model name")?;
    let memory = line_of("/proc/meminfo", "MemTotal")?;
    let system = line_of("/etc/os-release", "PRETTY_NAME")?;
    let mut facts = facts::facts()?;
    facts.extend([
        ("processor", cpu),
        ("memory", memory),
        ("system", format!("{}, Linux {}", system.trim_matches('"'), facts::said_by(&["uname", "-r"])?)),
        ("hosts", "network namespaces on this machine, so that all hosts share its processors".to_owned()),
    ]);
    Ok(facts)
}

fn line_of(file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {file}"))?;
    Ok(line.trim_start_matches([' ', '\t', ':', '=']).trim().to_owned())
}
