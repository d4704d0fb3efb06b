//! A lab of hosts in network namespaces, and what end-to-end tests need to cross it.
//!
//! # Layout
//!
//! * [`lab`] builds a topology: segments, wires, routers, hosts. A test reads as prose.
//! * [`cluster`] uses malai on such hosts: a cluster, its config, its machines.
//! * [`survival`] is the fault table: what must hold for a command while networks and processes fail under it.
//! * [`reach`] is the table of networks: from which machine which other is reached, how soon, and by which way.
//! * [`harness`] runs a list of trials, or says why this machine cannot run them.
//! * [`facts`] is what figures depend on, for the head of a page of them.
//! * [`program`] is the frame of the programs that serve on such hosts.
//!
//! # Goals
//!
//! A host of the lab has its own hostname, process table, files, users, addresses and control groups, so that a command
//! that claims to have run on another machine can be caught lying. Everything disappears with the value that made it,
//! after a panic too.
//!
//! # Non-goals
//!
//! This is no sandbox: a host's root is this machine's root. Only IPv4 is routed, translated and
//! counted; IPv6 goes from host to host on one segment.

pub mod cluster;
pub mod facts;
pub mod harness;
pub mod lab;
pub mod program;
pub mod reach;
pub mod survival;
mod toml;
