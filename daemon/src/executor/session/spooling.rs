//! A detached session's output: from the log to the disk, and from there to whoever follows.
//!
//! One portion at a time is written, and one read, on threads that may block; the log in memory only collects what the
//! next portion is made of. A follower that is slower than the command loses nothing until the oldest is dropped from the
//! disk; then, and where the disk failed, another `Attached` says where its output goes on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;

use malai_protocol::codec::Kind;
use malai_protocol::plan::Outcome;
use malai_protocol::session::{Attached, Output as Stream, Started};

use super::super::Shared;
use super::{Later, later};
use crate::executor::output::log::Log;
use crate::executor::output::spool::{End, Piece, Reader, Spool};
use crate::executor::session::link::Link;

/// About so many bytes are written or read at once.
const PORTION: usize = 256 * 1024;
/// So many bytes may wait in memory for the disk.
const WAITING: u64 = 128 * 1024;

/// What is written of one session.
pub(crate) struct Writing {
    disk: Arc<Semaphore>,
    /// Absent while a portion is written.
    spool: Option<Spool>,
    portion: Option<Later<Spool>>,
    /// Output up to here is written, once that portion is.
    upto: u64,
}

/// What one follower is handed of it.
pub(crate) struct Reading {
    disk: Arc<Semaphore>,
    /// For the range alone.
    index: Reader,
    /// Absent while a portion is read.
    reader: Option<Reader>,
    portion: Option<Later<(Reader, Portion)>>,
    /// Read, and not handed over.
    ahead: VecDeque<Piece>,
    /// The first byte that was not handed over.
    handed: u64,
}

/// What came of reading.
pub(crate) struct Portion {
    /// Whence it was read.
    from: u64,
    /// What there was then.
    end: u64,
    pieces: io::Result<Vec<Piece>>,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").field("upto", &self.upto).finish_non_exhaustive()
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("handed", &self.handed).finish_non_exhaustive()
    }
}

impl Writing {
    /// To this spool; `disk` bounds how many sessions use it at once.
    pub(crate) fn new(spool: Spool, disk: Arc<Semaphore>) -> Self {
        Self { disk, spool: Some(spool), portion: None, upto: 0 }
    }

    /// How many more bytes of output may be read from the command.
    pub(crate) fn room(&self, log: &Log) -> u64 {
        WAITING.saturating_sub(log.kept())
    }

    /// Begins to write what waits, unless something is being written.
    pub(crate) fn begin(&mut self, log: &mut Log) {
        if log.backlog() == 0 {
            return;
        }
        let Some(mut spool) = self.spool.take() else { return };
        let (mut pieces, mut size) = (Vec::new(), 0);
        while size < PORTION
            && let Some((stream, bytes)) = log.take()
        {
            size += bytes.len();
            pieces.push((stream, bytes));
        }
        self.upto = log.total() - log.backlog();
        let disk = self.disk.clone();
        self.portion = Some(Box::pin(async move {
            blocking(disk, move || {
                for (stream, bytes) in pieces {
                    if let Err(error) = spool.append(stream, &bytes) {
                        tracing::warn!(%error, bytes = bytes.len(), "output of a detached session is lost");
                    }
                }
                spool
            })
            .await
        }));
    }

    /// Returns when a portion is written; never, while none is. Cancel-safe.
    pub(crate) async fn written(&mut self) -> Spool {
        later(&mut self.portion).await
    }

    /// A portion is written.
    pub(crate) fn wrote(&mut self, spool: Spool, log: &mut Log) {
        (self.portion, self.spool) = (None, Some(spool));
        // It was handed over by this very log.
        log.ack(self.upto);
    }

    /// Nothing waits for the disk.
    pub(crate) fn is_done(&self, log: &Log) -> bool {
        self.spool.is_some() && log.is_empty()
    }

    /// Writes down that the command runs: before there is output.
    pub(crate) fn started(&mut self, started: Started) {
        let Some(mut spool) = self.spool.take() else { return };
        let disk = self.disk.clone();
        self.portion = Some(Box::pin(async move {
            blocking(disk, move || {
                if let Err(error) = spool.started(&started) {
                    tracing::warn!(%error, "the start of a detached session is not written down");
                }
                spool
            })
            .await
        }));
    }

