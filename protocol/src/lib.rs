//! What malai's parts say to each other, and the rules they decide by.
//!
//! This crate is pure: no sockets, no clock, no environment, no disk, no runtime. Everything here can be read, tested
//! and fuzzed by itself.
//!
//! # Layout [`id`] keys and ids; [`codec`] the frame, [`scan`] following it unread; [`session`] what all hops of a
//! session share; [`sessions`] asking about them; [`seal`] what makes a request its author's alone; [`peer`] daemon to daemon; [`local`] CLI to daemon; [`plan`] daemon
//! to executor; [`failure`] the error that travels; [`config`] the cluster config; [`access`] who may do what;
//! [`snapshot`] the signed config; [`target`] what a command is aimed at; [`invite`] the token; [`ticket`] what lets a
//! newcomer through a relay; [`audit`] a line of the audit; [`escape`] which characters must not reach a terminal;
//! [`home`] file names.

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
