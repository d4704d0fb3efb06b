//! malai's daemon and executor, as a library.
//!
//! # Layout
//! From the top; a module imports from those below it. [`Daemon`] wires everything: bind, run, shutdown. `requests` holds
//! what the CLI asks of its daemon, and [`relay`] is `malai relay`. `caller` is this machine that asks another one,
//! `target` another one that asks this machine. `clusters` serves the clusters of a home, [`admin`] changes one.
//! [`supervisor`] starts the [`executor`], which owns the commands. `net` is the network below, [`store`] keeps every
//! file, [`runtime`] has what a process needs whatever it does: its tasks, clock, log and secrets.
//!
//! # Non-goals
//! There is no second way to execution: everything goes through `target`, and through `access::decide` there.

pub mod admin;
mod caller;
mod clusters;
mod daemon;
pub mod executor;
mod net;
pub mod relay;
mod requests;
pub mod runtime;
pub mod store;
pub mod supervisor;
mod target;

pub use daemon::{Daemon, Options};
pub use net::proxy::PROXY_VARIABLES;
pub use requests::offline::{self, offline};

/// Is the version of this malai.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
