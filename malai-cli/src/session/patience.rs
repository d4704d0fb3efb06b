//! How long a session waits for what: its limits, a connection that was lost, and a machine that is not there yet.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use tokio::time::{Instant, sleep_until};

use super::request::MachineSearch;
use crate::client::DialOptions;

/// Sets how much later than the daemon the CLI gives up. The daemon gives up on an unreachable machine by
/// `--connect-timeout`, and of two answers the one that knows why has to win.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Sets the time between two tries to follow a command again, or to ask about it.
pub(super) const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Sets when the user hears of a loss.
pub(super) const LOSS_TOLD_AFTER: Duration = Duration::from_secs(1);
/// Bounds how long HUP or TERM may take to end the command before the caller counts as gone.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the time within which a second INT means that the caller is gone.
const SECOND_INT_INTERVAL: Duration = Duration::from_secs(2);
/// Sets the time within which two signals of one kind count as one.
const SAME_SIGNAL_INTERVAL: Duration = Duration::from_millis(100);
/// Bounds how long a machine is looked for before the user hears that malai waits for it.
const FIRST_SEARCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds how long the daemon may take to confirm that it has sent nothing.
const UNSENT_CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Says how long a session may take for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionLimits {
    /// When the daemon has to have reached the target.
    pub(crate) connect_by: Instant,
    /// When the target has to have answered.
    pub(crate) answer_by: Instant,
    /// How long one try to reach the target again may take.
    pub(crate) reconnect: Duration,
    /// The time between the beginnings of two such tries.
    pub(crate) retry: Duration,
    /// How long a loss lasts before the user hears of it.
    pub(crate) say_after: Duration,
    /// How long a loss may last; absent = as long as the target waits.
    pub(crate) lost_after: Option<Duration>,
    /// How long HUP or TERM may take to end the command, and how long the loss of a command may last that ends with its
    /// connection.
    pub(crate) ending: Duration,
    /// The time within which a second INT ends the session.
    pub(crate) second_int: Duration,
    /// The time within which two signals of one kind are the same: `timeout` and a terminal that closes send each of them
    /// twice.
    pub(crate) same_signal: Duration,
    /// How long at most a machine is dialled that is known to have gone; absent = as long as any.
    pub(crate) gone: Option<Duration>,
    /// How long a machine is waited for that is not there; absent = not at all.
    pub(crate) wait_until: Option<Instant>,
}

impl SessionLimits {
    /// Returns the limits of a session that began at `started`.
    pub(crate) fn new(started: Instant, connect_timeout: Duration, lost_after: Option<Duration>) -> Self {
        let connect_by = started + connect_timeout;
        Self {
            connect_by,
            answer_by: connect_by + ANSWER_MARGIN,
            reconnect: connect_timeout,
            retry: RECONNECT_INTERVAL,
            say_after: LOSS_TOLD_AFTER,
            lost_after,
            ending: ENDING_TIMEOUT,
            second_int: SECOND_INT_INTERVAL,
            same_signal: SAME_SIGNAL_INTERVAL,
            gone: None,
            wait_until: None,
        }
    }

    /// Waits this long for a machine that is not there.
    pub(crate) fn wait_for_machine(self, started: Instant, wait: Duration) -> Self {
        let connect_by = started + wait;
        Self { connect_by, answer_by: connect_by + ANSWER_MARGIN, wait_until: Some(connect_by), ..self }
    }
}

/// Holds a connection that was lost, until another one takes its place.
#[derive(Debug, Default)]
pub(super) struct Loss(Option<Lost>);

#[derive(Debug)]
struct Lost {
    since: Instant,
    /// Another connection was tried.
    is_tried: bool,
    /// The user has heard of it.
    is_told: bool,
    /// Why the last try failed, where that was said.
    why: Option<Failure>,
}

impl Loss {
    /// Notes that the connection is lost, or that a try to replace it failed.
    pub(super) fn begin(&mut self, why: Option<Failure>) {
        let lost = self.0.get_or_insert(Lost { since: Instant::now(), is_tried: false, is_told: false, why: None });
        lost.why = why.or(lost.why.take());
    }

    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Returns when it ends for good; `None` also for a span that no clock can hold.
    pub(super) fn ends_at(&self, after: Duration) -> Option<Instant> {
        self.0.as_ref()?.since.checked_add(after)
    }

    /// Returns when the user is to hear of it.
    pub(super) fn tell_at(&self, after: Duration) -> Option<Instant> {
        self.0.as_ref().filter(|lost| !lost.is_told)?.since.checked_add(after)
    }

    /// Notes that the user has heard of it.
    pub(super) fn set_told(&mut self) {
        self.0.iter_mut().for_each(|lost| lost.is_told = true);
    }

    /// Notes a try to replace the connection, and tells whether it may start an agent. The first one may not: a daemon that
    /// was just replaced is back in a moment.
    pub(super) fn begin_try(&mut self) -> bool {
        self.0.as_mut().is_none_or(|lost| std::mem::replace(&mut lost.is_tried, true))
    }

    /// Ends it. Returns how long it lasted when the user has heard of it.
    pub(super) fn end(&mut self) -> Option<Duration> {
        self.0.take().filter(|lost| lost.is_told).map(|lost| lost.since.elapsed())
    }

    /// Returns why the last try failed, to be put at the end of a sentence.
    pub(super) fn reason(&self) -> String {
        let why = self.0.as_ref().and_then(|lost| lost.why.as_ref());
        why.map_or_else(String::new, in_brackets)
    }
}

/// Returns a failure as the end of a sentence.
pub(super) fn in_brackets(failure: &Failure) -> String {
    format!(" ({})", failure.message)
}

