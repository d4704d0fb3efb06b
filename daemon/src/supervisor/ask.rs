//! Questions to the executor, each on a connection of its own.

use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::plan::{Hello, Inventory, Known};

use super::{ANSWER, Executor, broken, lost};
use crate::executor::Connection;

/// `Inventory` in so many frames at most: far more than the executor's own bounds allow.
const MAX_PARTS: usize = 64;

impl Executor {
    /// Asks for what is answered by one frame, however long that takes.
    ///
    /// # Errors
    /// When the executor is gone.
    pub async fn ask(&self, question: &Hello) -> Result<Frame, Failure> {
        let mut framed = self.question(question).await?;
        next(&mut framed).await
    }

    /// The sessions that live, and the detached ones that are over and whose output is kept; in the order in which they
    /// began.
    ///
    /// # Errors
    /// When the executor is gone, or does not answer in time.
    pub async fn inventory(&self) -> Result<Vec<Known>, Failure> {
        let all = async {
            let mut framed = self.question(&Hello::List).await?;
            let mut all = Vec::new();
            for _ in 0..MAX_PARTS {
                let part = next(&mut framed).await?;
                let Inventory { sessions, more } = part.expect(Kind::Inventory, "its sessions").map_err(broken)?;
                all.extend(sessions);
                if !more {
                    return Ok(all);
                }
            }
            Err(Failure::new(failure::Kind::Internal, "the executor tells of more sessions than it can have"))
        };
        let late = |_| Failure::new(failure::Kind::Internal, "the executor does not tell its sessions in time");
        timeout(ANSWER, all).await.map_err(late)?
    }

    async fn question(&self, question: &Hello) -> Result<Framed<Connection, FrameCodec>, Failure> {
        let mut framed = Framed::new(self.inner.dial.connect().await?, FrameCodec::new());
        framed.send(Frame::control(Kind::ExecutorHello, question).map_err(broken)?).await.map_err(broken)?;
        Ok(framed)
    }
}

async fn next(framed: &mut Framed<Connection, FrameCodec>) -> Result<Frame, Failure> {
    framed.next().await.ok_or_else(lost)?.map_err(broken)
}
