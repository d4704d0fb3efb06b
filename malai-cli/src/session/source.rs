//! Standard input, read on a thread of its own: files, pipes and terminals all block in their own way, and none of
//! that may keep the CLI from a signal or from its end.
//!
//! The thread reads only when it is asked to, and at most as much as may be sent, so that nothing is taken from the
//! stream that the command could not have.

use std::io::{self, Read};

use bytes::Bytes;
use malai_protocol::codec::MAX_DATA;
use tokio::sync::mpsc;

/// Standard input.
#[derive(Debug)]
pub(crate) struct Source {
    asks: std::sync::mpsc::Sender<usize>,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    asked: bool,
}

impl Source {
    /// Reads from `from` on a thread that ends with the process, or when this is dropped and its read returns.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(mut from: impl Read + Send + 'static) -> io::Result<Self> {
        let (asks, asked) = std::sync::mpsc::channel::<usize>();
        let (sender, chunks) = mpsc::channel(1);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut buffer = vec![0; MAX_DATA];
            for most in asked {
                let chunk = from.read(&mut buffer[..most.min(MAX_DATA)]).map(|n| Bytes::copy_from_slice(&buffer[..n]));
                if sender.blocking_send(chunk).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { asks, chunks, asked: false })
    }

    /// Asks for a chunk of at most `most` bytes, unless one is due already.
    pub(crate) fn ask(&mut self, most: u64) {
        if !self.asked {
            // A thread that is gone shows in `next`.
            self.asked = self.asks.send(usize::try_from(most).unwrap_or(usize::MAX)).is_ok();
        }
    }

    /// The chunk that was asked for; an empty one is the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> io::Result<Bytes> {
        if !self.asked {
            return std::future::pending().await;
        }
        let chunk = self.chunks.recv().await.unwrap_or_else(|| Err(io::Error::other("the reading thread is gone")));
        self.asked = false;
        chunk
    }
}
