//! What a process of malai needs whatever it does: tasks that outlive a panic, pauses, a clock, a log, alarms, secrets
//! that stay in its memory, and work beside the event loop.

pub(crate) mod alarms;
pub(crate) mod backoff;
pub(crate) mod blocking;
pub mod clock;
pub mod duty;
pub mod logging;
pub(crate) mod platform;
pub(crate) mod program;
pub mod random;
pub mod secrecy;
pub(crate) mod user;
