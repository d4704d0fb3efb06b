//! daemon

pub mod admin;
pub mod audit;
pub mod clock;
pub mod manager;
mod offline;
pub mod store;

pub use offline::offline;
