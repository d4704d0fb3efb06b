//! The loop of one session, and what signals, input and written output do to it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use malai_protocol::codec::{Frame, Kind as FrameKind, MAX_DATA};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{Ack, ExitRecord, Output, Signal, Started, StopOutput, Superseded};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::arrival::Arrival;
use super::connection::{Connect, Link, Moment};
use super::end::note_broken;
use super::input::Input;
use super::loss::{Loss, Sending};
use super::request::{Part, Request};
use super::signals::{HUP, Heard, INT, TERM};
use super::sink::{Event as Written, Sink};
use super::source::Source;

/// Written output is acknowledged after so many bytes, or when nothing waits to be written.
const ACK_EVERY: u64 = 32 * 1024;
/// How many signals are kept for a command that cannot be told of them now, or may not have heard of them.
const MAX_PENDING: usize = 16;

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until when the daemon has to have reached the target.
    pub(crate) connect_by: Instant,
    /// Until when the target has to answer.
    pub(crate) answer_by: Instant,
    /// How long one try to reach the target again may take.
    pub(crate) reconnect: Duration,
    /// Between the beginnings of two such tries.
    pub(crate) retry: Duration,
    /// A loss that lasts longer is told.
    pub(crate) say_after: Duration,
    /// How long a loss may last; absent = as long as the target waits.
    pub(crate) lost_after: Option<Duration>,
    /// What HUP or TERM may take to end the command, and what the loss of a command may that ends with its connection.
    pub(crate) ending: Duration,
    /// Between two INT that mean it.
    pub(crate) second_int: Duration,
    /// Between two signals of one kind that are the same: `timeout` and a terminal that closes send each of them twice.
    pub(crate) same_signal: Duration,
    /// How long at most a machine is dialled that is known to have gone; absent = as long as any.
    pub(crate) gone: Option<Duration>,
    /// Until when a machine is waited for that is not there; absent = not at all.
    pub(crate) wait_until: Option<Instant>,
}

/// How a session shows itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Objects, one a line, instead of the streams.
    pub(crate) json: bool,
    /// Say where it runs.
    pub(crate) verbose: bool,
}

/// What a session is made of.
pub(crate) struct Parts<S, G> {
    /// Makes connections to the daemon.
    pub(crate) connect: Connect<S>,
    /// What is asked for on them.
    pub(crate) request: Request,
    /// Numbers of signals for the command.
    pub(crate) signals: G,
    /// Standard input; absent when none is sent.
    pub(crate) source: Option<Source>,
    /// Standard output and error.
    pub(crate) sink: Sink,
    /// How it shows itself.
    pub(crate) manner: Manner,
    /// How long it waits.
    pub(crate) patience: Patience,
}

/// How following ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With the session: its record, all of whose output has been written.
    Ended(ExitRecord),
    /// The command runs, and is left to itself as it was asked for.
    Detached(Started),
    /// This process follows no more, by this signal; the command goes on.
    Left {
        /// The signal's number.
        signal: u8,
        /// The session was followed before.
        followed: bool,
    },
}

/// Follows a session to its end, over as many connections as it takes, or until there is no more to be done here.
///
/// # Errors
/// Why there is no result: refused, lost, given up, or with output missing.
pub(crate) async fn follow<S, G>(parts: Parts<S, G>) -> Result<End, Failure>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    let mut session = Session {
        link: Link::Down(Instant::now()),
        connect: parts.connect,
        target: parts.request.target.to_string(),
        part: parts.request.part(),
        request: parts.request,
        number: 0,
        sending: Sending::default(),
        life: None,
        told: false,
        loss: None,
        retried: None,
        first_dial: None,
        signals: parts.signals,
        pending: VecDeque::new(),
        signalled: 0,
        input: Input::new(parts.source),
        sink: parts.sink,
        manner: parts.manner,
        arrival: Arrival::until(parts.patience.wait_until),
        patience: parts.patience,
        received: [0; 2],
        skipped: 0,
        acked: 0,
        stopped: [false; 2],
        last_int: None,
        heard: Heard::new(parts.patience.same_signal),
        give_up_at: None,
        gave_up: false,
        cut: None,
        superseded: None,
    };
    let outcome = session.run().await;
    session.finish(outcome).await
}

/// The command that was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    /// The life of the executor that has it.
    pub(super) incarnation: Incarnation,
    /// How long the target waits for its caller.
    pub(super) grace: Duration,
}

