//! Questions about sessions, each on a connection of its own: which there are, how one ended, and to end one.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::codec::FramedRead;

use malai_protocol::audit::printable;
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::plan::{Faults, Inventory, Known, Live, Outcome, Retired, SessionName};
use malai_protocol::session::EndedBy;
use malai_protocol::sessions::{MAX_COMMAND, State, Summary};

use crate::runtime::duty;

use crate::executor::process::tree::GRACE;
use crate::executor::table::{Cause, Command, Record};
use crate::executor::{Connection, Shared, session};
use crate::runtime::logging::Log;

/// Sessions in one frame: each takes at most 2 KiB.
const PART: usize = 1024;

/// What is asked.
#[derive(Debug)]
pub(crate) enum Question {
    /// Which sessions are there?
    List,
    /// To leave, if there is nothing to come back for.
    Retire,
    /// How many faults were there?
    Faults,
    /// How did this one end? Answered when it has.
    Wait(SessionName),
    /// To signal it.
    Signal(SessionName, u8),
    /// To end it; why, in words. Answered when it has ended.
    End(SessionName, String),
}

/// The two halves of the connection that it came by.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) reader: FramedRead<ReadHalf<Connection>, FrameCodec>,
    pub(crate) writer: WriteHalf<Connection>,
    /// Among those that have not said yet what they are for.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Answers one question, unless whoever asked leaves before there is an answer.
pub(crate) async fn answer(shared: &Arc<Shared>, question: Question, asking: Asking) {
    let Asking { mut reader, mut writer, permit } = asking;
    drop(permit);
    let Ok(_permit) = shared.asking.clone().try_acquire_owned() else {
        let failure = Failure::new(failure::Kind::Busy, "too many wait for the ends of sessions on that machine")
            .hint("try again in a while");
        return tell(&mut writer, vec![Frame::control(Kind::Refused, &failure)]).await;
    };
    let answer = async {
        match question {
            Question::List => inventory(shared),
            Question::Retire => {
                let leaves = shared.table.close_if_idle();
                vec![Frame::control(Kind::Retired, &Retired { leaves })]
            }
            Question::Faults => vec![Frame::control(Kind::Faults, &Faults { panics: duty::panics() })],
            Question::Wait(name) => vec![over(shared, name).await],
            Question::Signal(name, number) => vec![signal(shared, name, number)],
            Question::End(name, reason) => {
                let cause = Cause { by: EndedBy::Killed, reason: Some(reason), grace: GRACE };
                shared.table.tell(name, Command::End(cause));
                vec![over(shared, name).await]
            }
        }
    };
    let frames = tokio::select! {
        frames = answer => frames,
        // Whatever it says now, it is nothing that was asked for.
        _ = reader.next() => return,
    };
    tell(&mut writer, frames).await;
}

async fn tell(writer: &mut WriteHalf<Connection>, frames: Vec<Result<Frame, CodecError>>) {
    let sent = async {
        for frame in frames {
            writer.write_all(&frame?.to_bytes()).await?;
        }
        writer.shutdown().await?;
        Ok::<(), CodecError>(())
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "an answer was not delivered");
    }
}

fn inventory(shared: &Shared) -> Vec<Result<Frame, CodecError>> {
    let kept = shared.spools.kept();
    // One that is just over may be in both.
    let over: HashSet<_> = kept.iter().map(|kept| kept.about.session).collect();
    let live = shared.table.all_live(|live| (!over.contains(&live.session)).then(|| known(live, State::Running)));
    let kept = kept.iter().map(|kept| known(&kept.about, state(&kept.end.outcome)));
    let mut sessions: Vec<Known> = live.into_iter().chain(kept).collect();
    sessions.sort_by_key(|known| known.summary.since_ms);
    let mut parts: Vec<_> = sessions.chunks(PART).map(<[Known]>::to_vec).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let last = parts.len() - 1;
    let parts = parts.into_iter().enumerate();
    let lost_log = shared.log.as_ref().and_then(Log::lost);
    let part = |(i, sessions)| Inventory { sessions, more: i < last, lost_log: lost_log.clone() };
    parts.map(|part_of| Frame::control(Kind::Inventory, &part(part_of))).collect()
}

fn state(outcome: &Outcome) -> State {
    match outcome {
        Outcome::Exit(record) => State::Ended(record.clone()),
        Outcome::Refused(failure) => State::Failed(failure.clone()),
    }
}

fn known(live: &Live, state: State) -> Known {
    let Live { session, cluster, request } = live;
    let summary = Summary {
        owner: session.caller,
        id: session.id,
        command: command(&request.words),
        detached: request.detached,
        user: request.run_as.clone(),
        since_ms: request.since_ms,
        state,
    };
    Known { cluster: *cluster, summary }
}

/// The words for people, in so many bytes at most.
fn command(words: &[serde_bytes::ByteBuf]) -> String {
    let mut text = String::new();
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        text += &printable(word.get(..MAX_COMMAND).unwrap_or(word));
        if text.len() > MAX_COMMAND {
            text.truncate(text.floor_char_boundary(MAX_COMMAND - "…".len()));
            text.push('…');
            break;
        }
    }
    text
}

/// How a session ended, once it has.
async fn over(shared: &Shared, name: SessionName) -> Result<Frame, CodecError> {
    let mut changes = shared.table.changes();
    loop {
        changes.mark_unchanged();
        if !shared.table.lives(&name) {
            return ended(shared, name);
        }
        // The table lives as long as `shared`.
        if changes.changed().await.is_err() {
            return Ok(Frame::empty(Kind::Missing));
        }
    }
}

fn ended(shared: &Shared, name: SessionName) -> Result<Frame, CodecError> {
    if let Some(kept) = shared.spools.find(&name) {
        return match &kept.end.outcome {
            Outcome::Exit(record) => Frame::control(Kind::Exit, record),
            Outcome::Refused(failure) => Frame::control(Kind::Refused, failure),
        };
    }
    match shared.table.record(&name).as_deref() {
        Some(Record::Exit(_, record)) => Frame::control(Kind::Exit, record),
        Some(Record::Refused(failure)) => Frame::control(Kind::Refused, failure),
        None => Ok(Frame::empty(Kind::Missing)),
    }
}

fn signal(shared: &Shared, name: SessionName, number: u8) -> Result<Frame, CodecError> {
    let Some(signal) = session::signal(number) else {
        let failure = Failure::new(failure::Kind::Usage, format!("{number} is not the number of a signal"))
            .hint("by name: malai kill --signal TERM …");
        return Frame::control(Kind::Refused, &failure);
    };
    if shared.table.lives(&name) {
        shared.table.tell(name, Command::Signal(signal));
        return Ok(Frame::empty(Kind::Killed));
    }
    match ended(shared, name)? {
        missing if missing.kind == Kind::Missing => Ok(missing),
        _ => {
            let failure = Failure::new(failure::Kind::Conflict, "the command is over: there is nothing to signal")
                .hint("how it ended: malai wait");
            Frame::control(Kind::Refused, &failure)
        }
    }
}
