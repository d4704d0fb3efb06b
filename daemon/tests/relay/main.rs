//! A relay, and around it clients of iroh's relay protocol and peers that bring it snapshots, well or badly.

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod hostile;
mod stage;
mod told;
