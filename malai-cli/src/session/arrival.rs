//! Waiting for a machine that is not there (`--wait`): the daemon dials it for as long as that takes. Until the request is
//! on its way nothing was started, and whoever interrupts the waiting is told so.

use std::time::Duration;

use futures_util::Stream;
use malai_protocol::failure::{Failure, Kind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::ask::ANSWER_MARGIN;
use super::connection::{Asked, Link};
use super::events::Event as Line;
use super::follow::{End, Session};
use super::loss::Sending;
use super::request::Look;

/// How long a machine is looked for before the person is told that it is waited for.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// How long the daemon may take to confirm that it has sent nothing.
const CONFIRM: Duration = Duration::from_secs(2);

/// What is known of a machine that may have to be waited for.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// Until when it is waited for; absent = not at all.
    pub(super) until: Option<Instant>,
    /// The person was told that it is waited for.
    told: bool,
    /// The waiting was ended by this signal, once the daemon confirms that nothing was sent.
    interrupted: Option<u8>,
}

impl Arrival {
    /// Waited for until then.
    pub(super) fn until(until: Option<Instant>) -> Self {
        Self { until, ..Self::default() }
    }
}

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Whether what is read from standard input is kept back: while the machine is waited for, the daemon has to notice at
    /// once when this process leaves, and reads only so far.
    pub(super) fn keeps_input(&mut self) -> bool {
        let awaited = self.arrival.until.is_some() && self.life.is_none();
        awaited && self.link.connection().is_some_and(|connection| !connection.sent)
    }

    /// How the daemon is to look for the machine, where so much time is left.
    pub(super) fn look(&self, left: Duration) -> Look {
        let waits = self.arrival.until.is_some();
        match self.arrival.told {
            true => Look { within: left, gone: None, waits },
            false if waits => Look { within: left.min(FIRST_LOOK), gone: self.patience.gone, waits },
            false => Look { within: left, gone: self.patience.gone, waits },
        }
    }

    /// The request is on its way: the waiting is over, and an answer is due as always.
    pub(super) fn arrived(&mut self) -> Result<(), Failure> {
        if self.arrival.interrupted.is_some() {
            return Err(self.interrupted_early());
        }
        if self.arrival.until.take().is_some() {
            self.patience.connect_by = Instant::now() + self.patience.reconnect;
            self.patience.answer_by = self.patience.connect_by + ANSWER_MARGIN;
        }
        Ok(())
    }

    /// The machine was not reached. True when it is waited for: nothing was sent, so that the request is sent for the first
    /// time when it comes.
    pub(super) fn waits_on(&mut self, failure: &Failure) -> Result<bool, Failure> {
        let now = Instant::now();
        let unsent = self.link.connection().is_some_and(|link| link.asked == Asked::Exec && !link.sent);
        let in_time = self.arrival.until.is_some_and(|until| now + self.patience.retry < until);
        if failure.kind != Kind::Unreachable || !in_time || !unsent || self.arrival.interrupted.is_some() {
            return Ok(false);
        }
        let again = if self.arrival.told { now + self.patience.retry } else { now };
        if !std::mem::replace(&mut self.arrival.told, true) {
            let seen = failure.seen.as_ref().map_or_else(String::new, |seen| format!(" ({seen})"));
            let text = format!("{} is not there{seen}; waiting for it to come…", self.target);
            let line = Line::Waiting { target: &self.target }.line()?;
            self.note(&text, &line);
        }
        (self.number, self.sending) = (0, Sending::default());
        self.link = Link::Down(again);
        Ok(true)
    }

    /// A signal before there is a command.
    pub(super) fn signal_early(&mut self, number: u8) -> Result<Option<End>, Failure> {
        if self.arrival.until.is_none() || self.arrival.interrupted.is_some() || self.sending.is_open() {
            return Err(self.interrupted_early());
        }
        match self.link.connection() {
            Some(connection) => connection.hang_up(),
            None => return Ok(Some(End::Left { signal: number, followed: false })),
        }
        // Whatever the daemon has sent by now, it says before it closes.
        self.arrival.interrupted = Some(number);
        self.patience.answer_by = Instant::now() + CONFIRM;
        Ok(None)
    }

    /// The daemon has closed the connection, or refused. The end, when the waiting was interrupted.
    pub(super) fn confirmed(&mut self) -> Option<End> {
        let signal = self.arrival.interrupted?;
        let sent = self.link.connection().is_some_and(|connection| connection.sent);
        (!sent).then_some(End::Left { signal, followed: false })
    }
}
