//! The CLI's end of a session: one loop over the daemon's frames, standard input, what was written out, and signals.
//!
//! Nothing in the loop blocks. Standard input and output have threads of their own ([`source`], [`sink`]), and at most
//! one frame of input waits for the socket, so that a signal or an ack never stands behind more than that.

mod events;
mod pump;
mod signals;
mod sink;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use events::Event as Line;
pub(crate) use pump::{Manner, Parts, Patience, follow};
pub(crate) use signals::Signals;
pub(crate) use sink::Sink;
pub(crate) use source::Source;
