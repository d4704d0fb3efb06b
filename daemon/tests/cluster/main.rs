//! Daemons of one cluster: who may do what, config sync, neighbouring versions, stalls, machines that do not answer.

#[path = "../support/mod.rs"]
mod support;

mod matrix;
mod neighbours;
mod stalls;
mod sync;
mod unanswered;
