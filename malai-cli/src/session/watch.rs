//! Looking on at a session that goes on by itself: what is not kept is told, and leaving it is no end.

use std::io;
use std::time::Duration;

use futures_util::Stream;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{Attached, DEFAULT_GRACE_MS, Output};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Stage;
use super::events::Event as Line;
use super::follow::{End, Life, Session};
use super::request::Subject;
use crate::duration;

/// The signal that a program gets whose reader has left.
const PIPE: u8 = 13;

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// The session is there, and goes on at the byte that it says. Another executor may have it by now: what is kept of a
    /// session outlives the one that ran it.
    pub(super) fn watched(&mut self, attached: &Attached) -> Result<Option<End>, Failure> {
        let Some(gap) = attached.out_offset.checked_sub(self.out_offset()) else {
            return Err(self.broken("it repeats output that was written here"));
        };
        if gap > 0 {
            self.miss(gap)?;
        }
        if attached.watches && self.life.is_none() {
            self.only_watches()?;
        }
        self.acked = self.acked.max(attached.out_offset);
        let grace = Duration::from_millis(DEFAULT_GRACE_MS);
        self.life.get_or_insert(Life { incarnation: attached.incarnation, grace });
        match &attached.started {
            Some(started) if !self.told => return self.started(started),
            Some(_) => self.reached(Stage::Running),
            None => self.reached(Stage::Attached),
        }
        self.back().map(|()| None)
    }

    /// Tells the user that the target lets this machine only watch.
    fn only_watches(&mut self) -> Result<(), Failure> {
        let machine = &self.request.target.machine;
        let text = format!(
            "this only watches, until a process attaches that may do more; to take the session over, this machine has \
             to be in `allow_control` of [machine.{machine}]"
        );
        self.note(&text, &Line::Watching { target: &self.target }.line()?);
        Ok(())
    }

    /// Output that will not come, which is told unless only what is new was asked for.
    fn miss(&mut self, bytes: u64) -> Result<(), Failure> {
        let (is_first, asked) =
            (self.life.is_none(), matches!(self.request.subject, Subject::Session { from_end: true, .. }));
        self.skipped = self.skipped.saturating_add(bytes);
        if is_first && asked {
            return Ok(());
        }
        let text = if is_first {
            format!("{bytes} earlier bytes of output are not kept any more")
        } else {
            format!("{bytes} bytes of output are missing here: they are not kept any more")
        };
        self.note(&text, &Line::Missing { target: &self.target, bytes }.line()?);
        Ok(())
    }

    /// Follows no more.
    pub(super) fn leave(&mut self, signal: u8) -> End {
        self.gave_up = true;
        End::Left { signal, followed: self.life.is_some() }
    }

    /// Output cannot be written here. That is nothing to the command, which keeps its pipes.
    ///
    /// # Errors
    /// When it is more than a reader that left.
    pub(super) fn not_shown(&mut self, stream: Output, error: &io::Error) -> Result<End, Failure> {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Ok(self.leave(PIPE));
        }
        self.gave_up = true;
        let name = if stream == Output::Stdout { "output" } else { "error" };
        let message = format!("standard {name} could not be written: {error}; the command on {} goes on", self.target);
        Err(Failure::new(Kind::Internal, message))
    }

    /// The connection was lost for too long.
    pub(super) fn lost_from_view(&self) -> Failure {
        let waited =
            self.patience.lost_after.map_or_else(String::new, |span| format!(" for {}", duration::words(span)));
        let (target, why) = (&self.target, self.last_words());
        let message = format!("connection to {target} lost{waited}; whether the command ended is not known{why}");
        Failure::new(Kind::Unknown, message)
            .hint(format!("wait longer: --lost-after 1h; what runs there: malai sessions {target}"))
    }
}
