//! Daemons of one cluster: who may do what, callers that go and come back, config sync, neighbouring versions, stalls,
//! machines that do not answer, pings, variables of callers, and the answers to `malai doctor`.

#[path = "../support/pipes.rs"]
mod pipes;
#[path = "../support/mod.rs"]
mod support;

mod attend;
mod callers;
mod disk;
mod doctor;
mod greetings;
mod joins;
mod matrix;
mod named;
mod neighbours;
mod ping;
mod resume;
mod sessions;
mod stalls;
mod sync;
mod twins;
mod unanswered;
mod variables;
