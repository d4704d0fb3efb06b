//! The fault table: a command goes on while networks, laptops and daemons fail, loses no byte, runs once, and its result
//! is its own.
//!
//! # Layout
//!
//! * [`lines`] is what the driver on the target writes, and the check of what arrives; [`traffic`] is a session with it.
//! * [`stage`] is a caller, a target, and the network between them.
//! * The rows: partitions, roaming, relays, weather, daemons, machines, leaving, requests, messages. [`rows`] lists them.
//! * [`soak`] goes on for hours.
//!
//! # Goals
//!
//! A row shows that its fault was one (nothing came through a partition), and tells all that is not as it must be, not
//! only the first thing.

mod daemons;
mod leaving;
pub mod lines;
mod machines;
mod messages;
mod partitions;
mod relays;
mod requests;
mod roaming;
pub mod soak;
pub mod stage;
pub mod traffic;
mod tree;
mod weather;

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

/// How long faults last, and how often they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Partitions up to 40 s: for every change.
    Short,
    /// As the table says.
    Full,
}

impl Scale {
    /// The one or the other.
    #[must_use]
    pub fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

/// A row of the table.
pub struct Row {
    /// What must hold.
    pub name: String,
    play: Box<dyn Fn() -> Result<Evidence> + Send + Sync>,
}

/// What a row showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// For each fault: the longest time in which nothing flowed after its repair.
    pub recoveries: Vec<Duration>,
    /// How often the caller said that the connection was lost.
    pub losses: u64,
    /// Bytes of output that arrived.
    pub bytes: u64,
    /// Requests that were cut: those that ran, those reported not run, those reported unknown.
    pub requests: [u64; 3],
    /// The length of each message that went there and came back whole.
    pub messages: Vec<u64>,
    /// Connections that were made.
    pub handshakes: u64,
}

impl Evidence {
    /// Adds what another row, or round, showed.
    pub fn add(&mut self, other: &Self) {
        self.recoveries.extend(&other.recoveries);
        self.losses += other.losses;
        self.bytes += other.bytes;
        self.messages.extend(&other.messages);
        self.handshakes += other.handshakes;
        for (all, more) in self.requests.iter_mut().zip(other.requests) {
            *all += more;
        }
    }

    /// The recovery that this share of all recoveries, in percent, does not exceed; `None` when there was none.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.recoveries.clone();
        sorted.sort();
        let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(place).copied()
    }
}

impl Row {
    fn new(name: impl Into<String>, play: impl Fn() -> Result<Evidence> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), play: Box::new(play) }
    }

    /// Builds a lab, has the fault happen, and checks what must hold.
    ///
    /// # Errors
    /// With everything that does not.
    pub fn play(&self) -> Result<Evidence> {
        (self.play)()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The whole table; the rows that take longest come first.
#[must_use]
pub fn rows(scale: Scale) -> Vec<Row> {
    let mut rows = requests::rows(scale);
    for more in [
        partitions::rows(scale),
        weather::rows(scale),
        daemons::rows(scale),
        machines::rows(scale),
        relays::rows(scale),
        roaming::rows(scale),
        leaving::rows(scale),
        messages::rows(scale),
    ] {
        rows.extend(more);
    }
    rows
}

/// Everything that is not as it must be.
#[derive(Debug, Default)]
struct Problems {
    found: Vec<String>,
}

impl Problems {
    fn note(&mut self, found: Result<()>) {
        if let Err(error) = found {
            self.found.push(format!("{error:#}"));
        }
    }

    fn ensure(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.found.push(problem());
        }
    }

    fn result(self) -> Result<()> {
        if !self.found.is_empty() {
            bail!("{}", self.found.join("\n"));
        }
        Ok(())
    }
}
