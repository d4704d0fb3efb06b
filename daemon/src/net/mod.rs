//! The network below malai: endpoints, connections to peers, and the streams on them.

mod codes;
mod congestion;
pub(crate) mod copy;
pub(crate) mod counters;
pub(crate) mod endpoint;
pub(crate) mod finding;
mod frames;
mod greeting;
pub(crate) mod limits;
mod ping;
pub(crate) mod place;
pub(crate) mod pool;
pub(crate) mod proxy;
pub(crate) mod pull;
pub(crate) mod relays;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod trust;

pub(crate) use codes::{abandon, close, closed_with, code, is_caller_gone};
pub(crate) use endpoint::{endpoint_id, machine_id};
pub(crate) use frames::{FIRST_FRAME_TIMEOUT, FrameError, Frames, is_protocol_error, send};
pub(crate) use greeting::{Unsupported, bare_hello, greeting, spoken};
pub(crate) use ping::{ping, round_trip};
