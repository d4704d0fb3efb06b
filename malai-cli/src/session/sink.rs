//! Standard output and standard error, written in the order of arrival on a thread of their own: a reader that pauses
//! stops this thread, and nothing else.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use malai_protocol::session::{OUTPUT_WINDOW_MAX, Output};
use tokio::sync::mpsc;

/// What is kept for a slow reader, in bytes, before no more is read from the daemon: as much as a target sends without
/// an answer, so that with a sound target the reading never stops.
const MAX_QUEUED: usize = OUTPUT_WINDOW_MAX as usize;
/// What one queued piece costs besides its bytes: bounds the number of tiny ones.
const PIECE: usize = 64;

/// Something to be written.
struct Piece {
    to: Output,
    bytes: Bytes,
    /// How many bytes of the command's output it stands for.
    counts: u64,
}

/// What the writing thread tells.
#[derive(Debug)]
pub(crate) enum Event {
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

/// Standard output and standard error.
pub(crate) struct Sink {
    pieces: Option<std::sync::mpsc::Sender<Piece>>,
    events: mpsc::UnboundedReceiver<Event>,
    queued: usize,
    written: u64,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink {{ queued: {}, written: {} }}", self.queued, self.written)
    }
}

impl Sink {
    /// Writes on a thread that ends with the process, or when all is written after [`Sink::close`].
    ///
    /// # Errors
    /// When no thread can be started.
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
                let written = Event::Written { cost: piece.bytes.len() + PIECE, counts: piece.counts };
                if broken.into_iter().chain([written]).any(|event| tell.send(event).is_err()) {
                    break;
                }
            }
        })?;
        Ok(Self { pieces: Some(pieces), events, queued: 0, written: 0 })
    }

    /// Queues bytes that stand for `counts` bytes of the command's output; none after [`Sink::close`].
    pub(crate) fn push(&mut self, to: Output, bytes: Bytes, counts: u64) {
        self.queued += bytes.len() + PIECE;
        if let Some(pieces) = &self.pieces {
            // The thread ends only when this end is gone.
            drop(pieces.send(Piece { to, bytes, counts }));
        }
    }

    /// Whether more should be read from the daemon.
    pub(crate) fn has_room(&self) -> bool {
        self.queued < MAX_QUEUED
    }

    /// Whether everything that was queued is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.queued == 0
    }

    /// Bytes of the command's output that are written or thrown away.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Queues nothing more; [`Sink::next`] returns `None` once all is written.
    pub(crate) fn close(&mut self) {
        self.pieces = None;
    }

    /// The next event; `None` after the last one of a closed sink. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        if let Some(Event::Written { cost, counts }) = &event {
            self.queued -= cost;
            self.written += counts;
        }
        event
    }
}

/// One stream; without a writer once it failed.
struct Stream<W> {
    to: Output,
    writer: Option<W>,
}

impl<W: Write> Stream<W> {
    /// Writes all, or tells once why not.
    fn write(&mut self, bytes: &[u8]) -> Option<Event> {
        let error = self.writer.as_mut()?.write_all(bytes).err()?;
        self.writer = None;
        Some(Event::Broken(self.to, error))
    }
}
