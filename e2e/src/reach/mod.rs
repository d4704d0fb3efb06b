//! The table of networks: from which machine which other is reached, how soon, and by which way.
//!
//! # Layout
//!
//! * [`world`] is a cluster on an internet of its own: relay, DNS server, manager, and sites behind routers.
//! * [`trip`] is one command from one machine on another, timed, and the way that it takes.
//! * The rows: the matrix of address translations, places (carriers, one LAN, IPv6), regions, starts. [`rows`] lists them.
//!
//! # Goals
//!
//! A row shows that the command ran on the other machine, and by which way: a direct one leads to an address of that
//! machine, and where no direct one can exist, the relay's stays.

mod matrix;
mod places;
mod regions;
mod starts;
pub mod trip;
pub mod world;

use std::fmt;

use anyhow::Result;

pub use matrix::KINDS;
pub use trip::{Trip, Way};

/// A row of the table.
pub struct Row {
    /// What must hold.
    pub name: String,
    play: Box<dyn Fn() -> Result<Vec<Trip>> + Send + Sync>,
}

impl Row {
    fn new(name: impl Into<String>, play: impl Fn() -> Result<Vec<Trip>> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), play: Box::new(play) }
    }

    /// Builds a lab, makes the trips, and checks what must hold of them.
    ///
    /// # Errors
    /// With what does not.
    pub fn play(&self) -> Result<Vec<Trip>> {
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
pub fn rows() -> Vec<Row> {
    let mut rows = matrix::rows();
    for more in [regions::rows(), places::rows(), starts::rows()] {
        rows.extend(more);
    }
    rows
}
