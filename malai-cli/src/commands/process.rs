//! What this process gives to a session: connections, its streams, its patience, random numbers.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::Context;
use crate::client;
use crate::session::{ANSWER_MARGIN, Begin, Connect, Dial, Patience, Sink, Source};
use crate::stdio::Descriptor;

/// How long HUP or TERM may take to end the command before the caller counts as gone.
const ENDING: Duration = Duration::from_secs(5);
/// Two INT within this time mean that the caller is gone.
const SECOND_INT: Duration = Duration::from_secs(2);
/// Sets the time within which two signals of one kind count as one.
const SAME_SIGNAL_INTERVAL: Duration = Duration::from_millis(100);
/// Between two tries to follow a command again, or to ask about it.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// A loss is told when it lasts longer.
pub(super) const SAY_AFTER: Duration = Duration::from_secs(1);

/// How long a session that began at `started` waits for what.
pub(super) fn patience(started: Instant, connect_timeout: Duration, lost_after: Option<Duration>) -> Patience {
    let connect_by = started + connect_timeout;
    Patience {
        connect_by,
        answer_by: connect_by + ANSWER_MARGIN,
        reconnect: connect_timeout,
        retry: RETRY,
        say_after: SAY_AFTER,
        lost_after,
        ending: ENDING,
        second_int: SECOND_INT,
        same_signal: SAME_SIGNAL_INTERVAL,
        gone: None,
        wait_until: None,
    }
}

/// An id that nobody else has.
///
/// # Errors
/// When the system has no random numbers.
pub(super) fn random() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Failure::new(Kind::Internal, format!("no random numbers: {e}")))?;
    Ok(bytes)
}

/// Connections to the daemon, or to an agent.
pub(super) fn connect(cx: &Context) -> Connect<UnixStream> {
    let (home, out) = (cx.home.clone(), cx.out);
    Box::new(move |Dial { agent, .. }| {
        let home = home.clone();
        Box::pin(async move {
            if agent {
                return client::dial_or_start(&home, out).await;
            }
            client::dial(&home).await?.ok_or_else(|| Failure::new(Kind::Internal, "no daemon runs here"))
        })
    })
}

/// The failure of a process that does not get what it needs.
pub(super) fn local(e: &std::io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("this process cannot get what it needs: {e}"))
}

/// Standard input.
///
/// # Errors
/// When it cannot be read on a thread.
pub(super) fn source(begin: Begin) -> Result<Source, Failure> {
    Descriptor::of(&std::io::stdin()).and_then(|stdin| Source::of(stdin, begin)).map_err(|e| local(&e))
}

/// Standard output and error.
///
/// # Errors
/// When they cannot be written on a thread.
pub(super) fn sink() -> Result<Sink, Failure> {
    let stdout = Descriptor::of(&std::io::stdout()).map_err(|e| local(&e))?;
    let stderr = Descriptor::of(&std::io::stderr()).map_err(|e| local(&e))?;
    Sink::start(stdout, stderr).map_err(|e| local(&e))
}
