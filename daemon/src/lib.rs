//! daemon

pub mod executor;
pub mod supervisor;
