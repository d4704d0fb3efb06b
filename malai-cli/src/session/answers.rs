//! What a frame says, at the stage of the answer at which it comes.

use bytes::Bytes;
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{Attached, ExitRecord, Output, Sent, Started, StdinAck, Superseded};
use serde::de::DeserializeOwned;

use super::request::FollowerRole;
use super::socket::{AnswerStage, Asked};
use crate::client;

/// Says what the daemon or the target answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The daemon greeted.
    Greeted,
    /// The request is on its way.
    Sent(Sent),
    /// There is no attachment, and why. What that means depends on what was asked before.
    Refused(Failure),
    /// The session is there, and goes on at the byte that this says.
    Attached(Attached),
    /// The command runs. When the request was sent again, input begins only now.
    Started { started: Started, is_again: bool },
    /// Another process follows the session now.
    Superseded(Superseded),
    /// The command took input.
    InputTaken(StdinAck),
    /// The command takes no more input.
    InputClosed,
    /// A piece of the command's output.
    Output(Output, Bytes),
    /// The command ended.
    Ended(ExitRecord),
    /// There will be no result, and why.
    Failed(Failure),
    /// Nothing that counts here.
    Nothing,
}

/// Reads a frame.
///
/// # Errors
/// What is against the rules.
pub(super) fn read(frame: &Frame, stage: AnswerStage, asked: Asked, role: FollowerRole) -> Result<Answer, String> {
    use AnswerStage::{Attached, Greeting, Running, Waiting};
    let is_watcher = role == FollowerRole::Watcher;
    Ok(match (frame.kind, stage) {
        (FrameKind::LocalHello, Greeting) => match client::check_greeting(frame) {
            Ok(_) => Answer::Greeted,
            // The request is sent already, so that another version's daemon may have started it.
            Err(failure) => Answer::Failed(Failure { kind: Kind::Unknown, ..failure }),
        },
        (FrameKind::Sent, Waiting) => Answer::Sent(decode(frame)?),
        (FrameKind::Refused, Waiting) => Answer::Refused(decode(frame)?),
        // The target has the session, so its word is final.
        (FrameKind::Refused, Attached) => Answer::Failed(decode(frame)?),
        // Output may come before the target says that nobody knows how the session ended.
        (FrameKind::Refused, Running) if is_watcher => Answer::Failed(decode(frame)?),
        // The command could not be ended: it did start, and nobody will know how it ends.
        (FrameKind::Refused, Running) => Answer::Failed(Failure { kind: Kind::Unknown, ..decode(frame)? }),
        (FrameKind::Attached, Waiting) if asked != Asked::Exec => Answer::Attached(decode(frame)?),
        // Some of the output was dropped before it came here.
        (FrameKind::Attached, Running) if is_watcher => Answer::Attached(decode(frame)?),
        (FrameKind::Started, Waiting) if asked != Asked::Attach => {
            Answer::Started { started: decode(frame)?, is_again: asked == Asked::Again }
        }
        (FrameKind::Started, Attached) => Answer::Started { started: decode(frame)?, is_again: false },
        (FrameKind::Superseded, Waiting | Attached | Running) => Answer::Superseded(decode(frame)?),
        // A process that looks on has sent no input.
        (FrameKind::StdinAck, Attached | Running) if is_watcher => Answer::Nothing,
        (FrameKind::StdinAck, Attached | Running) => Answer::InputTaken(decode(frame)?),
        (FrameKind::StdinClosed, Attached | Running) => Answer::InputClosed,
        (FrameKind::Stdout, Running) => Answer::Output(Output::Stdout, frame.payload.clone()),
        (FrameKind::Stderr, Running) => Answer::Output(Output::Stderr, frame.payload.clone()),
        (FrameKind::Exit, Running) => Answer::Ended(decode(frame)?),
        (kind, _) => return Err(format!("a {kind:?} frame where none may come")),
    })
}

fn decode<T: DeserializeOwned>(frame: &Frame) -> Result<T, String> {
    frame.decode().map_err(|e| e.to_string())
}
