//! Standard output and standard error, written in the order of arrival on a thread of their own: a reader that pauses
//! stops this thread, and nothing else.

use std::io::{self, Write};

use bytes::Bytes;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::session::{OUTPUT_WINDOW_MAX, Output};
use tokio::sync::mpsc;

use crate::stdio::Descriptor;

/// Bounds what is kept for a slow reader before nothing more is read from the daemon: as much as a target sends without an
/// acknowledgement, so that with a sound target the reading never stops.
const MAX_QUEUED_BYTES: usize = OUTPUT_WINDOW_MAX as usize;
/// Is what one queued piece costs besides its bytes. It bounds the number of tiny ones.
const PIECE_COST_BYTES: usize = 64;

/// Holds bytes that are to be written.
struct Piece {
    to: Output,
    bytes: Bytes,
    /// How many bytes of the command's output it stands for.
    counts: u64,
}

/// Says what became of a piece.
#[derive(Debug)]
pub(crate) enum SinkEvent {
    /// A piece was written, or thrown away because its reader is gone.
    Written {
        /// What it cost in the queue.
        cost: usize,
        /// How many bytes of the command's output it stands for.
        counts: u64,
    },
    /// A stream cannot be written any more.
    Broken(Output, io::Error),
}

/// Writes standard output and standard error.
#[derive(Debug)]
pub(crate) struct OutputSink {
    pieces: Option<std::sync::mpsc::Sender<Piece>>,
    events: mpsc::UnboundedReceiver<SinkEvent>,
    queued: usize,
    written: u64,
}

impl OutputSink {
    /// Writes standard output and standard error of this process.
    pub(crate) fn standard() -> Result<Self, Failure> {
        let start = || Self::start(Descriptor::of(&io::stdout())?, Descriptor::of(&io::stderr())?);
        start().map_err(|e| Failure::new(Kind::Internal, format!("standard output cannot be written: {e}")))
    }

    /// Writes on a thread that ends with the process, or when all is written after [`OutputSink::close`].
    pub(crate) fn start(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> io::Result<Self> {
        let (pieces, queue) = std::sync::mpsc::channel::<Piece>();
        // Unbounded, but every event but one for each stream answers a piece, and those are bounded by `has_room`.
        let (tell, events) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("stdout".into()).spawn(move || {
            let mut stdout = Stream { to: Output::Stdout, writer: Some(stdout) };
            let mut stderr = Stream { to: Output::Stderr, writer: Some(stderr) };
            for piece in queue {
                let broken = match piece.to {
                    Output::Stdout => stdout.write(&piece.bytes),
                    Output::Stderr => stderr.write(&piece.bytes),
                };
                let written = SinkEvent::Written { cost: piece.bytes.len() + PIECE_COST_BYTES, counts: piece.counts };
                if broken.into_iter().chain([written]).any(|event| tell.send(event).is_err()) {
                    break;
                }
            }
        })?;
        Ok(Self { pieces: Some(pieces), events, queued: 0, written: 0 })
    }

    /// Queues bytes that stand for `counts` bytes of the command's output; none after [`OutputSink::close`].
    pub(crate) fn push(&mut self, to: Output, bytes: Bytes, counts: u64) {
        self.queued += bytes.len() + PIECE_COST_BYTES;
        if let Some(pieces) = &self.pieces {
            // The thread ends only when this end is gone.
            drop(pieces.send(Piece { to, bytes, counts }));
        }
    }

    /// Tells whether more should be read from the daemon.
    pub(crate) fn has_room(&self) -> bool {
        self.queued < MAX_QUEUED_BYTES
    }

    /// Tells whether everything that was queued is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.queued == 0
    }

    /// Returns how many bytes of the command's output are written or thrown away.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Queues nothing more; [`OutputSink::next`] returns `None` once all is written.
    pub(crate) fn close(&mut self) {
        self.pieces = None;
    }

    /// Returns the next event; `None` after the last one of a closed sink. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<SinkEvent> {
        let event = self.events.recv().await;
        if let Some(SinkEvent::Written { cost, counts }) = &event {
            self.queued -= cost;
            self.written += counts;
        }
        event
    }
}

/// Holds one stream; without a writer once that failed.
struct Stream<W> {
    to: Output,
    writer: Option<W>,
}

impl<W: Write> Stream<W> {
    /// Writes all bytes. Returns why it could not, once.
    fn write(&mut self, bytes: &[u8]) -> Option<SinkEvent> {
        let error = self.writer.as_mut()?.write_all(bytes).err()?;
        self.writer = None;
        Some(SinkEvent::Broken(self.to, error))
    }
}
