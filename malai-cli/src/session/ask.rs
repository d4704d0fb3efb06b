//! Questions about sessions: a connection to the daemon for each, one question on it, and one answer.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::{Request, SessionTarget};
use malai_protocol::session::ExitRecord;
use malai_protocol::sessions::{Kill, List, Listed, Summary};
use malai_protocol::target::Target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::name::SessionName;
use super::patience::ANSWER_MARGIN;
use super::socket::FAREWELL_TIMEOUT;
use crate::client::{self, DialOptions, Dialler};
use crate::duration;

/// Bounds the sessions that one machine may list: more than it runs at once and keeps, and no list without an end.
pub(super) const MAX_LISTED_SESSIONS: usize = 8192;

/// Says what came of a question.
pub(super) enum Reply {
    /// A frame.
    Frame(Frame),
    /// Why there is no answer.
    Refused(Failure),
    /// The connection ended.
    Lost,
}

/// Holds a question that was asked.
pub(super) struct Answers<S> {
    frames: Framed<S, FrameCodec>,
    /// The machine, for people.
    target: String,
}

/// Asks on this new connection to the daemon.
///
/// # Errors
/// When the daemon's answer is not understood: nothing was asked.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin, T: Serialize>(
    stream: S,
    target: &Target,
    within: Duration,
    (kind, question): (FrameKind, &T),
) -> Result<Answers<S>, Failure> {
    let to = SessionTarget {
        machine: target.machine.clone(),
        cluster: target.cluster.clone(),
        connect_timeout_ms: duration::millis(within),
        gone_timeout_ms: None,
        wait: false,
        attachment: None,
    };
    let form = |e| Failure::new(Kind::Internal, format!("cannot encode the question: {e}"));
    let request = Frame::control(FrameKind::Request, &Request::Session(to)).map_err(form)?;
    let question = Frame::control(kind, question).map_err(form)?;
    let (mut frames, _) = client::greet(stream).await?;
    let send = async {
        frames.feed(request).await?;
        frames.send(question).await
    };
    // A daemon that reads no more may have said why. That, or the end, is what is read next.
    drop::<Result<(), CodecError>>(send.await);
    Ok(Answers { frames, target: target.to_string() })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Answers<S> {
    /// Returns what comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Reply, Failure> {
        match self.frames.next().await {
            None => Ok(Reply::Lost),
            Some(Err(e)) if client::is_loss(&e) => Ok(Reply::Lost),
            Some(Err(e)) => Err(self.broken(&e.to_string())),
            Some(Ok(frame)) if frame.kind == FrameKind::Refused => Ok(Reply::Refused(self.decode(&frame)?)),
            Some(Ok(frame)) => Ok(Reply::Frame(frame)),
        }
    }

    pub(super) fn decode<T: DeserializeOwned>(&self, frame: &Frame) -> Result<T, Failure> {
        frame.decode().map_err(|e| self.broken(&e.to_string()))
    }

    /// Returns the failure for an answer that fits no question.
    pub(super) fn unexpected(&self, frame: &Frame) -> Failure {
        self.broken(&format!("a {:?} frame where none may come", frame.kind))
    }

    fn broken(&self, why: &str) -> Failure {
        Failure::new(Kind::Internal, format!("cannot understand the answer of {}: {why}", self.target))
            .hint(client::RESTART_HINT)
    }

    /// Leaves in good order.
    pub(super) async fn farewell(mut self) {
        // The answer is here: nothing depends on whether the daemon hears of it.
        drop(timeout(FAREWELL_TIMEOUT, self.frames.send(Frame::empty(FrameKind::Goodbye))).await);
    }
}

/// Lists all sessions at a machine that this one may see.
///
/// # Errors
/// When the list cannot be had, or not to its end.
pub(crate) async fn list<S: AsyncRead + AsyncWrite + Unpin>(
    dialler: &mut Dialler<S>,
    target: &Target,
    within: Duration,
) -> Result<Vec<Summary>, Failure> {
    let late = |_| {
        Failure::new(Kind::Unreachable, format!("{target} did not answer within {}", duration::words(within)))
            .hint("wait longer: --connect-timeout 30s")
    };
    // The start of an agent is no part of the machine's time.
    let stream = dialler(DialOptions { agent: true }).await?;
    timeout(within.saturating_add(ANSWER_MARGIN), list_untimed(stream, target, within)).await.map_err(late)?
}

async fn list_untimed<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    target: &Target,
    within: Duration,
) -> Result<Vec<Summary>, Failure> {
    let mut answers = ask(stream, target, within, (FrameKind::List, &List {})).await?;
    let mut sessions = Vec::new();
    loop {
        let listed: Listed = match answers.next().await? {
            Reply::Frame(frame) if frame.kind == FrameKind::Listed => answers.decode(&frame)?,
            Reply::Frame(frame) => return Err(answers.unexpected(&frame)),
            Reply::Refused(failure) => return Err(failure),
            Reply::Lost => {
                return Err(Failure::new(
                    Kind::Unreachable,
                    format!("connection to {target} lost before all its sessions were listed"),
                )
                .hint("whether the machine is there: malai status"));
            }
        };
        if listed.more && listed.sessions.is_empty() {
            return Err(answers.broken("the list has an empty part"));
        }
        sessions.extend(listed.sessions);
        if sessions.len() > MAX_LISTED_SESSIONS {
            let message =
                format!("{target} lists more than {MAX_LISTED_SESSIONS} sessions, which is more than a machine keeps");
            return Err(Failure::new(Kind::Internal, message));
        }
        if !listed.more {
            answers.farewell().await;
            return Ok(sessions);
        }
    }
}

/// Says what came of [`kill`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Killed {
    /// The signal was sent.
    Signalled,
    /// The session is over.
    Ended(ExitRecord),
}

/// Ends a session, or signals its command.
///
/// # Errors
/// When it was refused, or what came of it is not known.
pub(crate) async fn kill<S: AsyncRead + AsyncWrite + Unpin>(
    dialler: &mut Dialler<S>,
    name: &SessionName,
    owner: Option<MachineId>,
    signal: Option<u8>,
    within: Duration,
) -> Result<Killed, Failure> {
    let question = Kill { owner, id: name.id, signal };
    let stream = dialler(DialOptions { agent: true }).await?;
    let mut answers = ask(stream, &name.target, within, (FrameKind::Kill, &question)).await?;
    // It may have been done although the answer is not understood.
    let unknown = |failure: Failure| {
        let what = if signal.is_some() { "signalled" } else { "ended" };
        Failure::new(Kind::Unknown, format!("{}; whether {name} was {what} is not known", failure.message))
            .hint(format!("see: malai sessions {}", name.target))
    };
    let killed = match answers.next().await.map_err(unknown)? {
        Reply::Frame(frame) if frame.kind == FrameKind::Killed && signal.is_some() => Killed::Signalled,
        Reply::Frame(frame) if frame.kind == FrameKind::Exit && signal.is_none() => {
            Killed::Ended(answers.decode(&frame).map_err(unknown)?)
        }
        Reply::Frame(frame) => return Err(unknown(answers.unexpected(&frame))),
        Reply::Refused(failure) => return Err(failure),
        Reply::Lost => {
            let message = format!("connection to {} lost before it answered", name.target);
            return Err(unknown(Failure::new(Kind::Unknown, message)));
        }
    };
    answers.farewell().await;
    Ok(killed)
}
