//! The loop of one session. It owns the session's parts, and decides what happens when signals, frames, input, written
//! output and time come in.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use malai_protocol::codec::{CodecError, Frame, Kind as FrameKind, MAX_DATA};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{Attached, DEFAULT_GRACE_MS, Output as OutputStream, Sent, Started, Superseded};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::answers::{self, Answer};
use super::connection::{Connection, ConnectionEvent};
use super::end::{self, SessionEnd};
use super::events::SessionEvent;
use super::failures;
use super::input::Input;
use super::output::{Output, OutputManner};
use super::patience::{Patience, SessionLimits, in_brackets, until};
use super::request::{FollowerRole, SessionRequest};
use super::signals::{HUP, INT, SignalQueue, TERM};
use super::sink::{OutputSink, SinkEvent};
use super::socket::{AnswerStage, Asked, SocketEvent};
use super::source::InputSource;
use crate::client::{self, Dialler};
use crate::duration;

/// Is the signal that a program gets whose reader has left.
const PIPE_SIGNAL: u8 = 13;

/// Holds what a session is made of.
pub(crate) struct SessionParts<S, G> {
    /// Makes connections to the daemon.
    pub(crate) dialler: Dialler<S>,
    /// What is asked for on them.
    pub(crate) request: SessionRequest,
    /// Numbers of signals for the command.
    pub(crate) signals: G,
    /// Standard input; absent when none is sent.
    pub(crate) source: Option<InputSource>,
    /// Standard output and error.
    pub(crate) sink: OutputSink,
    /// How the session shows itself.
    pub(crate) manner: OutputManner,
    /// How long it waits.
    pub(crate) limits: SessionLimits,
}

/// Follows a session to its end, over as many connections as it takes, or until there is no more to be done here.
///
/// # Errors
/// Why there is no result: refused, lost, given up, or with output missing.
pub(crate) async fn follow<S, G>(parts: SessionParts<S, G>) -> Result<SessionEnd, Failure>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    let SessionParts { dialler, request, signals, source, sink, manner, limits } = parts;
    let mut session = Session {
        target: request.target.to_string(),
        role: request.role(),
        runs: None,
        is_shown: false,
        superseded: None,
        gave_up: false,
        connection: Connection::new(dialler),
        input: Input::new(source),
        output: Output::new(sink, manner),
        signals: SignalQueue::new(signals, limits.same_signal, limits.second_int),
        patience: Patience::new(limits, request.kills_on_lost()),
        request,
    };
    let outcome = session.run().await;
    session.finish(outcome).await
}

/// Holds the command that was started.
#[derive(Debug, Clone, Copy)]
struct RunningCommand {
    /// The incarnation of the executor that has it.
    incarnation: Incarnation,
    /// How long the target waits for its caller.
    grace: Duration,
}

/// Holds a session: all that outlives a connection.
struct Session<S, G> {
    request: SessionRequest,
    /// The target, for people.
    target: String,
    role: FollowerRole,
    /// The command that runs; absent until the target says so.
    runs: Option<RunningCommand>,
    /// It was shown that the command runs.
    is_shown: bool,
    /// Another process follows the session now.
    superseded: Option<Superseded>,
    /// The caller wants the session to end.
    gave_up: bool,
    connection: Connection<S>,
    input: Input,
    output: Output,
    signals: SignalQueue<G>,
    patience: Patience,
}

enum Event<S> {
    Signal(u8),
    Written(Option<SinkEvent>),
    Connection(ConnectionEvent<S>),
    Input(io::Result<Bytes>),
    TellLoss,
    Deadline,
}

