//! The end of a session: what is left of the output is written, and the result is compared with it.

use std::time::Duration;

use futures_util::{SinkExt, Stream, StreamExt};
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::Failure;
use malai_protocol::id::MachineId;
use malai_protocol::local::{ClusterStatus, Request, Response};
use malai_protocol::session::{ExitRecord, Started};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::events::SessionEvent;
use super::failures;
use super::output::Output;
use super::patience::until;
use super::signals::SignalQueue;
use super::sink::SinkEvent;
use crate::client::{self, Dialling};

/// Bounds how long what was received is still written when the caller gives up.
const GIVING_UP_TIMEOUT: Duration = Duration::from_millis(200);
/// Bounds how long the daemon here may take to name a machine. Without a name, malai shows its key.
const NAMING_TIMEOUT: Duration = Duration::from_secs(2);

/// Says how following ended.
#[derive(Debug)]
pub(crate) enum SessionEnd {
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

/// Shows the outcome as an object, the last one, where objects are wanted.
pub(super) fn show(output: &mut Output, target: &str, outcome: &Result<SessionEnd, Failure>) -> Result<(), Failure> {
    match outcome {
        Ok(SessionEnd::Ended(record)) => {
            output.object(&SessionEvent::Exit { target, code: record.exit_code(), record })
        }
        Ok(SessionEnd::Left { signal, .. }) => {
            output.object(&SessionEvent::Left { target, code: 128u8.saturating_add(*signal) })
        }
        Ok(SessionEnd::Detached(_)) => Ok(()),
        Err(error) => output.object(&SessionEvent::Error { target, code: error.kind.exit_code(), error }),
    }
}

/// Writes out what is left: all of it, unless a signal comes, or the caller `gave_up`.
pub(super) async fn write_out<G>(output: &mut Output, signals: &mut SignalQueue<G>, gave_up: bool)
where
    G: Stream<Item = u8> + Unpin,
{
    output.close();
    let give_up_at = gave_up.then(|| Instant::now() + GIVING_UP_TIMEOUT);
    loop {
        tokio::select! {
            event = output.next() => match event {
                Some(SinkEvent::Broken(stream, error)) => output.note_broken(stream, &error),
                Some(SinkEvent::Written { .. }) => {}
                None => return,
            },
            Some(number) = signals.next() => {
                if signals.is_new(number) {
                    output.cut(|| "interrupted before all output was written".into());
                    return;
                }
            }
            () = until(give_up_at) => return,
        }
    }
}

/// Checks that nothing of an ended session is missing.
pub(super) fn check(end: SessionEnd, target: &str, missing: Option<&str>) -> Result<SessionEnd, Failure> {
    match (&end, missing) {
        (SessionEnd::Ended(record), Some(missing)) => Err(failures::incomplete(target, record, missing)),
        _ => Ok(end),
    }
}

/// Asks the daemon here for the name of a machine, in this cluster or in the only one that has it.
pub(super) async fn name_of<S: AsyncRead + AsyncWrite>(
    dialling: Dialling<S>,
    cluster: Option<&str>,
    machine: MachineId,
) -> Option<String> {
    let ask = async {
        let (mut frames, _) = client::greet(Box::pin(dialling.await.ok()?)).await.ok()?;
        frames.send(Frame::control(FrameKind::Request, &Request::Status).ok()?).await.ok()?;
        let Response::Status(status) = frames.next().await?.ok()?.decode().ok()? else { return None };
        let clusters = status.clusters.iter().filter(|one| cluster.is_none_or(|alias| alias == one.alias));
        let named = |one: &ClusterStatus| {
            let known = one.machines.iter().find(|known| known.id == machine)?;
            Some(format!("{}.{}", known.name, one.alias))
        };
        clusters.filter_map(named).next()
    };
    timeout(NAMING_TIMEOUT, ask).await.ok().flatten()
}
