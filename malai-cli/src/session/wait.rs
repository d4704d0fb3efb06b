//! Waiting for the end of a session, over as many connections as it takes.

use std::time::Duration;

use malai_protocol::codec::Kind as FrameKind;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::session::ExitRecord;
use malai_protocol::sessions::Wait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until};

use super::ask::{ANSWER_MARGIN, Answers, Reply, ask};
use super::connection::{Connect, Dial};
use super::follow::until;
use super::name::Name;
use crate::duration;

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// How long it may take to reach the machine.
    pub(crate) connect: Duration,
    /// Between the beginnings of two tries.
    pub(crate) retry: Duration,
    /// A loss that lasts longer is told.
    pub(crate) say_after: Duration,
    /// How long a loss may last.
    pub(crate) lost_after: Duration,
}

/// A connection that was lost, and not replaced for certain.
struct Loss {
    since: Instant,
    said: bool,
    /// Why the last try failed.
    why: Option<Failure>,
}

/// Waits until a session is over, and returns its record. `say` gets what the person has to be told meanwhile.
///
/// # Errors
/// The target's refusal; why the target cannot be asked; or that it could not be asked again for too long.
pub(crate) async fn wait<S: AsyncRead + AsyncWrite + Unpin>(
    connect: &mut Connect<S>,
    name: &Name,
    owner: Option<MachineId>,
    pace: Pace,
    say: impl FnMut(&str),
) -> Result<ExitRecord, Failure> {
    let question = Wait { owner, id: name.id };
    let mut waiter = Waiter { name, pace, loss: None, say };
    // A daemon that was just replaced is back in a moment: the first try after a loss starts no agent.
    let mut agent = true;
    loop {
        let began = Instant::now();
        let dial = Dial { within: pace.connect, agent };
        let asked = ask(connect, &name.target, dial, (FrameKind::Wait, &question));
        match waiter.while_lost(true, asked).await? {
            Ok(answers) => {
                if let Some(record) = waiter.answer(answers).await? {
                    return Ok(record);
                }
            }
            Err(failure) if waiter.loss.is_none() => return Err(failure),
            Err(failure) => waiter.lose(Some(failure)),
        }
        agent = waiter.loss.as_ref().is_some_and(|loss| loss.since < began);
        waiter.while_lost(true, sleep_until(began + pace.retry)).await?;
    }
}

struct Waiter<'a, F> {
    name: &'a Name,
    pace: Pace,
    loss: Option<Loss>,
    say: F,
}

impl<F: FnMut(&str)> Waiter<'_, F> {
    /// The record; `None` when the connection was lost.
    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut answers: Answers<S>,
    ) -> Result<Option<ExitRecord>, Failure> {
        let reply = self.reply(&mut answers).await?;
        match reply {
            Reply::Frame(frame) if frame.kind == FrameKind::Exit => {
                let record = answers.decode(&frame)?;
                answers.farewell().await;
                return Ok(Some(record));
            }
            Reply::Frame(frame) => return Err(answers.unexpected(&frame)),
            Reply::Refused(failure) if self.may_pass(&failure) => self.lose(Some(failure)),
            Reply::Refused(failure) => return Err(failure),
            Reply::Lost => self.lose(None),
        }
        Ok(None)
    }

    /// A question is not answered before the end. One that is not refused for as long as reaching the machine may take
    /// has reached it; until then nobody knows, and nothing is said.
    async fn reply<S: AsyncRead + AsyncWrite + Unpin>(&mut self, answers: &mut Answers<S>) -> Result<Reply, Failure> {
        if self.loss.is_some() {
            let settled = self.pace.connect.saturating_add(ANSWER_MARGIN);
            let first = async {
                tokio::select! {
                    reply = answers.next() => Some(reply),
                    () = sleep(settled) => None,
                }
            };
            if let Some(reply) = self.while_lost(false, first).await? {
                return reply;
            }
            self.back();
        }
        answers.next().await
    }

    /// Whether the refusal comes from the way there, and may be another one later.
    fn may_pass(&self, failure: &Failure) -> bool {
        let later = matches!(failure.kind, Kind::NotConfigured | Kind::Busy | Kind::Internal);
        failure.kind == Kind::Unreachable || (later && self.loss.is_some())
    }

    fn lose(&mut self, why: Option<Failure>) {
        let loss = self.loss.get_or_insert(Loss { since: Instant::now(), said: false, why: None });
        loss.why = why.or(loss.why.take());
    }

    fn back(&mut self) {
        if let Some(loss) = self.loss.take().filter(|loss| loss.said) {
            let after = loss.since.elapsed().as_secs();
            (self.say)(&format!("connection to {} is back after {after} s", self.name.target));
        }
    }

    /// Does something; while the connection is lost, tells of it when `says`, and gives up in the end.
    async fn while_lost<T>(&mut self, says: bool, step: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(step);
        loop {
            let say_at =
                self.loss.as_ref().filter(|loss| says && !loss.said).map(|loss| loss.since + self.pace.say_after);
            // A span that no clock can hold has no end.
            let give_up_at = self.loss.as_ref().and_then(|loss| loss.since.checked_add(self.pace.lost_after));
            tokio::select! {
                done = &mut step => return Ok(done),
                () = until(say_at) => {
                    self.loss.iter_mut().for_each(|loss| loss.said = true);
                    (self.say)(&format!("connection to {} lost; waiting goes on; retrying…", self.name.target));
                }
                () = until(give_up_at) => return Err(self.late()),
            }
        }
    }

    fn late(&self) -> Failure {
        let why = self.loss.as_ref().and_then(|loss| loss.why.as_ref());
        let why = why.map_or_else(String::new, |failure| format!(" ({})", failure.message));
        let (target, waited) = (&self.name.target, duration::words(self.pace.lost_after));
        let message =
            format!("connection to {target} lost for {waited}; whether {} ended is not known{why}", self.name);
        Failure::new(Kind::Unknown, message)
            .hint(format!("wait longer: --lost-after 1h; what runs there: malai sessions {target}"))
    }
}
