//! How much others may ask of this process: handshakes, streams, decoded bytes, and lines of its log.

pub(crate) mod budget;
pub(crate) mod handshakes;
pub(crate) mod pace;
pub(crate) mod places;
pub(crate) mod tally;
