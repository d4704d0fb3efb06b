//! Standard input, read on a thread of its own: files, pipes and terminals all block in their own way, and none of
//! that may keep the CLI from a signal or from its end.
//!
//! Other processes have the same stream: the shell that started this process, and what it runs next. So nothing is taken
//! from it before the command has started. A pipe and a terminal are not read until then. A file is read ahead without moving
//! its position, which moves only when the command has started. So nothing is lost, whatever ends this process before.
//!
//! The thread reads only when it is asked to, and at most as much as may be sent, so that nothing is taken from the
//! stream that the command could not have.

use std::io::{self, Read};

use bytes::Bytes;
use malai_protocol::codec::MAX_DATA;
use malai_protocol::failure::{Failure, Kind};
use tokio::sync::mpsc;

use crate::stdio::{Descriptor, Nature};

/// Says when a stream is read that loses what is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputBegin {
    /// When the command has started.
    Started,
    /// At once. What was read is lost when nothing starts.
    AtOnce,
}

/// Holds what the thread is to read.
#[derive(Debug, Clone, Copy)]
struct ReadOrder {
    /// The most bytes to read.
    most: usize,
    /// The place in the file to read from; absent = what comes next.
    at: Option<u64>,
}

/// Reads standard input.
#[derive(Debug)]
pub(crate) struct InputSource {
    orders: std::sync::mpsc::Sender<ReadOrder>,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// What the thread reads now.
    ordered: Option<ReadOrder>,
    begin: InputBegin,
    /// Whether the command has started.
    started: bool,
    /// What is read of a file without moving its position.
    ahead: Option<Ahead>,
}

/// Holds a file that was read beyond its position.
#[derive(Debug)]
struct Ahead {
    file: Descriptor,
    /// Where its position was before.
    from: u64,
    /// How many bytes were read.
    bytes: u64,
}

impl InputSource {
    /// Reads standard input.
    pub(crate) fn stdin(begin: InputBegin) -> Result<Self, Failure> {
        let source = Descriptor::of(&io::stdin()).and_then(|stdin| Self::of(stdin, begin));
        source.map_err(|e| Failure::new(Kind::Internal, format!("standard input cannot be read: {e}")))
    }

    /// Reads a stream as it is: a file ahead, the null device at once, and anything else as `begin` says.
    fn of(stdin: Descriptor, begin: InputBegin) -> io::Result<Self> {
        let nature = stdin.nature();
        let mut file = stdin.again()?;
        let read = move |buffer: &mut [u8], at: Option<u64>| match at {
            Some(at) => file.look(buffer, at),
            None => file.read(buffer),
        };
        let begin = if nature == Nature::Stream { begin } else { InputBegin::AtOnce };
        let source = Self::on_a_thread(read, begin)?;
        let ahead = match nature {
            Nature::File(from) => Some(Ahead { file: stdin, from, bytes: 0 }),
            Nature::Stream | Nature::Null => None,
        };
        Ok(Self { ahead, ..source })
    }

    /// Reads a stream, which has no position, on a thread that ends with the process, or when this is dropped and its
    /// read returns.
    #[cfg(test)]
    pub(crate) fn start(mut from: impl Read + Send + 'static, begin: InputBegin) -> io::Result<Self> {
        Self::on_a_thread(move |buffer, _| from.read(buffer), begin)
    }

    fn on_a_thread(
        mut read: impl FnMut(&mut [u8], Option<u64>) -> io::Result<usize> + Send + 'static,
        begin: InputBegin,
    ) -> io::Result<Self> {
        let (orders, ordered) = std::sync::mpsc::channel::<ReadOrder>();
        let (sender, chunks) = mpsc::channel(1);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut buffer = vec![0; MAX_DATA];
            for ReadOrder { most, at } in ordered {
                let chunk = read(&mut buffer[..most.min(MAX_DATA)], at).map(|n| Bytes::copy_from_slice(&buffer[..n]));
                if sender.blocking_send(chunk).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { orders, chunks, ordered: None, begin, started: false, ahead: None })
    }

    /// Asks for a chunk of at most `most` bytes, unless one is due already, or nothing may be read yet.
    pub(crate) fn ask(&mut self, most: u64) {
        let may_read = self.started || self.begin == InputBegin::AtOnce;
        if !may_read || self.ordered.is_some() {
            return;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let at = self.ahead.as_ref().filter(|_| !self.started).map(|ahead| ahead.from.saturating_add(ahead.bytes));
        let order = ReadOrder { most, at };
        // A thread that is gone shows in `next`.
        self.ordered = self.orders.send(order).is_ok().then_some(order);
    }

    /// Returns the chunk that was asked for; an empty one is the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> io::Result<Bytes> {
        let Some(order) = self.ordered else { return std::future::pending().await };
        let chunk = self.chunks.recv().await.unwrap_or_else(|| Err(io::Error::other("the reading thread is gone")));
        self.ordered = None;
        if let (Some(_), Ok(bytes)) = (order.at, &chunk) {
            self.was_read_ahead(bytes.len() as u64);
        }
        chunk
    }

    /// Notes that the command has started: what was read for it counts as taken, and the rest may be read.
    pub(crate) fn started(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.was_taken();
    }

    fn was_read_ahead(&mut self, bytes: u64) {
        if let Some(ahead) = &mut self.ahead {
            ahead.bytes = ahead.bytes.saturating_add(bytes);
        }
        if self.started {
            self.was_taken();
        }
    }

    /// Moves the position to the end of what was read ahead, and not by its length: another process with the same file may
    /// have moved it meanwhile, and what is between would be nobody's.
    fn was_taken(&self) {
        let Some(ahead) = self.ahead.as_ref().filter(|ahead| ahead.bytes > 0) else { return };
        // Its position was there a moment ago. Should it not move, the next reader gets once more what the command had, and
        // nothing is lost.
        drop(ahead.file.pass(ahead.from.saturating_add(ahead.bytes)));
    }
}
