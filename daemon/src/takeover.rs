//! Taking over the lock from an agent.

use std::time::Duration;

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::local::{Hello, Request, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::store::lock::{Attempt, Lock, Part};

/// An agent that was asked to leave does so within 2 s; a little more for a busy machine.
const YIELD: Duration = Duration::from_secs(5);
/// How often the lock is tried while the agent is on its way out.
const POLL: Duration = Duration::from_millis(20);

/// Takes the lock. A daemon asks an agent that holds it to leave first, and waits for one that is on its way in or out.
///
/// # Errors
/// [`Failure`] of kind `conflict` when a daemon, or an agent that does not leave, holds it.
pub(crate) async fn lock(home: &Home, part: Part) -> Result<Lock, Failure> {
    match tokio::time::timeout(YIELD, after_the_agent(home, part)).await {
        Ok(taken) => taken,
        Err(_) => Lock::take(home, part),
    }
}

async fn after_the_agent(home: &Home, part: Part) -> Result<Lock, Failure> {
    let mut asked = false;
    loop {
        let holder = match Lock::try_take(home, part)? {
            Attempt::Taken(lock) => return Ok(lock),
            Attempt::Held(holder) => holder,
        };
        // Without a pid it is just coming or going, and may be an agent.
        if part == Part::Agent || (holder.pid.is_some() && !holder.agent) {
            return Lock::take(home, part);
        }
        if holder.agent && holder.answers && !asked {
            asked = true;
            // An agent that has just left by itself cannot be asked: the next look tells.
            if let Err(error) = ask_to_leave(home).await {
                tracing::info!("the agent was not asked to leave: {error:#}");
            }
        } else {
            tokio::time::sleep(POLL).await;
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
