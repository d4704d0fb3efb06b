//! Taking over the lock from an agent.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::local::Request;

use super::{Attempt, Lock, Part, find_holder, wait_for_release};
use crate::runtime::blocking::blocking;
use crate::store::greeting::ask_and_wait;

/// Bounds how long an agent may take to leave: it does so within 2 s, and this is a little more for a busy machine.
const AGENT_LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Sets the time between two looks whether the holder of the lock answers by now. Its release is seen at once.
const HOLDER_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Takes the lock. A daemon asks an agent that holds it to leave first, and waits for one that is on its way in or out.
/// Another command may start the next agent in the moment between: that one is asked too. A daemon that does not answer is
/// waited for as well: it may be starting, and one that was killed holds the lock until the system has cleared it away.
///
/// # Errors
/// [`Failure`] of kind `conflict` when a daemon, or an agent that does not leave, holds it.
pub(crate) async fn take_over(home: &Home, part: Part) -> Result<Lock, Failure> {
    match tokio::time::timeout(AGENT_LEAVE_TIMEOUT, after_the_agent(home, part)).await {
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
        // A holder that does not answer is starting or ending, and may be an agent.
        if part == Part::Agent || (holder.answers && !holder.agent) {
            return Lock::take(home, part);
        }
        let (home, is_new) = (home.clone(), holder.answers && asked != holder.pid);
        if is_new {
            asked = holder.pid;
        }
        blocking(move || {
            if is_new {
                // An agent that has just left by itself cannot be asked: the next look tells.
                if let Err(error) = ask_and_wait(&home, &Request::Yield, AGENT_LEAVE_TIMEOUT) {
                    tracing::info!("the agent was not asked to leave: {error:#}");
                }
                return Ok(());
            }
            match find_holder(&home)? {
                Some(held) => wait_for_release(&home, &held, HOLDER_LOOK_INTERVAL).map(drop),
                None => Ok(()),
            }
        })
        .await?;
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use malai_protocol::codec::{Frame, FrameCodec, Kind};
    use malai_protocol::local::Hello;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio_util::codec::Decoder;

    use super::*;

    /// Says hello as agents of these pids in turn, each until it was asked to leave.
    async fn agents(listener: UnixListener, pids: [u32; 3]) {
        for pid in pids {
            let mut asked = false;
            while !asked {
                let (mut stream, _) = listener.accept().await.expect("connects");
                let hello = Hello::new("1", pid, true);
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
        // The first is polled first: it finds the lock held by a process that does not answer.
        let (taken, ()) = tokio::join!(take_over(&home, Part::Daemon), async { drop(held) });
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
        drop(take_over(&home, Part::Daemon).await.expect("the last one has left"));
        leaving.await.expect("each was asked");
    }
}
