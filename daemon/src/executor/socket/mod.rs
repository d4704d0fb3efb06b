//! The executor's socket: who connects, what the daemon says there, and what it asks.

pub(crate) mod ask;
pub(crate) mod control;
pub(crate) mod presence;
pub(crate) mod serve;
