//! daemon

pub mod admin;
pub mod audit;
pub mod clock;
pub mod manager;
pub mod offline;
pub mod store;