/// All that outlives a connection.
pub(super) struct Session<S, G> {
    pub(super) link: Link<S>,
    pub(super) connect: Connect<S>,
    pub(super) request: Request,
    /// The target, for people.
    pub(super) target: String,
    pub(super) part: Part,
    /// Attachments that were asked for.
    pub(super) number: u32,
    /// What is known of the request until it is answered.
    pub(super) sending: Sending,
    /// The command that runs; absent until the target says so.
    pub(super) life: Option<Life>,
    /// It was shown that the command runs.
    pub(super) told: bool,
    /// The attachment is lost.
    pub(super) loss: Option<Loss>,
    /// When an attachment was last tried again.
    pub(super) retried: Option<Instant>,
    /// Since when the daemon is dialled that nothing was asked of yet.
    pub(super) first_dial: Option<Instant>,
    pub(super) signals: G,
    /// The last signals for the command: those that were told are told again after a loss.
    pub(super) pending: VecDeque<Signal>,
    /// How many there were.
    pub(super) signalled: u32,
    pub(super) input: Input,
    pub(super) sink: Sink,
    pub(super) manner: Manner,
    /// Whether the machine is waited for.
    pub(super) arrival: Arrival,
    pub(super) patience: Patience,
    /// Bytes of standard output and of standard error.
    pub(super) received: [u64; 2],
    /// Bytes of output that the target did not keep.
    pub(super) skipped: u64,
    /// The target knows that output up to here arrived.
    pub(super) acked: u64,
    /// Output streams whose reader is gone.
    pub(super) stopped: [bool; 2],
    pub(super) last_int: Option<Instant>,
    /// Which signals came lately.
    pub(super) heard: Heard,
    pub(super) give_up_at: Option<Instant>,
    pub(super) gave_up: bool,
    /// What was lost of the session, in words.
    pub(super) cut: Option<String>,
    /// Another attachment follows the session now.
    pub(super) superseded: Option<Superseded>,
}

