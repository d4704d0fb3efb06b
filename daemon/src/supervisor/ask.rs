//! Questions to the executor, each on a connection of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::local::LostLines;
use malai_protocol::plan::{Faults, Hello, Inventory, Known, QUESTIONS_MIN_VERSION, Retired, WATCHING_MIN_VERSION};

use super::{ANSWER, Executor, GONE, broken, lost};
use crate::executor::Connection;

/// Bounds how long a count of faults is waited for.
const FAULTS_TIMEOUT: Duration = Duration::from_secs(1);
/// `Inventory` in so many frames at most: far more than the executor's own bounds allow.
const MAX_PARTS: usize = 64;
/// Bounds how long the executor may take to say what its log lacks: a status waits no longer.
const LOG_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

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
                let Inventory { sessions, more, .. } = part.expect(Kind::Inventory, "its sessions").map_err(broken)?;
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

    /// How many faults this life of the executor had. Absent where it does not say so in time, or is this very process.
    pub(crate) async fn panics(&self) -> Option<u64> {
        self.pid()?;
        let asked = async { self.ask(&Hello::Faults).await?.expect(Kind::Faults, "its faults").map_err(broken) };
        match timeout(FAULTS_TIMEOUT, asked).await {
            Ok(Ok(Faults { panics })) => Some(panics),
            // One of an earlier malai does not know the question.
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Returns what its log lacks; `None` also when it does not say.
    pub(crate) async fn lost_log(&self) -> Option<LostLines> {
        let first = timeout(LOG_ANSWER_TIMEOUT, self.ask(&Hello::List)).await.ok()?.ok()?;
        let Inventory { lost_log, .. } = first.expect(Kind::Inventory, "its sessions").ok()?;
        lost_log
    }

    /// Has it leave, if it has nothing to come back for; true when it is gone. Its going is no [`super::Event::Lost`].
    ///
    /// # Errors
    /// When it does not answer, or said that it leaves and stays.
    pub(crate) async fn retire(&self) -> Result<bool, Failure> {
        let inner = &self.inner;
        inner.closing.store(true, Ordering::SeqCst);
        let answered = async {
            let answer = self.ask(&Hello::Retire).await?;
            let Retired { leaves } = answer.expect(Kind::Retired, "whether it leaves").map_err(broken)?;
            Ok(leaves)
        };
        let leaves = match timeout(ANSWER, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(failure::Kind::Internal, "the executor does not say whether it leaves")),
        };
        if !matches!(leaves, Ok(true)) {
            inner.closing.store(false, Ordering::SeqCst);
            return leaves;
        }
        if timeout(GONE, inner.gone.cancelled()).await.is_err() {
            inner.closing.store(false, Ordering::SeqCst);
            return Err(self.stays());
        }
        Ok(true)
    }

    /// Whether it keeps detached sessions, and answers questions.
    ///
    /// # Errors
    /// Why not: it is of an older malai.
    pub(crate) fn check_questions(&self) -> Result<(), Failure> {
        self.check(QUESTIONS_MIN_VERSION)
    }

    /// Whether it keeps an attachment of another machine within its bounds.
    ///
    /// # Errors
    /// Why not: it is of an older malai.
    pub(crate) fn check_watching(&self) -> Result<(), Failure> {
        self.check(WATCHING_MIN_VERSION)
    }

    fn check(&self, version: u32) -> Result<(), Failure> {
        if self.version() >= version {
            return Ok(());
        }
        let text = "commands still run on that machine under the executor of an older malai, which cannot do this";
        Err(Failure::new(failure::Kind::Unsupported, text).hint("it is replaced as soon as none runs there any more"))
    }

    async fn question(&self, question: &Hello) -> Result<Framed<Connection, FrameCodec>, Failure> {
        self.check_questions()?;
        let mut framed = Framed::new(self.inner.dial.connect(&self.inner.gone).await?, FrameCodec::new());
        framed.send(Frame::control(Kind::ExecutorHello, question).map_err(broken)?).await.map_err(broken)?;
        Ok(framed)
    }
}

async fn next(framed: &mut Framed<Connection, FrameCodec>) -> Result<Frame, Failure> {
    framed.next().await.ok_or_else(lost)?.map_err(broken)
}
