//! Frames that wait to be written, in order. Their payloads are shared, not copied.

use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, IoSlice};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use malai_protocol::codec::{Frame, HEADER_LEN};

/// Frames that are written at once.
const AT_ONCE: usize = 32;

#[derive(Debug)]
struct Piece {
    header: [u8; HEADER_LEN],
    payload: Bytes,
    /// Bytes of both that were written.
    wrote: usize,
}

impl Piece {
    fn left(&self) -> usize {
        HEADER_LEN + self.payload.len() - self.wrote
    }
}

/// What waits for one attachment.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

impl Outbox {
    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Appends a frame.
    pub(crate) fn push(&mut self, frame: Frame) {
        let Frame { kind, payload } = frame;
        let mut header = [kind as u8; HEADER_LEN];
        header[1..].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.bytes += HEADER_LEN + payload.len();
        self.pieces.push_back(Piece { header, payload, wrote: 0 });
    }

    /// Drops all but the frame that was begun.
    pub(crate) fn cut(&mut self) {
        let begun = self.pieces.front().is_some_and(|piece| piece.wrote > 0);
        self.pieces.truncate(usize::from(begun));
        self.bytes = self.pieces.iter().map(Piece::left).sum();
    }

    /// Writes some of it; waits for ever when it is empty. Cancel-safe.
    pub(crate) async fn write_to<W: AsyncWrite + Unpin>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.pieces.is_empty() {
            return pending().await;
        }
        let mut slices = [IoSlice::new(&[]); 2 * AT_ONCE];
        let mut used = 0;
        for piece in self.pieces.iter().take(AT_ONCE) {
            let header = piece.header.get(piece.wrote..).unwrap_or_default();
            let payload = piece.payload.get(piece.wrote.saturating_sub(HEADER_LEN)..).unwrap_or_default();
            for part in [header, payload] {
                if !part.is_empty() {
                    slices[used] = IoSlice::new(part);
                    used += 1;
                }
            }
        }
        match writer.write_vectored(&slices[..used]).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            wrote => {
                self.advance(wrote);
                Ok(())
            }
        }
    }

    fn advance(&mut self, mut wrote: usize) {
        self.bytes = self.bytes.saturating_sub(wrote);
        while let Some(piece) = self.pieces.front_mut() {
            let left = piece.left();
            if wrote < left {
                piece.wrote += wrote;
                return;
            }
            wrote -= left;
            self.pieces.pop_front();
        }
        // A queue that was long once is not kept by a session that idles.
        self.pieces = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::codec::Kind;

    fn data(payload: &'static [u8]) -> Frame {
        Frame::data(Kind::Stdout, Bytes::from_static(payload))
    }

    /// Takes so many bytes with each write.
    #[derive(Debug)]
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..taken]);
            std::task::Poll::Ready(Ok(taken))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn frames_are_written_whole_and_in_order_however_little_is_taken() {
        let frames = [data(b"one"), Frame::empty(Kind::StdinClosed), data(b"three")];
        let wanted: Vec<u8> = frames.iter().flat_map(|frame| frame.to_bytes()).collect();
        for most in 1..=wanted.len() {
            let mut outbox = Outbox::default();
            frames.iter().cloned().for_each(|frame| outbox.push(frame));
            assert_eq!(outbox.len(), wanted.len());
            let mut writer = Narrow(most, Vec::new());
            while !outbox.is_empty() {
                outbox.write_to(&mut writer).await.unwrap();
            }
            assert_eq!((writer.1, outbox.len()), (wanted.clone(), 0));
        }
    }

    #[tokio::test]
    async fn what_is_cut_leaves_no_frame_half_written() {
        for most in 1..9 {
            let mut outbox = Outbox::default();
            outbox.push(data(b"one"));
            outbox.push(data(b"two"));
            let mut writer = Narrow(most, Vec::new());
            outbox.write_to(&mut writer).await.unwrap();
            outbox.cut();
            outbox.push(data(b"last"));
            while !outbox.is_empty() {
                outbox.write_to(&mut writer).await.unwrap();
            }
            // The first was begun, unless a whole frame was taken at once.
            let wanted: Vec<u8> = [data(b"one"), data(b"last")].iter().flat_map(|frame| frame.to_bytes()).collect();
            assert_eq!(writer.1, wanted, "{most}");
        }
    }
}
