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
const POLL: Duration = Duration::from_millis(5);

/// Takes the lock. A daemon asks an agent that holds it to leave first, and waits for one that is on its way in or out.
/// Another command may start the next agent in the moment between: that one is asked too. A daemon that does not answer is
/// waited for as well: it may be starting, and one that was killed holds the lock until the system has cleared it away.
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
    let mut asked = None;
    loop {
        let holder = match Lock::try_take(home, part)? {
            Attempt::Taken(lock) => return Ok(lock),
            Attempt::Held(holder) => holder,
        };
        // Who does not answer is just coming or going, and may be an agent.
        if part == Part::Agent || (holder.answers && !holder.agent) {
            return Lock::take(home, part);
        }
        if holder.answers && asked != holder.pid {
            asked = holder.pid;
            // An agent that has just left by itself cannot be asked: the next look tells.
            if let Err(error) = ask_to_leave(home).await {
                tracing::info!("the agent was not asked to leave: {error:#}");
            }
        } else {
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn ask_to_leave(home: &Home) -> anyhow::Result<()> {
    ask(home, &Request::Yield).await
}

/// Sends a request to the agent, and waits until that has closed the connection.
///
/// # Errors
/// What the socket says.
pub(crate) async fn ask(home: &Home, request: &Request) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(home.socket()).await?;
    let hello = Hello { version: VERSION, malai: crate::VERSION.to_owned(), pid: std::process::id(), agent: false };
    stream.write_all(&Frame::control(Kind::LocalHello, &hello)?.to_bytes()).await?;
    stream.write_all(&Frame::control(Kind::Request, request)?.to_bytes()).await?;
    // What it answers does not matter, its end does.
    stream.take(64 * 1024).read_to_end(&mut Vec::new()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use malai_protocol::codec::FrameCodec;
    use tokio::net::UnixListener;
    use tokio_util::codec::Decoder;

    use super::*;

    /// Says hello as agents of these pids in turn, each until it was asked to leave.
    async fn agents(listener: UnixListener, pids: [u32; 3]) {
        for pid in pids {
            let mut asked = false;
            while !asked {
                let (mut stream, _) = listener.accept().await.expect("connects");
                let hello = Hello { version: VERSION, malai: "1".into(), pid, agent: true };
                let frame = Frame::control(Kind::LocalHello, &hello).expect("encodes");
                stream.write_all(&frame.to_bytes()).await.expect("writes");
                let (mut codec, mut got) = (FrameCodec::new(), BytesMut::new());
                while !asked && matches!(stream.read_buf(&mut got).await, Ok(1..)) {
                    while let Some(frame) = codec.decode(&mut got).expect("frames") {
                        asked |= frame.kind == Kind::Request;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_daemon_that_was_killed_a_moment_ago_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let held = Lock::take(&home, Part::Daemon).expect("free");
        // The first is polled first: it finds the lock held by somebody who does not answer.
        let (taken, ()) = tokio::join!(lock(&home, Part::Daemon), async { drop(held) });
        assert!(taken.is_ok(), "{taken:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_agent_that_comes_in_between_is_asked_to_leave() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path().join("home"));
        let held = Lock::take(&home, Part::Agent).expect("free");
        let listener = UnixListener::bind(home.socket()).expect("binds");
        let leaving = tokio::spawn(async move {
            agents(listener, [7, 8, 9]).await;
            drop(held);
        });
        drop(lock(&home, Part::Daemon).await.expect("the last one has left"));
        leaving.await.expect("each was asked");
    }
}