/// Is what an event comes to: the end, or nothing yet.
type Step = Result<Option<SessionEnd>, Failure>;

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Runs until the exit record, or the reason why none will come or is waited for.
    async fn run(&mut self) -> Result<SessionEnd, Failure> {
        loop {
            self.feed();
            self.acknowledge()?;
            let end = match self.next().await {
                Event::Signal(number) => self.signal(number),
                Event::Written(event) => self.written(event),
                Event::Input(chunk) => Ok(self.take_input(chunk)),
                Event::Connection(event) => self.connected(event),
                Event::TellLoss => self.tell_loss(),
                Event::Deadline => Err(self.late()),
            };
            if let Some(end) = end? {
                return Ok(end);
            }
        }
    }

    /// Returns what happens next, in no fixed order: a command that never stops writing must not keep its own input
    /// waiting.
    async fn next(&mut self) -> Event<S> {
        let deadline = self.patience.deadline(self.runs.map(|command| command.grace));
        let (tell_at, has_room) = (self.patience.tell_at(self.runs.is_some()), self.output.has_room());
        tokio::select! {
            Some(number) = self.signals.next() => Event::Signal(number),
            event = self.output.next() => Event::Written(event),
            event = self.connection.next(has_room) => Event::Connection(event),
            chunk = self.input.read() => Event::Input(chunk),
            () = until(tell_at) => Event::TellLoss,
            () = until(deadline) => Event::Deadline,
        }
    }

    /// Gives the connection input. At most one frame of it waits for the socket: a signal never stands behind more.
    fn feed(&mut self) {
        let runs = self.runs.is_some();
        let Some(socket) = self.connection.socket().filter(|socket| socket.takes_input()) else { return };
        // While the machine is waited for, the daemon has to notice at once when this process leaves, and reads only so far.
        if self.patience.is_waiting() && !runs && !socket.is_sent {
            return;
        }
        while socket.waiting() < MAX_DATA {
            match self.input.frame() {
                Some(frame) => socket.queue(&frame),
                None => return self.input.ask(),
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), Failure> {
        if !self.connection.is_followed() {
            return Ok(());
        }
        self.output.ack().map_or(Ok(()), |ack| self.send(FrameKind::Ack, &ack))
    }

    fn take_input(&mut self, chunk: io::Result<Bytes>) -> Option<SessionEnd> {
        let e = self.input.take(chunk).err()?;
        self.output.cut(|| format!("cannot read standard input: {e}; for the command, its input ended early"));
        None
    }

    fn send<T: Serialize>(&mut self, kind: FrameKind, value: &T) -> Result<(), Failure> {
        self.connection.send(kind, value).map_err(|e| self.broken(&e.to_string()))
    }

    fn written(&mut self, event: Option<SinkEvent>) -> Step {
        match event {
            Some(SinkEvent::Written { .. }) => Ok(None),
            Some(SinkEvent::Broken(stream, error)) if self.role == FollowerRole::Watcher => {
                self.not_shown(stream, &error).map(Some)
            }
            Some(SinkEvent::Broken(stream, error)) => {
                let stopped = self.output.stop(stream, &error);
                if self.connection.is_followed() {
                    stopped.iter().try_for_each(|stop| self.send(FrameKind::StopOutput, stop))?;
                }
                Ok(None)
            }
            None => Err(self.give_up(Failure::new(Kind::Unknown, "the thread that writes the output is gone"))),
        }
    }

    /// Ends a watcher whose output cannot be written. That is nothing to the command, which keeps its pipes.
    fn not_shown(&mut self, stream: OutputStream, error: &io::Error) -> Result<SessionEnd, Failure> {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Ok(self.leave(PIPE_SIGNAL));
        }
        Err(self.give_up(failures::not_shown(&self.target, stream, error)))
    }

    /// Sends INT, TERM, HUP and QUIT to the command, later if it is not followed now. Before it runs there is nothing to
    /// send them to. When it does not heed them the caller leaves: the daemon sees the socket close without `Goodbye`, and
    /// has the command's tree ended. A process that looks on just leaves.
    fn signal(&mut self, number: u8) -> Step {
        if !self.signals.is_new(number) {
            return Ok(None);
        }
        if self.role == FollowerRole::Watcher {
            return Ok(Some(self.leave(number)));
        }
        if self.runs.is_none() {
            return self.signal_early(number);
        }
        if number == INT && self.signals.is_second_int() {
            return Err(self.leave_command("interrupted twice"));
        }
        if number == HUP || number == TERM {
            self.patience.begin_ending();
        }
        let signal = self.signals.keep(number);
        if self.connection.is_followed() {
            self.send(FrameKind::Signal, &signal)?;
        }
        Ok(None)
    }

    /// Handles a signal before there is a command. Where malai waits for the machine, the daemon confirms that nothing was
    /// sent.
    fn signal_early(&mut self, number: u8) -> Step {
        if !self.patience.is_waiting() || self.patience.interrupted().is_some() || self.connection.is_open() {
            return Err(self.interrupted_early());
        }
        match self.connection.socket() {
            Some(socket) => socket.hang_up(),
            None => return Ok(Some(SessionEnd::Left { signal: number, followed: false })),
        }
        self.patience.interrupt_wait(number);
        Ok(None)
    }

    /// Sends a target that follows again what it may not have had.
    fn catch_up(&mut self) -> Step {
        let (signals, stopped): (Vec<_>, Vec<_>) = (self.signals.pending().collect(), self.output.stopped().collect());
        signals.iter().try_for_each(|signal| self.send(FrameKind::Signal, signal))?;
        stopped.iter().try_for_each(|stop| self.send(FrameKind::StopOutput, stop))?;
        Ok(None)
    }

    fn connected(&mut self, event: ConnectionEvent<S>) -> Step {
        match event {
            ConnectionEvent::Due => {
                let is_first = self.connection.is_unasked() && self.runs.is_none();
                self.connection.dial(self.patience.begin_dial(is_first));
            }
            ConnectionEvent::Dialled(Ok(stream)) => {
                self.patience.dialled();
                let (runs, offset) = (self.runs.is_some(), self.output.offset());
                self.connection.ask(stream, &self.request, runs, offset, &self.patience)?;
            }
            // The first time, that is the end; later it is a try that failed.
            ConnectionEvent::Dialled(Err(failure)) if self.connection.is_unasked() => return Err(failure),
            ConnectionEvent::Dialled(Err(failure)) => self.lose(Some(failure)),
            ConnectionEvent::Socket(SocketEvent::Wrote) => {}
            ConnectionEvent::Socket(SocketEvent::Frame(frame)) => return self.frame(frame),
        }
        Ok(None)
    }

    fn frame(&mut self, frame: Option<Result<Frame, CodecError>>) -> Step {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(e)) if !client::is_loss(&e) => return Err(self.broken(&e.to_string())),
            None | Some(Err(_)) => {
                let end = self.unsent();
                if end.is_none() {
                    self.lose(None);
                }
                return Ok(end);
            }
        };
        let Some((stage, asked)) = self.connection.socket().map(|socket| (socket.stage, socket.asked)) else {
            return Ok(None);
        };
        match answers::read(&frame, stage, asked, self.role).map_err(|why| self.broken(&why))? {
            Answer::Greeted => self.connection.set_stage(AnswerStage::Waiting),
            Answer::Sent(sent) => self.on_its_way(&sent)?,
            Answer::Refused(failure) => return self.refused(failure),
            Answer::Attached(attached) if self.role == FollowerRole::Watcher => return self.watched(&attached),
            Answer::Attached(attached) => return self.attached(&attached),
            Answer::Started { started, is_again } => {
                // Input follows a first sending at once, and a later one only now.
                if is_again {
                    self.input.restart().map_err(|why| self.broken(why))?;
                }
                return self.started(&started);
            }
            Answer::Superseded(by) => {
                self.superseded = Some(by);
                return Err(failures::followed_elsewhere(&self.target, by, &by.by.to_string()));
            }
            Answer::InputTaken(ack) => self.input.acknowledge(ack).map_err(|why| self.broken(why))?,
            Answer::InputClosed => self.input.close(),
            Answer::Output(stream, bytes) => self.output.show(stream, bytes)?,
            Answer::Ended(record) => return Ok(Some(SessionEnd::Ended(record))),
            Answer::Failed(failure) => return Err(failure),
            Answer::Nothing => {}
        }
        Ok(None)
    }

    /// Notes that the daemon has a connection to the target, and that the request is on it.
    fn on_its_way(&mut self, sent: &Sent) -> Result<(), Failure> {
        if !self.connection.note_sent(sent) {
            return Err(self.broken("the daemon said twice that the request is on its way"));
        }
        if let Some(reached) = &sent.reached {
            let text = format!("{}: {}", self.target, reached.words());
            self.output.detail(&text, &SessionEvent::Reached { target: &self.target, reached })?;
        }
        if self.patience.interrupted().is_some() {
            return Err(self.interrupted_early());
        }
        self.patience.end_wait();
        Ok(())
    }

    /// Returns the end of a waiting that a signal ended, when the daemon has closed the connection, or refused.
    fn unsent(&mut self) -> Option<SessionEnd> {
        let signal = self.patience.interrupted()?;
        (!self.connection.is_sent()).then_some(SessionEnd::Left { signal, followed: false })
    }

    /// Decides what happens without an attachment, when the daemon or the target says why there is none.
    fn refused(&mut self, failure: Failure) -> Step {
        if let Some(end) = self.unsent() {
            return Ok(Some(end));
        }
        let runs = self.runs.is_some();
        if self.role == FollowerRole::Watcher && !runs && !self.patience.loss.is_some() {
            return Err(failure);
        }
        if self.waits_on(&failure)? {
            return Ok(None);
        }
        let asked = self.connection.asked();
        if asked != Asked::Attach && self.connection.is_certain(&failure) {
            return Err(failure);
        }
        if matches!(failure.kind, Kind::Unreachable | Kind::NotConfigured | Kind::Busy | Kind::Internal) {
            self.lose(Some(failure));
            return Ok(None);
        }
        Err(match asked {
            Asked::Attach if runs => failures::not_followed(&self.target, failure),
            Asked::Attach => failure,
            Asked::Exec | Asked::Again => self.unanswered(Some(&failure)),
        })
    }

    /// Waits for a machine that was not reached, where that was asked for. Nothing was sent, so the request is sent for the
    /// first time when the machine comes.
    fn waits_on(&mut self, failure: &Failure) -> Result<bool, Failure> {
        if self.connection.asked() != Asked::Exec || self.connection.is_sent() {
            return Ok(false);
        }
        let Some((again_at, is_news)) = self.patience.wait_on(failure) else { return Ok(false) };
        if is_news {
            let seen = failure.seen.as_ref().map_or_else(String::new, |seen| format!(" ({seen})"));
            let text = format!("{} is not there{seen}; waiting for it to come…", self.target);
            self.output.note(&text, &SessionEvent::Waiting { target: &self.target })?;
        }
        self.connection.start_over(again_at);
        Ok(true)
    }

    fn started(&mut self, started: &Started) -> Step {
        let grace = Duration::from_millis(started.grace_ms.unwrap_or(DEFAULT_GRACE_MS));
        self.runs = Some(RunningCommand { incarnation: started.incarnation, grace });
        self.is_shown = true;
        self.input.started();
        self.connection.set_stage(AnswerStage::Running);
        let Started { hostname, user, pid, .. } = started;
        let text = format!("{} runs it on host {hostname} as {user}, pid {pid}", self.target);
        self.output.detail(&text, &SessionEvent::Started { target: &self.target, started })?;
        if self.role == FollowerRole::Starter {
            return Ok(Some(SessionEnd::Detached(started.clone())));
        }
        self.tell_back()?;
        self.catch_up()
    }

    /// Goes on with a session that is there, at the byte that its target says.
    fn attached(&mut self, attached: &Attached) -> Step {
        let gap = self.gap(attached)?;
        if gap > 0 {
            self.output.skip(gap);
            self.output.cut(|| format!("{gap} bytes of output were not kept while the connection was lost"));
        }
        self.output.note_acked(attached.out_offset);
        // First: a command that has started has taken what was read for it, also when it closed its input by now.
        if attached.started.is_some() {
            self.input.started();
        }
        self.input.resume(attached).map_err(|why| self.broken(why))?;
        let incarnation = self.runs.map(|command| command.incarnation);
        let started = attached.started.as_ref();
        if incarnation.or(started.map(|started| started.incarnation)).is_some_and(|one| one != attached.incarnation) {
            return Err(failures::another_incarnation(&self.target));
        }
        match (self.runs, started) {
            (Some(_), None) => return Err(self.broken("the target says that a command which runs has not started")),
            (None, None) => self.connection.set_stage(AnswerStage::Attached),
            (None, Some(started)) => return self.started(started),
            (Some(_), Some(_)) => {
                self.connection.set_stage(AnswerStage::Running);
                self.tell_back()?;
            }
        }
        self.catch_up()
    }

    /// Goes on with a session that this process looks on at. Another executor may have it by now: what is kept of a session
    /// outlives the one that ran it.
    fn watched(&mut self, attached: &Attached) -> Step {
        let gap = self.gap(attached)?;
        if gap > 0 {
            self.miss(gap)?;
        }
        if attached.watches && self.runs.is_none() {
            let text = format!(
                "this machine may only watch, until another process takes the session over; to do more, it must be in \
                 `allow_control` of [machine.{}]",
                self.request.target.machine
            );
            self.output.note(&text, &SessionEvent::Watching { target: &self.target })?;
        }
        self.output.note_acked(attached.out_offset);
        let grace = Duration::from_millis(DEFAULT_GRACE_MS);
        self.runs.get_or_insert(RunningCommand { incarnation: attached.incarnation, grace });
        match &attached.started {
            Some(started) if !self.is_shown => return self.started(started),
            Some(_) => self.connection.set_stage(AnswerStage::Running),
            None => self.connection.set_stage(AnswerStage::Attached),
        }
        self.tell_back()?;
        Ok(None)
    }

    /// Returns how much output is missing before the byte at which the target goes on.
    fn gap(&self, attached: &Attached) -> Result<u64, Failure> {
        let gap = attached.out_offset.checked_sub(self.output.offset());
        gap.ok_or_else(|| self.broken("the target repeats output that it sent before"))
    }

    /// Notes output that will not come, and says so unless only new output was asked for.
    fn miss(&mut self, bytes: u64) -> Result<(), Failure> {
        let is_first = self.runs.is_none();
        self.output.skip(bytes);
        if is_first && self.request.is_from_end() {
            return Ok(());
        }
        let text = if is_first {
            format!("the target no longer has the first {bytes} bytes of output")
        } else {
            format!("{bytes} bytes of output are missing here: the target no longer has them")
        };
        self.output.note(&text, &SessionEvent::Missing { target: &self.target, bytes })
    }

    /// Notes that the connection is gone; the session is not.
    fn lose(&mut self, why: Option<Failure>) {
        let again_at = self.patience.lose(why);
        self.connection.lose(again_at, self.runs.is_some());
    }

    /// Says that the session is followed again, if the user has heard of the loss.
    fn tell_back(&mut self) -> Result<(), Failure> {
        let Some(after) = self.patience.loss.end() else { return Ok(()) };
        let text = format!("connection to {} is back after {} s", self.target, after.as_secs());
        let event = SessionEvent::Back { target: &self.target, after_ms: duration::millis(after) };
        self.output.note(&text, &event)
    }

    /// Says that the connection is lost.
    fn tell_loss(&mut self) -> Step {
        self.patience.loss.set_told();
        let what =
            if self.request.kills_on_lost() { "which ends the command" } else { "the command goes on; retrying…" };
        let text = format!("connection to {} lost, {what}", self.target);
        self.output.note(&text, &SessionEvent::Lost { target: &self.target })?;
        Ok(None)
    }

    /// Returns what a deadline that has passed means.
    fn late(&mut self) -> Failure {
        let Some(command) = self.runs else { return self.unanswered(None) };
        if self.patience.is_ending_over() {
            return self.leave_command("the command did not react to the signal");
        }
        let (target, why) = (&self.target, self.patience.loss.reason());
        if self.role == FollowerRole::Watcher {
            return failures::lost_from_view(target, "the command", self.patience.watch_lost_after(), &why);
        }
        if self.request.kills_on_lost() {
            return failures::killed_by_loss(target, &why);
        }
        failures::lost(target, self.patience.lost_after(command.grace), command.grace, &why)
    }

    fn unanswered(&mut self, refusal: Option<&Failure>) -> Failure {
        let is_lost = self.patience.loss.is_some() || refusal.is_some();
        let why = refusal.map_or_else(|| self.patience.loss.reason(), in_brackets);
        self.gave_up |= self.role != FollowerRole::Watcher;
        failures::unanswered(&self.target, self.role, is_lost, &why)
    }

    fn broken(&self, why: &str) -> Failure {
        let ended = self.runs.is_some() || self.role == FollowerRole::Watcher;
        failures::broken(&self.target, if ended { "ended" } else { "started" }, why)
    }

    fn interrupted_early(&mut self) -> Failure {
        self.give_up(failures::interrupted_early(&self.target, !self.connection.is_unasked()))
    }

    /// Leaves a command that runs, which ends it.
    fn leave_command(&mut self, why: &str) -> Failure {
        self.give_up(failures::left(&self.target, why, self.patience.loss.is_some()))
    }

    /// Leaves a session that goes on.
    fn leave(&mut self, signal: u8) -> SessionEnd {
        self.gave_up = true;
        SessionEnd::Left { signal, followed: self.runs.is_some() }
    }

    /// Ends the session because the caller wants it.
    fn give_up(&mut self, failure: Failure) -> Failure {
        self.gave_up = true;
        failure
    }

    /// Says farewell, writes out what is left, and returns the outcome.
    async fn finish(mut self, outcome: Result<SessionEnd, Failure>) -> Result<SessionEnd, Failure> {
        // Only an exit record ends a session in good order, and a process that leaves it to go on. Otherwise it is over with
        // the socket, at once.
        let is_orderly = outcome.is_ok();
        let is_watcher = self.role == FollowerRole::Watcher;
        let outcome = match self.superseded {
            Some(by) => self.name_who_follows(by).await.map_or(outcome, Err),
            None => outcome.and_then(|end| {
                let missing = match &end {
                    SessionEnd::Ended(record) => self.output.missing(record, is_watcher),
                    _ => None,
                };
                end::check(end, &self.target, missing.as_deref())
            }),
        };
        end::show(&mut self.output, &self.target, &outcome)?;
        let is_caller = self.role == FollowerRole::Caller && self.runs.is_some();
        let parting = match self.gave_up && is_caller {
            true => self.connection.parting_request(&self.request, self.output.offset()),
            false => None,
        };
        self.connection.close(is_orderly, parting).await;
        end::write_out(&mut self.output, &mut self.signals, self.gave_up).await;
        end::check(outcome?, &self.target, self.output.lost())
    }

    /// Returns the failure with the name of the machine from which the session is followed now, where the daemon here
    /// knows it.
    async fn name_who_follows(&mut self, by: Superseded) -> Option<Failure> {
        let dialling = self.connection.dial_besides();
        let name = end::name_of(dialling, self.request.target.cluster.as_deref(), by.by).await?;
        Some(failures::followed_elsewhere(&self.target, by, &name))
    }
}
