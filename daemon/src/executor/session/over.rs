//! A session that is over: its last output and its record stay until its caller has them, or does not come for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use malai_protocol::codec::{CodecError, Frame, Kind};
use malai_protocol::session::{Ack, Attached, DEFAULT_GRACE_MS, ExitRecord};

use super::super::table::{Arrival, Command, Keep};
use super::at;
use super::following::{Following, moved};
use crate::executor::Shared;
use crate::executor::session::link;

/// A goodbye is waited for as long as a caller is, and no longer than this.
const SETTLED: Duration = Duration::from_millis(DEFAULT_GRACE_MS);

/// A session that ended with a record.
pub(crate) struct Over {
    pub(crate) shared: Arc<Shared>,
    pub(crate) keep: Keep,
    pub(crate) following: Following,
    /// What an attachment is told first.
    pub(crate) attached: Attached,
    /// And last.
    pub(crate) record: ExitRecord,
    /// The current attachment was told the record.
    pub(crate) told: bool,
    /// The table may still send somebody.
    pub(crate) reachable: bool,
}

impl Over {
    /// Serves whoever follows, until nothing of it is wanted any more.
    pub(crate) async fn stay(mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let mut settled = None;
        loop {
            if self.is_done() {
                return;
            }
            self.tell();
            // Everything arrived but for the goodbye: it is waited for as a caller is.
            settled = match settled {
                _ if !self.told || !self.following.log.is_empty() => None,
                None => Some(Instant::now() + self.following.grace().min(SETTLED)),
                since => since,
            };
            tokio::select! {
                moved = moved(&mut self.following.spooled) => self.following.store(moved),
                event = self.following.link.next() => if self.event(event) {
                    return;
                },
                command = commands.recv(), if self.reachable => match command {
                    Some(command) => if self.command(command) {
                        return;
                    },
                    None => self.reachable = false,
                },
                () = at(self.following.until) => return,
                () = at(settled) => return,
            }
        }
    }

    /// Nobody follows, and nobody will.
    fn is_done(&self) -> bool {
        // What is on the disk is found there.
        let stays = self.reachable && self.following.may_return() && !self.following.is_kept();
        self.following.link.is_gone() && !stays
    }

    /// Hands over what is left of the output, and then the record.
    fn tell(&mut self) {
        let attached = &self.attached;
        self.following.fill(|out_offset| Attached { out_offset, ..attached.clone() });
        if !self.told && self.following.link.is_open() && self.following.all_handed() {
            self.following.link.control(Kind::Exit, &self.record);
            self.told = true;
        }
    }

    /// True when the follower has all it wanted.
    fn event(&mut self, event: link::Event) -> bool {
        match event {
            link::Event::Moved => {}
            link::Event::Came(who) => self.following.came(who),
            link::Event::Frame(frame) => match self.frame(&frame) {
                Ok(goodbye) => return goodbye,
                Err(error) => self.lost(&format!("it broke the protocol: {error}")),
            },
            link::Event::Lost(why) => self.lost(&why),
        }
        false
    }

    fn frame(&mut self, frame: &Frame) -> Result<bool, CodecError> {
        let wrong = |wanted| Err(CodecError::OutOfOrder { got: frame.kind, wanted });
        match frame.kind {
            Kind::Goodbye if self.told => return Ok(true),
            Kind::Ack => {
                let Ack { out_offset } = frame.decode()?;
                if !self.following.ack(out_offset) {
                    return wrong("an offset that was sent");
                }
            }
            // Sent before its sender heard of the end.
            Kind::Stdin | Kind::StdinEof | Kind::Signal | Kind::StopOutput | Kind::Goodbye => {}
            _ => return wrong("a frame of a caller's session"),
        }
        Ok(false)
    }

    /// True when the caller is gone for good.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Attach(arrival) => {
                let attached = self.attached.clone();
                let answer = |out_offset| Attached { out_offset, ..attached };
                let arrival: Arrival = *arrival;
                if self.following.attach(&self.shared, arrival, answer) {
                    self.told = false;
                }
                false
            }
            Command::CallerGone { follower, number } => self.following.is_ended_by(follower, number),
            Command::End(_) | Command::Signal(_) => false,
        }
    }

    fn lost(&mut self, why: &str) {
        tracing::debug!(why, "attachment lost after the end");
        self.told = false;
        self.following.lost();
        self.keep.unfollowed();
    }
}