/// Holds what a session waits for, and until when.
#[derive(Debug)]
pub(super) struct Patience {
    limits: SessionLimits,
    /// The command ends with its connection.
    ends_when_lost: bool,
    /// The attachment is lost.
    pub(super) loss: Loss,
    /// When an attachment was last tried again.
    retried_at: Option<Instant>,
    /// When the first dial began, until it succeeds.
    first_dial_at: Option<Instant>,
    /// When the caller gives up on a command that does not heed a signal.
    give_up_at: Option<Instant>,
    /// The user has heard that malai waits for the machine.
    is_wait_told: bool,
    /// The signal that ended the waiting, once the daemon confirms that nothing was sent.
    interrupted: Option<u8>,
}

impl Patience {
    pub(super) fn new(limits: SessionLimits, ends_when_lost: bool) -> Self {
        Self {
            limits,
            ends_when_lost,
            loss: Loss::default(),
            retried_at: None,
            first_dial_at: None,
            give_up_at: None,
            is_wait_told: false,
            interrupted: None,
        }
    }

    /// Notes that a connection is dialled, and returns how. With `is_first`, nothing was asked yet. How long the daemon, or
    /// an agent, takes to start is then no part of the machine's time.
    pub(super) fn begin_dial(&mut self, is_first: bool) -> DialOptions {
        let now = Instant::now();
        if self.loss.is_some() {
            self.retried_at = Some(now);
        }
        if is_first {
            self.first_dial_at.get_or_insert(now);
        }
        DialOptions { agent: self.loss.begin_try() }
    }

    /// Notes that the daemon is there.
    pub(super) fn dialled(&mut self) {
        let Some(since) = self.first_dial_at.take() else { return };
        let took = since.elapsed();
        self.limits.connect_by += took;
        self.limits.answer_by += took;
    }

    /// Notes a loss, and returns when another connection is to be tried.
    pub(super) fn lose(&mut self, why: Option<Failure>) -> Instant {
        self.loss.begin(why);
        self.retried_at.map_or_else(Instant::now, |last| last + self.limits.retry)
    }

    /// Returns how long a try to follow the session again may take.
    pub(super) fn reconnect(&self) -> Duration {
        self.limits.reconnect
    }

    /// Returns how long the daemon has to reach the target.
    pub(super) fn connect_left(&self) -> Duration {
        self.limits.connect_by.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Returns how the daemon is to look for the machine.
    pub(super) fn search(&self) -> MachineSearch {
        let (within, waits) = (self.connect_left(), self.is_waiting());
        if self.is_wait_told {
            return MachineSearch { within, gone: None, waits };
        }
        let within = if waits { within.min(FIRST_SEARCH_TIMEOUT) } else { within };
        MachineSearch { within, gone: self.limits.gone, waits }
    }

    /// Tells whether the machine is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.limits.wait_until.is_some()
    }

    /// Decides whether malai waits for a machine that was not reached. Returns when it is looked for again, and whether the
    /// user is to hear of it now.
    pub(super) fn wait_on(&mut self, failure: &Failure) -> Option<(Instant, bool)> {
        let again = Instant::now() + self.limits.retry;
        let in_time = self.limits.wait_until.is_some_and(|until| again < until);
        if failure.kind != Kind::Unreachable || !in_time || self.interrupted.is_some() {
            return None;
        }
        let is_news = !std::mem::replace(&mut self.is_wait_told, true);
        Some((if is_news { Instant::now() } else { again }, is_news))
    }

    /// Notes that the request is on its way: the waiting is over, and an answer is due as always.
    pub(super) fn end_wait(&mut self) {
        if self.limits.wait_until.take().is_some() {
            self.limits.connect_by = Instant::now() + self.limits.reconnect;
            self.limits.answer_by = self.limits.connect_by + ANSWER_MARGIN;
        }
    }

    /// Ends the waiting by a signal. Whatever the daemon has sent by now, it says before it closes the connection.
    pub(super) fn interrupt_wait(&mut self, signal: u8) {
        self.interrupted = Some(signal);
        self.limits.answer_by = Instant::now() + UNSENT_CONFIRMATION_TIMEOUT;
    }

    /// Returns the signal that ended the waiting.
    pub(super) fn interrupted(&self) -> Option<u8> {
        self.interrupted
    }

    /// Gives the command a while to heed a signal that ends it.
    pub(super) fn begin_ending(&mut self) {
        self.give_up_at.get_or_insert(Instant::now() + self.limits.ending);
    }

    /// Tells whether the command had its time to heed the signal.
    pub(super) fn is_ending_over(&self) -> bool {
        self.give_up_at.is_some_and(|at| at <= Instant::now())
    }

    /// Returns when the user is to hear of a loss.
    pub(super) fn tell_at(&self, runs: bool) -> Option<Instant> {
        self.loss.tell_at(self.limits.say_after).filter(|_| runs)
    }

    /// Returns when waiting ends. A command that runs, which is waited for by its target for `grace`, has no answer due.
    pub(super) fn deadline(&self, grace: Option<Duration>) -> Option<Instant> {
        let is_due = grace.is_none() && self.first_dial_at.is_none();
        let lost_by = grace.and_then(|grace| self.loss.ends_at(self.lost_after(grace)));
        self.give_up_at.into_iter().chain(is_due.then_some(self.limits.answer_by)).chain(lost_by).min()
    }

    /// Returns how long a loss may last.
    pub(super) fn lost_after(&self, grace: Duration) -> Duration {
        if self.ends_when_lost { self.limits.ending } else { self.limits.lost_after.unwrap_or(grace) }
    }

    /// Returns how long a loss may last where the command does not end by it.
    pub(super) fn watch_lost_after(&self) -> Option<Duration> {
        self.limits.lost_after
    }
}

/// Waits until then; for ever without a time.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