    /// The spool, when nothing is being written; nothing is written after this.
    pub(crate) fn take(&mut self) -> Option<Spool> {
        self.spool.take()
    }
}

impl Reading {
    /// From the first byte on.
    pub(crate) fn new(index: Reader, disk: Arc<Semaphore>) -> Self {
        let reader = Some(index.clone());
        Self { disk, index, reader, portion: None, ahead: VecDeque::new(), handed: 0 }
    }

    /// Whether there was ever output up to there: an attachment may ask for what follows it.
    pub(crate) fn has(&self, offset: u64) -> bool {
        offset <= self.index.range().end
    }

    /// Another attachment wants what follows `offset`; absent = only what is yet to come. Returns where it begins.
    pub(crate) fn resume(&mut self, offset: Option<u64>) -> u64 {
        let kept = self.index.range();
        self.ahead.clear();
        self.handed = offset.unwrap_or(u64::MAX).clamp(kept.start, kept.end);
        self.handed
    }

    /// Whether the follower can have all up to there.
    pub(crate) fn was_handed(&self, offset: u64) -> bool {
        offset <= self.handed
    }

    /// Hands over what the attachment takes, and begins to read more; `answer` makes what says where output goes on.
    pub(crate) fn fill(&mut self, link: &mut Link, answer: impl Fn(u64) -> Attached) {
        while link.is_open() && link.has_room() {
            let Some(Piece { at, stream, bytes }) = self.ahead.pop_front() else {
                return self.begin();
            };
            if at > self.handed {
                link.control(Kind::Attached, &answer(at));
            }
            self.handed = at + bytes.len() as u64;
            match stream {
                _ if bytes.is_empty() => {}
                Stream::Stdout => link.data(Kind::Stdout, bytes),
                Stream::Stderr => link.data(Kind::Stderr, bytes),
            }
        }
    }

    fn begin(&mut self) {
        let from = self.handed;
        if from >= self.index.range().end {
            return;
        }
        let Some(mut reader) = self.reader.take() else { return };
        let disk = self.disk.clone();
        self.portion = Some(Box::pin(async move {
            blocking(disk, move || {
                let end = reader.range().end;
                let pieces = reader.read(from, PORTION);
                (reader, Portion { from, end, pieces })
            })
            .await
        }));
    }

    /// Returns when a portion was read; never, while none is. Cancel-safe.
    pub(crate) async fn read(&mut self) -> (Reader, Portion) {
        later(&mut self.portion).await
    }

    /// A portion was read.
    pub(crate) fn came(&mut self, (reader, portion): (Reader, Portion)) {
        (self.portion, self.reader) = (None, Some(reader));
        let Portion { from, end, pieces } = portion;
        // Another attachment wants something else.
        if from != self.handed {
            return;
        }
        match pieces {
            Ok(pieces) if !pieces.is_empty() => self.ahead.extend(pieces),
            missing => {
                if let Err(error) = missing {
                    tracing::warn!(%error, "output of a detached session cannot be read");
                }
                // What is not there is passed over, and said to be.
                self.ahead.push_back(Piece { at: end, stream: Stream::Stdout, bytes: bytes::Bytes::new() });
            }
        }
    }

    /// All up to there was handed over.
    pub(crate) fn is_done(&self, total: u64) -> bool {
        self.handed >= total
    }
}

/// Runs what may block, at most so many at once.
pub(crate) async fn blocking<T: Send + 'static>(disk: Arc<Semaphore>, work: impl FnOnce() -> T + Send + 'static) -> T {
    // The semaphore is never closed.
    let permit = disk.acquire_owned().await;
    let done = tokio::task::spawn_blocking(work).await;
    drop(permit);
    match done {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Ends a spool: what is in it stays for whoever comes later. Of a command that was never started nothing stays.
pub(super) async fn end(shared: &Shared, spool: Spool, end: End) {
    let ended = blocking(shared.disk.clone(), move || match end.outcome {
        Outcome::Refused(_) => {
            spool.discard();
            Ok(())
        }
        Outcome::Exit(_) => spool.finish(end),
    });
    if let Err(error) = ended.await {
        tracing::warn!(%error, "the end of a detached session is not written down");
    }
}
