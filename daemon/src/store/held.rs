//! Reads the config of a snapshot, and keeps the two together.

use malai_protocol::config::{Config, Problem};
use malai_protocol::failure::Failure;
use malai_protocol::snapshot::Snapshot;

/// Holds a verified snapshot, and its text as this version reads it.
#[derive(Debug)]
pub(crate) struct Held {
    /// Is the snapshot as it was signed.
    pub(crate) snapshot: Snapshot,
    /// Is the config that its text says.
    pub(crate) config: Config,
}

impl Held {
    /// Reads a verified snapshot.
    ///
    /// # Errors
    /// [`Failure`] when this version cannot read the text.
    pub(crate) fn new(snapshot: Snapshot) -> Result<Self, Failure> {
        let config = Config::read(snapshot.text()).map_err(|problems| {
            Problem::failure(&problems, "the signed config")
                .hint("a newer malai may be needed: compare `malai --version` with the cluster manager's")
        })?;
        Ok(Self { snapshot, config })
    }

    /// Returns the generation of the snapshot.
    pub(crate) fn generation(&self) -> u64 {
        self.snapshot.header().generation
    }
}
