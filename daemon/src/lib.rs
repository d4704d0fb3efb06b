//! malai's daemon and executor, as a library.
//!
//! # Layout
//! [`Daemon`] wires everything: bind, run, shutdown. `membership` is one joined cluster; `net` the network below it;
//! `machine` the target's side of a session and `outbound` the caller's; `local` the CLI's socket, `requests` what is
//! asked there; `join` how newcomers become machines; [`manager`] signs, [`store`] keeps, [`mod@audit`] records,
//! [`logging`] logs. [`supervisor`] starts the [`executor`], which owns the commands; [`duty`] begins a task again that
//! panicked.
//!
//! # Non-goals
//! There is no second way to execution: everything goes through `machine`, and through `access::decide` there.

pub mod admin;
pub mod audit;
mod backoff;
pub mod clock;
mod clusters;
mod connect;
mod copy;
mod daemon;
mod doctor;
pub mod duty;
mod ended;
pub mod executor;
mod join;
mod local;
pub mod logging;
mod machine;
pub mod manager;
mod membership;
mod metrics;
mod net;
pub mod offline;
mod outbound;
mod ping;
mod program;
pub mod relay;
mod requests;
mod resolve;
pub mod secrecy;
mod shared;
mod spread;
mod status;
pub mod store;
pub mod supervisor;
mod takeover;
mod trim;

pub use daemon::{Daemon, Options};
pub use net::proxy::PROXY_VARIABLES;
pub use offline::offline;

/// The version of this malai.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
