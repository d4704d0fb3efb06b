//! What malai's parts say to each other, and the rules they decide by.
//!
//! This crate is pure: no sockets, no clock, no environment, no disk, no runtime. Everything here can be read, tested
//! and fuzzed by itself.
//!
//! # Floors
//!
//! From the top. A module imports from floors below its own only, which `tests/floors.rs` checks.
//!
//! * [`access`] decides who may do what.
//! * [`plan`] is what daemon and executor say to each other.
//! * [`local`] is what CLI and daemon say to each other.
//! * [`peer`] is what two daemons say to each other; [`sessions`] asks about sessions; [`invite`] is a newcomer's token;
//!   [`target`] is what a command is aimed at; [`scan`] follows frames unread; [`audit`] is a line of the audit.
//! * [`config`] is the cluster's config; [`seal`] makes a request its author's alone; [`codec`] is the frame.
//! * [`session`] is what all hops of a session share; [`snapshot`] is the signed config; [`ticket`] lets a newcomer through
//!   a relay; [`home`] names files.
//! * [`failure`] is the error that travels; [`id`] has keys and ids; [`escape`] keeps characters from a terminal.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic, clippy::expect_used))]

pub mod access;
pub mod audit;
pub mod codec;
pub mod config;
pub mod escape;
pub mod failure;
pub mod home;
pub mod id;
pub mod invite;
pub mod local;
pub mod peer;
pub mod plan;
pub mod scan;
pub mod seal;
pub mod session;
pub mod sessions;
pub mod snapshot;
pub mod target;
pub mod ticket;
