//! The processes of a session: as whom and how a command starts, how its end is noticed, and how its whole tree is ended.

pub(crate) mod command;
pub(crate) mod env;
pub(crate) mod lookups;
pub(crate) mod reap;
pub(crate) mod spawn;
pub(crate) mod tree;
pub(crate) mod user;
pub(crate) mod users;
