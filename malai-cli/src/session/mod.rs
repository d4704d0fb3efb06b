//! The CLI's end of a session: one loop over the daemon's frames, standard input, what was written out, and signals.
//!
//! The session outlives its connections to the daemon. What it has received, and the input that the target has not
//! confirmed, is here, so that a new connection goes on at the exact byte in both directions.
//!
//! [`follow()`] is the loop. It owns the parts: `connection` is the way to the target, `input` and `output` are the
//! streams, `signals` the signals for the command, `patience` says how long to wait for what. No part knows another one
//! beside it, nor the loop. [`list()`], [`kill()`] and [`wait()`] ask about sessions without following them.
//!
//! Nothing in the loop blocks. Standard input and output have threads of their own ([`InputSource`], [`OutputSink`]), and
//! at most one frame of input waits for the socket, so that a signal or an acknowledgement never stands behind more than
//! that.

mod answers;
mod ask;
mod connection;
mod end;
mod events;
mod failures;
mod follow;
mod input;
mod name;
mod output;
mod patience;
mod request;
mod signals;
mod sink;
mod socket;
mod source;
#[cfg(test)]
mod tests;
mod wait;

pub(crate) use ask::{Killed, kill, list};
pub(crate) use end::SessionEnd;
pub(crate) use events::SessionEvent;
pub(crate) use follow::{SessionParts, follow};
pub(crate) use name::{SessionName, TypedSessionName};
pub(crate) use output::OutputManner;
pub(crate) use patience::SessionLimits;
pub(crate) use request::{SessionRequest, SessionSubject};
pub(crate) use signals::SignalStream;
pub(crate) use sink::OutputSink;
pub(crate) use source::{InputBegin, InputSource};
pub(crate) use wait::{WaitLimits, wait};
