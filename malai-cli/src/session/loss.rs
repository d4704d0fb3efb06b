//! What is done about a connection that is lost: the request is sent again, or the command followed again.

use std::time::Duration;

use futures_util::Stream;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{Output, Resend};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::clock::since_boot;
use super::connection::{Asked, Connection, Dial, Link};
use super::events::Event as Line;
use super::follow::Session;
use super::request::{Look, Part};
use crate::{client, duration, output};

/// What is known of the request until it is answered.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// When it was sent first, on the clock that counts sleep.
    first: Option<Duration>,
    /// The life of the target's executor that the first sending met.
    pub(super) met: Option<Incarnation>,
    /// A sending may have reached the target, and what became of it was not answered.
    is_open: bool,
}

impl Sending {
    /// Whether a sending may have reached the target.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }
}

/// A connection that was lost.
#[derive(Debug)]
pub(super) struct Loss {
    since: Instant,
    /// Another connection was tried.
    tried: bool,
    /// The person was told.
    said: bool,
    /// Why the last try failed, where that was said.
    why: Option<Failure>,
}

impl<S, G> Session<S, G>
where
    S: AsyncRead + AsyncWrite,
    G: Stream<Item = u8> + Unpin,
{
    /// Begins to make a connection.
    pub(super) fn dial(&mut self) {
        let now = Instant::now();
        // A daemon that was just replaced is back in a moment: the first try after a loss starts no agent.
        let agent = match self.loss.as_mut() {
            Some(loss) => {
                self.retried = Some(now);
                std::mem::replace(&mut loss.tried, true)
            }
            None => true,
        };
        if self.is_unasked() {
            self.first_dial.get_or_insert(now);
        }
        let within = match self.life {
            None => self.patience.answer_by.saturating_duration_since(now),
            Some(_) => self.patience.reconnect,
        };
        self.link = Link::Dialling((self.connect)(Dial { within, agent }));
    }

    /// Asks on a new connection.
    pub(super) fn ask(&mut self, stream: S) -> Result<(), Failure> {
        self.number += 1;
        let left = self.patience.connect_by.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let (asked, first) = match (self.life, self.sending.first) {
            (None, _) if self.part == Part::Watcher => {
                (Asked::Attach, self.request.attach(self.number, 0, true, left)?)
            }
            (Some(_), _) => {
                let within = self.patience.reconnect;
                (Asked::Attach, self.request.attach(self.number, self.out_offset(), false, within)?)
            }
            (None, None) => {
                self.sending.first = Some(since_boot()?);
                (Asked::Exec, self.request.exec(None, self.look(left))?)
            }
            (None, Some(first)) => {
                let since_ms = duration::millis(since_boot()?.saturating_sub(first));
                let resend = Resend { number: self.number, met: self.sending.met, since_ms };
                (Asked::Again, self.request.exec(Some(resend), Look::within(left))?)
            }
        };
        self.link = Link::Up(Connection::new(stream, asked, first));
        Ok(())
    }

    /// Whether nothing was asked yet, so that a daemon, or an agent that is still to start, is all that is waited for.
    fn is_unasked(&self) -> bool {
        self.number == 0 && self.life.is_none()
    }

    /// The daemon is there. How long its start took is nothing of the time that the machine has.
    pub(super) fn dialled(&mut self) {
        let Some(since) = self.first_dial.take() else { return };
        let took = since.elapsed();
        self.patience.connect_by += took;
        self.patience.answer_by += took;
    }

    /// The first time, that is the end; later it is a try that failed.
    pub(super) fn not_dialled(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.number == 0 {
            return Err(failure);
        }
        self.lose(Some(failure));
        Ok(())
    }

    /// The connection is gone; the session is not.
    pub(super) fn lose(&mut self, why: Option<Failure>) {
        let now = Instant::now();
        self.sending.is_open |= self.life.is_none();
        let loss = self.loss.get_or_insert(Loss { since: now, tried: false, said: false, why: None });
        loss.why = why.or(loss.why.take());
        let next = self.retried.map_or(now, |last| last + self.patience.retry);
        self.link = Link::Down(next);
    }

    /// There is no attachment: the daemon or the target says why.
    pub(super) fn refused(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.part == Part::Watcher && self.life.is_none() && self.loss.is_none() {
            return Err(failure);
        }
        if self.waits_on(&failure)? {
            return Ok(());
        }
        let (asked, sent) = self.link.connection().map_or((Asked::Exec, false), |link| (link.asked, link.sent));
        let later = matches!(failure.kind, Kind::Unreachable | Kind::NotConfigured | Kind::Busy | Kind::Internal);
        // What the target answers after it has read the request it knows of all sendings. What is said on the way, or
        // without reading, it knows of none before.
        let unread = match asked {
            Asked::Again => matches!(failure.kind, Kind::Unreachable | Kind::Busy | Kind::NotAMember),
            Asked::Exec | Asked::Attach => failure.kind == Kind::Unreachable,
        };
        let certain = if sent { !unread } else { !self.sending.is_open };
        if asked != Asked::Attach && certain {
            return Err(failure);
        }
        if later {
            self.lose(Some(failure));
            return Ok(());
        }
        if self.life.is_none() && asked == Asked::Attach {
            return Err(failure);
        }
        Err(if asked == Asked::Attach { self.not_followed(failure) } else { self.unanswered(Some(&failure)) })
    }

    /// The session is followed, again or for the first time.
    pub(super) fn back(&mut self) -> Result<(), Failure> {
        let Some(loss) = self.loss.take().filter(|loss| loss.said) else { return Ok(()) };
        let after = loss.since.elapsed();
        let text = format!("connection to {} is back after {} s", self.target, after.as_secs());
        self.note(&text, &Line::Back { target: &self.target, after_ms: duration::millis(after) }.line()?);
        Ok(())
    }

    /// Tells of a loss that lasts.
    pub(super) fn say(&mut self) -> Result<(), Failure> {
        self.loss.iter_mut().for_each(|loss| loss.said = true);
        let what =
            if self.request.kills_on_lost() { "which ends the command" } else { "the command goes on; retrying…" };
        let text = format!("connection to {} lost, {what}", self.target);
        self.note(&text, &Line::Lost { target: &self.target }.line()?);
        Ok(())
    }

    pub(super) fn note(&mut self, text: &str, line: &bytes::Bytes) {
        self.sink.push(Output::Stderr, output::note(text).into(), 0);
        if self.manner.json {
            self.sink.push(Output::Stdout, line.clone(), 0);
        }
    }

    /// When the person is to be told.
    pub(super) fn say_at(&self) -> Option<Instant> {
        let loss = self.loss.as_ref().filter(|loss| self.life.is_some() && !loss.said)?;
        loss.since.checked_add(self.patience.say_after)
    }

    /// When waiting ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_due = self.life.is_none() && self.first_dial.is_none();
        let answer_by = is_due.then_some(self.patience.answer_by);
        self.give_up_at.into_iter().chain(answer_by).chain(self.lost_by()).min()
    }

    fn lost_by(&self) -> Option<Instant> {
        let (life, loss) = (self.life?, self.loss.as_ref()?);
        // A span that no clock can hold has no end.
        loss.since.checked_add(self.lost_after(life.grace))
    }

    fn lost_after(&self, grace: Duration) -> Duration {
        if self.request.kills_on_lost() { self.patience.ending } else { self.patience.lost_after.unwrap_or(grace) }
    }

    /// A deadline has passed: which one, in words.
    pub(super) fn late(&mut self) -> Failure {
        let now = Instant::now();
        let Some(life) = self.life else { return self.unanswered(None) };
        if self.give_up_at.is_some_and(|at| at <= now) {
            return self.left("the command did not heed the signal");
        }
        if self.part == Part::Watcher {
            return self.lost_from_view();
        }
        let (target, why) = (&self.target, self.last_words());
        if self.request.kills_on_lost() {
            let message = format!(
                "connection to {target} lost, which ends the command (--kill-on-lost); how it ended is not known{why}"
            );
            return Failure::new(Kind::Unknown, message);
        }
        let (waited, grace) = (duration::words(self.lost_after(life.grace)), duration::words(life.grace));
        let message = format!(
            "connection to {target} lost for {waited}; whether the command ended is not known, and it may still run there \
             until {grace} after the loss{why}"
        );
        Failure::new(Kind::Unknown, message)
            .hint("wait longer: --lost-after 1h; whether the machine is there: malai status")
    }

    /// Why the last try failed, to be put at the end of a sentence.
    pub(super) fn last_words(&self) -> String {
        let why = self.loss.as_ref().and_then(|loss| loss.why.as_ref());
        why.map_or_else(String::new, |failure| format!(" ({})", failure.message))
    }

    /// Nobody can say whether the command was started.
    fn unanswered(&mut self, refusal: Option<&Failure>) -> Failure {
        let why = refusal.map_or_else(|| self.last_words(), |failure| format!(" ({})", failure.message));
        let target = &self.target;
        if self.part == Part::Watcher {
            let message = format!("{target} did not answer in time{why}");
            return Failure::new(Kind::Unreachable, message).hint("give it longer: --connect-timeout 30s");
        }
        let message = if self.loss.is_some() || refusal.is_some() {
            format!("connection to {target} lost before it answered; whether the command started is not known{why}")
        } else {
            format!("{target} did not answer in time; whether the command started is not known")
        };
        self.give_up(message).hint("give it longer: --connect-timeout 30s")
    }

    /// The command was started, and the target has nothing more to say of it.
    fn not_followed(&self, refusal: Failure) -> Failure {
        let message = format!(
            "connection to {} lost, and the command cannot be followed again; whether it ended is not known: {}",
            self.target, refusal.message
        );
        Failure { kind: Kind::Unknown, message, ..refusal }
    }

    /// Another executor cannot have the command.
    pub(super) fn another_life(&self) -> Failure {
        let message = format!(
            "connection to {} lost, and what answers there now did not start the command; whether it ended is not known",
            self.target
        );
        Failure::new(Kind::Unknown, message)
    }

    /// What came is against the rules.
    pub(super) fn broken(&self, why: &str) -> Failure {
        let what = if self.life.is_some() || self.part == Part::Watcher { "ended" } else { "started" };
        let message = format!(
            "connection to {} lost, because the daemon here is not understood: {why}; whether the command {what} is not \
             known",
            self.target
        );
        Failure::new(Kind::Unknown, message).hint(client::RESTART)
    }

    /// A signal before there is a command.
    pub(super) fn interrupted_early(&mut self) -> Failure {
        let target = &self.target;
        let what = match self.number {
            0 => format!("interrupted before {target} was asked; the command was not started"),
            _ => format!("interrupted before {target} answered; whether the command started is not known"),
        };
        self.give_up(what)
    }

    /// The caller leaves a command that runs.
    pub(super) fn left(&mut self, why: &str) -> Failure {
        let target = &self.target;
        let what = if self.loss.is_some() {
            format!("{why}, and the connection to {target} is lost; the command there is ended when the target is told")
        } else {
            format!("{why}; the command on {target} is being ended")
        };
        self.give_up(what)
    }
}
