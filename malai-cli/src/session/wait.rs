//! Waiting for the end of a session, over as many connections as it takes.

use std::time::Duration;

use malai_protocol::codec::Kind as FrameKind;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::session::ExitRecord;
use malai_protocol::sessions::Wait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::ask::{Answers, Reply, ask};
use super::failures;
use super::name::SessionName;
use super::patience::{ANSWER_MARGIN, LOSS_TOLD_AFTER, Loss, RECONNECT_INTERVAL, until};
use crate::client::{DialOptions, Dialler};

/// Says how long waiting may take for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitLimits {
    /// How long it may take to reach the machine.
    pub(crate) connect: Duration,
    /// The time between the beginnings of two tries.
    pub(crate) retry: Duration,
    /// How long a loss lasts before the user hears of it.
    pub(crate) say_after: Duration,
    /// How long a loss may last.
    pub(crate) lost_after: Duration,
}

impl WaitLimits {
    /// Returns the limits of a user who gives these two.
    pub(crate) fn new(connect: Duration, lost_after: Duration) -> Self {
        Self { connect, retry: RECONNECT_INTERVAL, say_after: LOSS_TOLD_AFTER, lost_after }
    }
}

/// Waits until a session is over, and returns its record. `say` gets what the user is to hear meanwhile.
///
/// # Errors
/// The target's refusal; why the target cannot be asked; or that it could not be asked again for too long.
pub(crate) async fn wait<S: AsyncRead + AsyncWrite + Unpin>(
    dialler: &mut Dialler<S>,
    name: &SessionName,
    owner: Option<MachineId>,
    limits: WaitLimits,
    say: impl FnMut(&str),
) -> Result<ExitRecord, Failure> {
    let question = Wait { owner, id: name.id };
    let mut waiter = Waiter { name, limits, loss: Loss::default(), say };
    loop {
        let began = Instant::now();
        let dial = DialOptions { agent: waiter.loss.begin_try() };
        let asked =
            async { ask(dialler(dial).await?, &name.target, limits.connect, (FrameKind::Wait, &question)).await };
        match waiter.while_lost(true, asked).await? {
            Ok(answers) => {
                if let Some(record) = waiter.answer(answers).await? {
                    return Ok(record);
                }
            }
            Err(failure) if !waiter.loss.is_some() => return Err(failure),
            Err(failure) => waiter.loss.begin(Some(failure)),
        }
        waiter.while_lost(true, sleep_until(began + limits.retry)).await?;
    }
}

struct Waiter<'a, F> {
    name: &'a SessionName,
    limits: WaitLimits,
    loss: Loss,
    say: F,
}

impl<F: FnMut(&str)> Waiter<'_, F> {
    /// Returns the record; `None` when the connection was lost.
    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut answers: Answers<S>,
    ) -> Result<Option<ExitRecord>, Failure> {
        match self.reply(&mut answers).await? {
            Reply::Frame(frame) if frame.kind == FrameKind::Exit => {
                let record = answers.decode(&frame)?;
                answers.farewell().await;
                return Ok(Some(record));
            }
            Reply::Frame(frame) => return Err(answers.unexpected(&frame)),
            Reply::Refused(failure) if self.may_pass(&failure) => self.loss.begin(Some(failure)),
            Reply::Refused(failure) => return Err(failure),
            Reply::Lost => self.loss.begin(None),
        }
        Ok(None)
    }

    /// Returns the reply, which comes with the end of the session and not before. A question that is not refused for as
    /// long as reaching the machine may take has reached it; until then nobody knows, and nothing is said.
    async fn reply<S: AsyncRead + AsyncWrite + Unpin>(&mut self, answers: &mut Answers<S>) -> Result<Reply, Failure> {
        if self.loss.is_some() {
            let settled = self.limits.connect.saturating_add(ANSWER_MARGIN);
            if let Ok(reply) = self.while_lost(false, timeout(settled, answers.next())).await? {
                return reply;
            }
            if let Some(after) = self.loss.end() {
                let after = after.as_secs();
                (self.say)(&format!("connection to {} is back after {after} s", self.name.target));
            }
        }
        answers.next().await
    }

    /// Tells whether the refusal comes from the way there, and may be another one later.
    fn may_pass(&self, failure: &Failure) -> bool {
        let later = matches!(failure.kind, Kind::NotConfigured | Kind::Busy | Kind::Internal);
        failure.kind == Kind::Unreachable || (later && self.loss.is_some())
    }

    /// Does something. While the connection is lost, tells the user when `tells`, and gives up in the end.
    async fn while_lost<T>(&mut self, tells: bool, step: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(step);
        loop {
            let tell_at = self.loss.tell_at(self.limits.say_after).filter(|_| tells);
            let give_up_at = self.loss.ends_at(self.limits.lost_after);
            tokio::select! {
                done = &mut step => return Ok(done),
                () = until(tell_at) => {
                    self.loss.set_told();
                    (self.say)(&format!("connection to {} lost; waiting goes on; retrying…", self.name.target));
                }
                () = until(give_up_at) => {
                    let (target, session) = (self.name.target.to_string(), self.name.to_string());
                    let (waited, why) = (Some(self.limits.lost_after), self.loss.reason());
                    return Err(failures::lost_from_view(&target, &session, waited, &why));
                }
            }
        }
    }
}
