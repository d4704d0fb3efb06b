//! What every frame of the daemon and of the target does to a session.

use std::time::Duration;

use futures_util::Stream;
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{Attached, DEFAULT_GRACE_MS, Output, Sent, Started, StdinAck, Superseded};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Asked, Stage};
use super::events::Event as Line;
use super::follow::{End, Life, Session};
use super::request::Part;
use crate::{client, output};

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    pub(super) fn frame(&mut self, frame: &Frame) -> Result<Option<End>, Failure> {
        let Some((stage, asked)) = self.link.connection().map(|link| (link.stage, link.asked)) else {
            return Ok(None);
        };
        match (frame.kind, stage) {
            (FrameKind::LocalHello, Stage::Greeting) => {
                // The request is sent already, so that another version's daemon may have started it.
                client::check_greeting(frame).map_err(|failure| Failure { kind: Kind::Unknown, ..failure })?;
                self.reached(Stage::Waiting);
            }
            (FrameKind::Sent, Stage::Waiting) => self.on_its_way(self.decode(frame)?)?,
            (FrameKind::Refused, Stage::Waiting) => {
                if let Some(end) = self.confirmed() {
                    return Ok(Some(end));
                }
                self.refused(self.decode(frame)?)?;
            }
            // The target has the session, so that it knows.
            (FrameKind::Refused, Stage::Attached) => return Err(self.decode::<Failure>(frame)?),
            // Output of a session whose end nobody knows may come before that is told.
            (FrameKind::Refused, Stage::Running) if self.part == Part::Watcher => {
                return Err(self.decode::<Failure>(frame)?);
            }
            // Its command could not be ended: it did start, and how it ends nobody will know.
            (FrameKind::Refused, Stage::Running) => {
                return Err(Failure { kind: Kind::Unknown, ..self.decode(frame)? });
            }
            (FrameKind::Attached, Stage::Waiting) if asked != Asked::Exec => {
                return self.attached(&self.decode(frame)?);
            }
            // Some of the output was dropped before it came here.
            (FrameKind::Attached, Stage::Running) if self.part == Part::Watcher => {
                return self.watched(&self.decode(frame)?);
            }
            (FrameKind::Started, Stage::Waiting) if asked != Asked::Attach => {
                // Input follows a first sending at once, and a later one only now.
                if asked == Asked::Again {
                    self.input.restart().map_err(|why| self.broken(why))?;
                }
                return self.started(&self.decode(frame)?);
            }
            (FrameKind::Started, Stage::Attached) => return self.started(&self.decode(frame)?),
            (FrameKind::Superseded, Stage::Waiting | Stage::Attached | Stage::Running) => {
                let by = *self.superseded.insert(self.decode(frame)?);
                return Err(self.followed_elsewhere(by, &by.by.to_string()));
            }
            // One who looks on has sent none.
            (FrameKind::StdinAck, Stage::Attached | Stage::Running) if self.part == Part::Watcher => {}
            (FrameKind::StdinAck, Stage::Attached | Stage::Running) => {
                let ack: StdinAck = self.decode(frame)?;
                self.input.acknowledge(ack).map_err(|why| self.broken(why))?;
            }
            (FrameKind::StdinClosed, Stage::Attached | Stage::Running) => self.input.close(),
            (FrameKind::Stdout, Stage::Running) => self.output(Output::Stdout, frame)?,
            (FrameKind::Stderr, Stage::Running) => self.output(Output::Stderr, frame)?,
            (FrameKind::Exit, Stage::Running) => return Ok(Some(End::Ended(self.decode(frame)?))),
            (kind, _) => return Err(self.broken(&format!("a {kind:?} frame where none may come"))),
        }
        Ok(None)
    }

    pub(super) fn reached(&mut self, stage: Stage) {
        self.link.connection().into_iter().for_each(|connection| connection.stage = stage);
    }

    /// The daemon has a connection to the target, and the request is on it.
    fn on_its_way(&mut self, sent: Sent) -> Result<(), Failure> {
        let Some(connection) = self.link.connection() else { return Ok(()) };
        if std::mem::replace(&mut connection.sent, true) {
            return Err(self.broken("a request is sent once on a connection"));
        }
        if connection.asked == Asked::Exec {
            self.sending.met = sent.met;
        }
        if let Some(reached) = &sent.reached {
            if self.manner.verbose {
                let text = output::note(&format!("{}: {}", self.target, reached.words()));
                self.sink.push(Output::Stderr, text.into(), 0);
            }
            if self.manner.json {
                let line = Line::Reached { target: &self.target, reached }.line()?;
                self.sink.push(Output::Stdout, line, 0);
            }
        }
        self.arrived()
    }

    pub(super) fn started(&mut self, started: &Started) -> Result<Option<End>, Failure> {
        let grace = Duration::from_millis(started.grace_ms.unwrap_or(DEFAULT_GRACE_MS));
        self.life = Some(Life { incarnation: started.incarnation, grace });
        self.told = true;
        self.input.started();
        self.reached(Stage::Running);
        if self.manner.verbose {
            let Started { hostname, user, pid, .. } = started;
            let text = output::note(&format!("{} runs it on host {hostname} as {user}, pid {pid}", self.target));
            self.sink.push(Output::Stderr, text.into(), 0);
        }
        if self.manner.json {
            let line = Line::Started { target: &self.target, started }.line()?;
            self.sink.push(Output::Stdout, line, 0);
        }
        if self.part == Part::Starter {
            return Ok(Some(End::Detached(started.clone())));
        }
        self.back()?;
        self.catch_up().map(|()| None)
    }

    /// The session is there, and goes on at the byte that it says.
    fn attached(&mut self, attached: &Attached) -> Result<Option<End>, Failure> {
        if self.part == Part::Watcher {
            return self.watched(attached);
        }
        let here = self.out_offset();
        let Some(gap) = attached.out_offset.checked_sub(here) else {
            return Err(self.broken("it repeats output that was written here"));
        };
        if gap > 0 {
            self.skipped = self.skipped.saturating_add(gap);
            self.cut.get_or_insert(format!("{gap} bytes of output were not kept while the connection was lost"));
        }
        // What the target was told by the request need not be told again.
        self.acked = self.acked.max(attached.out_offset);
        // First: a command that has started has taken what was read for it, also when it closed its input by now.
        if attached.started.is_some() {
            self.input.started();
        }
        self.input.resume(attached).map_err(|why| self.broken(why))?;
        match (self.life, &attached.started) {
            (Some(life), _) if life.incarnation != attached.incarnation => Err(self.another_life()),
            (None, Some(started)) if started.incarnation != attached.incarnation => Err(self.another_life()),
            (Some(_), None) => Err(self.broken("a command that runs has not been started")),
            (None, None) => {
                self.reached(Stage::Attached);
                self.catch_up().map(|()| None)
            }
            (None, Some(started)) => self.started(started),
            (Some(_), Some(_)) => {
                self.reached(Stage::Running);
                self.back()?;
                self.catch_up().map(|()| None)
            }
        }
    }

    /// Where the output goes on that was not received yet.
    pub(super) fn out_offset(&self) -> u64 {
        self.received.iter().fold(self.skipped, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn output(&mut self, stream: Output, frame: &Frame) -> Result<(), Failure> {
        let counts = frame.payload.len() as u64;
        let received = &mut self.received[stream as usize];
        *received = received.saturating_add(counts);
        let (to, bytes) = if self.manner.json {
            (Output::Stdout, Line::output(stream, &frame.payload).line()?)
        } else {
            (stream, frame.payload.clone())
        };
        self.sink.push(to, bytes, counts);
        Ok(())
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, frame: &Frame) -> Result<T, Failure> {
        frame.decode().map_err(|e| self.broken(&e.to_string()))
    }

    /// Somebody took the session over on purpose: taking it back would never end. `machine` is the name of the machine
    /// that has it now.
    pub(super) fn followed_elsewhere(&self, by: Superseded, machine: &str) -> Failure {
        let message = format!(
            "the command on {} goes on and is followed from elsewhere now, by process {} of machine {machine}; how it \
             ends is told there",
            self.target,
            by.follower.short()
        );
        Failure::new(Kind::Unknown, message)
    }
}
