//! The CLI's end of a session: one loop over the daemon's frames, standard input, what was written out, and signals.
//!
//! The session outlives its connections to the daemon. What it has received, and the input that the target has not
//! confirmed, is here, so that a new connection goes on at the exact byte in both directions.
//!
//! Nothing in the loop blocks. Standard input and output have threads of their own ([`source`], [`sink`]), and at most
//! one frame of input waits for the socket, so that a signal or an ack never stands behind more than that.
//!
//! Besides, what is asked about sessions without following them: [`list()`], [`wait()`], [`kill()`].

mod answers;
mod arrival;
mod ask;
mod clock;
mod connection;
mod end;
mod events;
mod follow;
mod input;
mod loss;
mod name;
mod request;
mod signals;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod wait;
mod watch;

pub(crate) use ask::{ANSWER_MARGIN, Killed, kill, list};
pub(crate) use connection::{Connect, Dial};
pub(crate) use events::Event as Line;
pub(crate) use follow::{End, Manner, Parts, Patience, follow};
pub(crate) use name::{Name, Typed};
pub(crate) use request::{Request, Subject};
pub(crate) use signals::Signals;
pub(crate) use sink::Sink;
pub(crate) use source::{Begin, Source};
pub(crate) use wait::{Pace, wait};
