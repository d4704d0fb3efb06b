//! What commands write: kept until it is acknowledged, on the disk for detached sessions, and read from there.

pub(crate) mod log;
pub(crate) mod replay;
pub(crate) mod spool;
