//! One session: a command, its pipes, its attachment, from the plan to the exit record.

pub(crate) mod followers;
mod following;
mod input;
pub(crate) mod link;
pub(crate) mod outbox;
mod output;
mod over;
mod spooling;
mod start;

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use malai_protocol::codec::{CodecError, Frame, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{Outcome, Plan};
use malai_protocol::session::{self, Ack, Attached, EndedBy, ExitRecord, Started, Status, StopOutput};

use super::table::{Cause, Command, Record, Registration};
use crate::executor::Shared;
use crate::executor::output::spool::End;
use crate::executor::process::command;
use crate::executor::process::reap::Child;
use crate::executor::process::spawn::Trouble;
use crate::executor::process::tree::{GRACE, Left, Tree};
use crate::executor::table::journal::now_ms;

pub(crate) use following::never_sent;
use following::{Following, Moved, moved};
use input::Input;
pub(crate) use output::Output;
use over::Over;
pub(crate) use spooling::{Reading, blocking};

pub(crate) use start::run;

/// After the main process ended, output that others hold open is followed until so long nothing came.
const QUIET: Duration = Duration::from_millis(250);

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Session {
    shared: Arc<Shared>,
    plan: Plan,
    user: String,
    following: Following,
    /// What the child says between fork and exec: nothing, once the program runs.
    exec: Option<Later<io::Result<Vec<u8>>>>,
    /// What the caller is told once the program runs.
    started: Option<Started>,
    child: Child,
    exit: oneshot::Receiver<Status>,
    status: Option<Status>,
    tree: Arc<Tree>,
    input: Input,
    output: Output,
    refused: Option<Failure>,
    cause: Option<Cause>,
    ending: Option<Later<Left>>,
    /// How many processes could not be ended.
    left: u32,
    since: Instant,
    timeout: Option<Instant>,
    /// When the wait for more output is over, while there is one.
    quiet: Option<Instant>,
    silent: bool,
}

enum Event {
    Link(link::Event),
    Exec(io::Result<Vec<u8>>),
    Input,
    Output(session::Output, usize),
    Moved(Moved),
    Command(Command),
    Exit(Status),
    Ended(Left),
    Timeout,
    Quiet,
    /// Nobody came back.
    Alone,
}

impl Session {
    /// Follows the command to its end.
    async fn follow(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Outcome {
        loop {
            let room = self.settle();
            if self.is_over() {
                return self.outcome();
            }
            let event = self.next(commands, room).await;
            self.handle(event);
        }
    }

    async fn next(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>, room: usize) -> Event {
        tokio::select! {
            event = self.following.link.next() => Event::Link(event),
            said = later(&mut self.exec) => Event::Exec(said),
            () = self.input.ready() => Event::Input,
            stream = self.output.ready(room) => Event::Output(stream, room),
            moved = moved(&mut self.following.spooled) => Event::Moved(moved),
            Some(command) = commands.recv() => Event::Command(command),
            Ok(status) = &mut self.exit, if self.status.is_none() => Event::Exit(status),
            left = later(&mut self.ending) => Event::Ended(left),
            () = at(self.timeout) => Event::Timeout,
            () = at(self.quiet) => Event::Quiet,
            () = at(self.following.until) => Event::Alone,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Link(link::Event::Moved) => {}
            Event::Link(link::Event::Came(who)) => self.following.came(who),
            Event::Link(link::Event::Frame(frame)) => {
                if let Err(error) = self.frame(&frame) {
                    self.lost(&format!("the attachment broke the protocol: {error}"));
                }
            }
            Event::Link(link::Event::Lost(why)) => self.lost(&why),
            Event::Exec(said) => self.executed(said),
            Event::Input => self.input.pump(),
            Event::Output(stream, room) => {
                // What could not be ended may write for ever, and is not waited for.
                if self.output.read(stream, room, &mut self.following.log) && self.left == 0 {
                    self.quiet = None;
                }
                if self.drops() {
                    self.following.log.shed();
                }
            }
            Event::Moved(moved) => self.following.store(moved),
            Event::Command(command) => self.command(command),
            Event::Exit(status) => {
                self.status = Some(status);
                if !self.plan.wait_output {
                    self.timeout = None;
                }
            }
            Event::Ended(left) => self.ended(&left),
            Event::Timeout => {
                let reason = self.plan.timeout_ms.map(|ms| format!("its time limit of {ms} ms passed"));
                self.end(Cause { by: EndedBy::Timeout, reason, grace: GRACE });
            }
            // The timer can be over because this process had no time to read, with output that the command had written.
            Event::Quiet if self.left == 0 && self.output.has_more() => self.quiet = None,
            Event::Quiet => self.silent = true,
            Event::Alone => {
                self.following.until = None;
                let waited = self.following.grace().as_secs();
                let reason = Some(format!("nobody followed it any more, and nobody came back for {waited} s"));
                self.end(Cause { by: EndedBy::Grace, reason, grace: GRACE });
            }
        }
    }

    /// Queues what the caller is owed, sets the timer, and says how much output may be read.
    fn settle(&mut self) -> usize {
        // Until the program runs nothing may be said but that it does, or does not.
        if self.exec.is_some() || self.refused.is_some() {
            return 0;
        }
        if self.following.link.has_room() && !self.following.link.is_gone() {
            if let Some(ack) = self.input.ack() {
                self.following.link.control(Kind::StdinAck, &ack);
            }
            if self.input.was_closed() && self.status.is_none() {
                self.following.link.frame(Frame::empty(Kind::StdinClosed));
            }
        }
        let (incarnation, started) = (self.shared.incarnation, &self.started);
        // Only a detached session's output is passed over, and that has no input.
        self.following.fill(|at| Attached { stdin_closed: true, ..attached(incarnation, started, at) });
        let drops = self.drops();
        let room = self.output.room(&mut self.following, drops);
        let waits = self.status.is_some() && self.ending.is_none() && !self.output.is_closed();
        let bounded = !self.plan.wait_output || self.cause.is_some();
        self.quiet = match self.quiet {
            _ if !waits || !bounded || room == 0 => None,
            None => Some(Instant::now() + QUIET),
            running => running,
        };
        room
    }

    /// Output that is not kept is dropped, so that a command that is being ended need not wait for a reader.
    fn drops(&self) -> bool {
        self.cause.is_some() && !self.following.link.is_open() && !self.following.is_kept()
    }

    fn is_over(&self) -> bool {
        let drained = self.ending.is_none() && (self.output.is_closed() || self.silent);
        let stored = drained && self.following.is_stored();
        // What could not be ended is not waited for.
        let over = self.status.is_some() || (self.left > 0 && self.refused.is_some());
        self.exec.is_none() && over && (self.refused.is_some() || stored)
    }

    fn outcome(&mut self) -> Outcome {
        let Some(status) = self.status.filter(|_| self.refused.is_none()) else {
            let nothing = || Failure::new(failure::Kind::Internal, "the command was not started");
            return Outcome::Refused(self.refused.take().unwrap_or_else(nothing));
        };
        let (ended_by, reason) = match self.cause.take() {
            Some(cause) => (cause.by, cause.reason),
            None => (EndedBy::Itself, None),
        };
        Outcome::Exit(ExitRecord {
            status,
            ended_by,
            stdout_bytes: self.output.stdout_bytes,
            stderr_bytes: self.output.stderr_bytes,
            duration_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            output_open: !self.output.is_closed(),
            reason,
            left: self.left,
        })
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), CodecError> {
        let wrong = |wanted| Err(CodecError::OutOfOrder { got: frame.kind, wanted });
        if self.following.is_watched() && !matches!(frame.kind, Kind::Ack | Kind::Goodbye) {
            return wrong("what one may send that only watches");
        }
        match frame.kind {
            Kind::Stdin if !self.input.push(&frame.payload) => return wrong("credit for standard input"),
            Kind::Stdin => {}
            Kind::StdinEof => self.input.end(),
            Kind::Signal => {
                let session::Signal { number, order } = frame.decode()?;
                match signal(number) {
                    Some(signal) if self.following.is_new_signal(order) => self.child.signal_group(signal),
                    Some(_) => {}
                    None => return wrong("a signal that there is"),
                }
            }
            Kind::Ack => {
                let Ack { out_offset } = frame.decode()?;
                if !self.following.ack(out_offset) {
                    return wrong("an offset that was sent");
                }
            }
            Kind::StopOutput => {
                let StopOutput { stream } = frame.decode()?;
                self.output.stop(stream);
            }
            // Before the end it means what the closing that follows means.
            Kind::Goodbye => {}
            _ => return wrong("a frame of a caller's session"),
        }
        Ok(())
    }

    fn executed(&mut self, said: io::Result<Vec<u8>>) {
        self.exec = None;
        match said {
            Ok(said) if said.is_empty() => {
                let started = Started {
                    incarnation: self.shared.incarnation,
                    hostname: self.shared.hostname.clone(),
                    pid: self.child.pid().as_raw().unsigned_abs(),
                    user: self.user.clone(),
                    grace_ms: Some(if self.plan.kill_on_lost { 0 } else { self.plan.grace_ms }),
                };
                self.following.link.control(Kind::Started, &started);
                self.following.started(&started);
                self.started = Some(started);
            }
            Ok(said) if let Some(trouble) = Trouble::parse(&said) => {
                self.refused = Some(command::failure(&self.plan, &self.user, trouble));
            }
            Ok(_) | Err(_) => {
                self.child.signal(nix::sys::signal::Signal::SIGKILL);
                let why = "the command's first process did not say whether it could start";
                self.refused = Some(Failure::new(failure::Kind::Internal, why));
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::End(cause) => self.end(cause),
            Command::Attach(arrival) => {
                let (incarnation, started, input) = (self.shared.incarnation, &self.started, &mut self.input);
                self.following.attach(&self.shared, *arrival, |at| input.tell(attached(incarnation, started, at)));
            }
            Command::Signal(signal) => self.child.signal_group(signal),
            Command::CallerGone { follower, number } => {
                if self.following.is_ended_by(follower, number) {
                    self.following.link.drop_attachment();
                    self.end(caller_gone());
                }
            }
        }
    }

    fn lost(&mut self, why: &str) {
        tracing::debug!(why, "attachment lost");
        self.following.lost();
        // The going of another machine is not its caller's: the session waits as one that was not to end so.
        if self.plan.kill_on_lost && !self.following.is_anothers() {
            let reason = Some(format!("its attachment was lost, and it was not to go on alone: {why}"));
            self.end(Cause { by: EndedBy::Grace, reason, grace: GRACE });
        }
    }

    /// Ends the whole tree. The first cause stands; but a caller who left is why its attachment was lost.
    fn end(&mut self, cause: Cause) {
        if let Some(first) = &mut self.cause {
            if first.by == EndedBy::Grace && cause.by == EndedBy::CallerGone {
                *first = cause;
            }
            return;
        }
        tracing::debug!(by = ?cause.by, reason = cause.reason, "session is ended");
        self.ending = Some(Box::pin(self.tree.clone().end(cause.grace)));
        (self.timeout, self.following.until) = (None, None);
        self.cause = Some(cause);
    }

    fn ended(&mut self, left: &Left) {
        self.ending = None;
        self.left = left.count();
        if self.left == 0 {
            self.output.lift();
            return;
        }
        tracing::warn!(left = left.words(), "some of the session's processes would not end");
        if self.status.is_none() && self.refused.is_none() {
            let message = format!("the command could not be ended: {}", left.words());
            let hint = "end it on that machine, as root: kill -9 and its process id";
            self.refused = Some(Failure::new(failure::Kind::Unknown, message).hint(hint));
        }
        if let Some(Cause { reason, .. }) = &mut self.cause {
            let said = reason.take().map(|reason| reason + "; ").unwrap_or_default();
            *reason = Some(said + &left.words());
        }
    }

    /// Tells everybody how it ended, leaves what the command left behind to itself, and waits until the caller has all.
    async fn finish(
        self,
        registration: Registration,
        outcome: Outcome,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) {
        let Self { shared, mut following, mut input, output, tree, started, .. } = self;
        if let Some(spool) = following.stored() {
            let (outcome, total) = (outcome.clone(), following.log.total());
            spooling::end(&shared, spool, End { started: started.clone(), outcome, total, at_ms: now_ms() }).await;
        }
        let record = match outcome.clone() {
            Outcome::Exit(record) => record,
            Outcome::Refused(failure) => {
                following.link.control(Kind::Refused, &failure);
                let keep = registration.finish(outcome, Record::Refused(failure));
                shared.leave(output, tree);
                following.link.deliver().await;
                return drop(keep);
            }
        };
        let attached = input.tell(attached(shared.incarnation, &started, following.log.total()));
        let attached = Attached { stdin_closed: true, ..attached };
        let mut keep = registration.finish(outcome, Record::Exit(attached.clone(), record.clone()));
        shared.leave(output, tree);
        // Nobody comes for what its caller left, or did not come back for.
        let left = matches!(record.ended_by, EndedBy::CallerGone | EndedBy::Grace);
        if following.link.is_gone() {
            keep.unfollowed();
            if left {
                return;
            }
        }
        Over { shared, keep, following, attached, record, told: false, reachable: true }.stay(commands).await;
    }
}

fn attached(incarnation: Incarnation, started: &Option<Started>, out_offset: u64) -> Attached {
    let started = started.clone();
    Attached { incarnation, started, out_offset, stdin_offset: 0, credit: 0, stdin_closed: false, watches: false }
}

fn caller_gone() -> Cause {
    Cause { by: EndedBy::CallerGone, reason: Some("its caller went away".to_owned()), grace: GRACE }
}

/// The signal of this number on Linux.
pub(crate) fn signal(number: u8) -> Option<nix::sys::signal::Signal> {
    use nix::sys::signal::Signal;
    #[cfg(not(target_os = "linux"))]
    match number {
        10 => return Some(Signal::SIGUSR1),
        12 => return Some(Signal::SIGUSR2),
        18 => return Some(Signal::SIGCONT),
        19 => return Some(Signal::SIGSTOP),
        20 => return Some(Signal::SIGTSTP),
        1..=3 | 6 | 9 | 13..=15 => {}
        _ => return None,
    }
    Signal::try_from(i32::from(number)).ok()
}

/// Waits for what may not be there.
async fn later<T>(future: &mut Option<Later<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