enum Event<S> {
    Signal(u8),
    Written(Option<Written>),
    Link(Moment<S>),
    Input(io::Result<bytes::Bytes>),
    Say,
    Deadline,
}

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Until the exit record, or the reason why none will come or is waited for.
    async fn run(&mut self) -> Result<End, Failure> {
        loop {
            self.feed();
            self.acknowledge()?;
            let end = match self.next().await {
                Event::Signal(number) => self.signal(number),
                Event::Written(event) => self.written(event),
                Event::Input(chunk) => {
                    if let Err(e) = self.input.take(chunk) {
                        let why = format!("standard input could not be read, and the command saw it end early: {e}");
                        self.cut = Some(why);
                    }
                    Ok(None)
                }
                Event::Link(moment) => self.linked(moment),
                Event::Say => self.say().map(|()| None),
                Event::Deadline => Err(self.late()),
            };
            if let Some(end) = end? {
                return Ok(end);
            }
        }
    }

    /// In no fixed order: a command that never stops writing must not keep its own input waiting.
    async fn next(&mut self) -> Event<S> {
        let (deadline, say_at, has_room) = (self.deadline(), self.say_at(), self.sink.has_room());
        tokio::select! {
            Some(number) = self.signals.next() => Event::Signal(number),
            event = self.sink.next() => Event::Written(event),
            moment = self.link.next(has_room) => Event::Link(moment),
            chunk = self.input.read() => Event::Input(chunk),
            () = until(say_at) => Event::Say,
            () = until(deadline) => Event::Deadline,
        }
    }

    fn linked(&mut self, moment: Moment<S>) -> Result<Option<End>, Failure> {
        match moment {
            Moment::Due => self.dial(),
            Moment::Dialled(Ok(stream)) => {
                self.dialled();
                self.ask(stream)?;
            }
            Moment::Dialled(Err(failure)) => self.not_dialled(failure)?,
            Moment::HungUp => {}
            Moment::Sent(sent) => self.link.connection().into_iter().for_each(|link| link.sent(&sent)),
            Moment::Frame(Some(Ok(frame))) => return self.frame(&frame),
            Moment::Frame(None) => return self.cut_off(),
            Moment::Frame(Some(Err(e))) if super::connection::is_loss(&e) => return self.cut_off(),
            Moment::Frame(Some(Err(e))) => return Err(self.broken(&e.to_string())),
        }
        Ok(None)
    }

    fn cut_off(&mut self) -> Result<Option<End>, Failure> {
        let end = self.confirmed();
        if end.is_none() {
            self.lose(None);
        }
        Ok(end)
    }

    /// At most one frame of input waits for the socket: a signal never stands behind more.
    fn feed(&mut self) {
        if self.keeps_input() {
            return;
        }
        let Some(connection) = self.link.connection().filter(|connection| connection.takes_input()) else { return };
        while connection.waiting() < MAX_DATA {
            match self.input.frame() {
                Some(frame) => connection.queue(&frame),
                None => return self.input.ask(),
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), Failure> {
        let written = self.sink.written().saturating_add(self.skipped);
        let due = written.saturating_sub(self.acked);
        if self.is_followed() && (due >= ACK_EVERY || (due > 0 && self.sink.is_idle())) {
            self.acked = written;
            self.tell(FrameKind::Ack, &Ack { out_offset: written })?;
        }
        Ok(())
    }

    /// Whether frames reach the target now.
    pub(super) fn is_followed(&mut self) -> bool {
        self.link.connection().is_some_and(|connection| connection.is_answered())
    }

    pub(super) fn tell<T: Serialize>(&mut self, kind: FrameKind, value: &T) -> Result<(), Failure> {
        let frame = Frame::control(kind, value).map_err(|e| self.broken(&e.to_string()))?;
        self.link.connection().into_iter().for_each(|connection| connection.queue(&frame));
        Ok(())
    }

    /// INT, TERM, HUP and QUIT go to the command, later if it cannot be told now. Before it runs there is nobody to send
    /// them to, and when it does not heed them the caller leaves: the daemon sees the socket close without `Goodbye` and
    /// has the command's tree ended. One who looks on just leaves.
    fn signal(&mut self, number: u8) -> Result<Option<End>, Failure> {
        if !self.heard.is_new(number) {
            return Ok(None);
        }
        if self.part == Part::Watcher {
            return Ok(Some(self.leave(number)));
        }
        if self.life.is_none() {
            return self.signal_early(number);
        }
        let now = Instant::now();
        if number == INT {
            let recent = |last: Instant| now.duration_since(last) <= self.patience.second_int;
            if self.last_int.replace(now).is_some_and(recent) {
                return Err(self.left("interrupted twice"));
            }
        }
        if number == HUP || number == TERM {
            self.give_up_at.get_or_insert(now + self.patience.ending);
        }
        self.signalled = self.signalled.saturating_add(1);
        let signal = Signal { number, order: self.signalled };
        if self.pending.len() >= MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(signal);
        if self.is_followed() { self.tell(FrameKind::Signal, &signal).map(|()| None) } else { Ok(None) }
    }

    /// Tells a target that follows again what it was not told before, or may not have heard.
    pub(super) fn catch_up(&mut self) -> Result<(), Failure> {
        for at in 0..self.pending.len() {
            let Some(signal) = self.pending.get(at).copied() else { break };
            self.tell(FrameKind::Signal, &signal)?;
        }
        let stopped = self.stopped;
        let mut gone = [Output::Stdout, Output::Stderr].into_iter().filter(|stream| stopped[*stream as usize]);
        gone.try_for_each(|stream| self.tell(FrameKind::StopOutput, &StopOutput { stream }))
    }

    fn written(&mut self, event: Option<Written>) -> Result<Option<End>, Failure> {
        match event {
            Some(Written::Written { .. }) => Ok(None),
            Some(Written::Broken(stream, error)) if self.part == Part::Watcher => {
                self.not_shown(stream, &error).map(Some)
            }
            Some(Written::Broken(stream, error)) => {
                note_broken(&mut self.cut, stream, &error);
                // In objects, both streams of the command went to the one that broke.
                let both = [Output::Stdout, Output::Stderr];
                let gone: &[Output] = if self.manner.json { &both } else { std::slice::from_ref(&stream) };
                gone.iter().for_each(|&stream| self.stopped[stream as usize] = true);
                if !self.is_followed() {
                    return Ok(None);
                }
                gone.iter().try_for_each(|&stream| self.tell(FrameKind::StopOutput, &StopOutput { stream }))?;
                Ok(None)
            }
            None => Err(self.give_up("the thread that writes the output is gone".into())),
        }
    }

    /// Ends the session because the caller wants it.
    pub(super) fn give_up(&mut self, message: String) -> Failure {
        self.gave_up = true;
        Failure::new(Kind::Unknown, message)
    }
}

pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
