//! Taking over the lock from an agent.

use std::time::Duration;

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::home::Home;
use malai_protocol::local::{Hello, Request, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::store::lock::{Attempt, Lock, Part};

/// An agent that was asked to leave does so within 2 s; a little more for a busy machine.
const YIELD: Duration = Duration::from_secs(5);
/// How often the lock is tried while the agent is on its way out.
const POLL: Duration = Duration::from_millis(20);

/// Takes the lock. A daemon asks an agent that holds it to leave first.
///
/// # Errors
/// [`Failure`] of kind `conflict` when a daemon, or an agent that does not leave, holds it.
pub(crate) async fn lock(home: &Home, part: Part) -> Result<Lock, Failure> {
    match Lock::try_take(home, part)? {
        Attempt::Taken(lock) => return Ok(lock),
        Attempt::Held(holder) if part == Part::Daemon && holder.agent && holder.answers => {}
        Attempt::Held(_) => return Lock::take(home, part),
    }
    match tokio::time::timeout(YIELD, after_the_agent(home)).await {
        Ok(taken) => taken,
        Err(_) => Lock::take(home, part),
    }
}

/// Asks the agent to leave, and takes the lock that it releases.
async fn after_the_agent(home: &Home) -> Result<Lock, Failure> {
    ask_to_leave(home)
        .await
        .map_err(|e| Failure::new(FailureKind::Conflict, format!("the agent does not leave: {e:#}")))?;
    loop {
        match Lock::try_take(home, Part::Daemon)? {
            Attempt::Taken(lock) => return Ok(lock),
            Attempt::Held(holder) if !holder.agent => return Lock::take(home, Part::Daemon),
            Attempt::Held(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Sends `Yield`, and waits until the agent has closed the connection.
async fn ask_to_leave(home: &Home) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(home.socket()).await?;
    let hello = Hello { version: VERSION, malai: crate::VERSION.to_owned(), pid: std::process::id(), agent: false };
    stream.write_all(&Frame::control(Kind::LocalHello, &hello)?.to_bytes()).await?;
    stream.write_all(&Frame::control(Kind::Request, &Request::Yield)?.to_bytes()).await?;
    // What it answers does not matter, its end does.
    stream.take(64 * 1024).read_to_end(&mut Vec::new()).await?;
    Ok(())
}
