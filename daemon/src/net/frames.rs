//! Reads frames from a stream: each within a time limit, and those of strangers charged to them.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use iroh::endpoint::SendStream;
use malai_protocol::codec::{CodecError, Frame, FrameCodec};
use malai_protocol::snapshot::SnapshotError;
use tokio::io::AsyncRead;
use tokio_util::codec::FramedRead;

use super::limits::budget::{Charge, Charged, ChargedError, Exceeded};

/// Bounds how long the first frame of a stream may take.
pub(crate) const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Says why a frame did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Nothing came in time.
    #[error("nothing came within {0:?}")]
    Late(Duration),
    /// The stream ended first.
    #[error("the stream ended")]
    Ended,
    /// It would exceed what requests of the sender may take here.
    #[error(transparent)]
    Exceeded(Exceeded),
    /// It is not a frame, or too long.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<ChargedError> for FrameError {
    fn from(error: ChargedError) -> Self {
        match error {
            ChargedError::Exceeded(exceeded) => Self::Exceeded(exceeded),
            ChargedError::Codec(codec) => Self::Codec(codec),
        }
    }
}

/// Returns whether the peer broke the protocol. Otherwise a stream was lost, or something failed here.
pub(crate) fn is_protocol_error(error: &anyhow::Error) -> bool {
    let codec = match error.downcast_ref::<FrameError>() {
        Some(FrameError::Late(_) | FrameError::Ended) => return true,
        Some(FrameError::Exceeded(_)) => return false,
        Some(FrameError::Codec(codec)) => Some(codec),
        None => error.downcast_ref::<CodecError>(),
    };
    codec.is_some_and(|codec| !matches!(codec, CodecError::Io(_))) || error.is::<SnapshotError>()
}

/// Reads frames from one stream, each within a time limit.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    inner: FramedRead<R, Charged>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Reads frames of at most `cap` bytes.
    pub(crate) fn new(reader: R, cap: usize) -> Self {
        Self { inner: FramedRead::new(reader, Charged { codec: FrameCodec::capped(cap), charge: None }) }
    }

    /// Reads frames for which the sender is charged until [`Frames::settle`] or [`Frames::into_parts`].
    pub(crate) fn charged(reader: R, cap: usize, charge: Charge) -> Self {
        let mut frames = Self::new(reader, cap);
        frames.inner.decoder_mut().charge = Some(charge);
        frames
    }

    /// Raises the charge to the bytes that the last frame takes once it is decoded.
    ///
    /// # Errors
    /// [`Exceeded`] when the sender has too much here already.
    pub(crate) fn raise(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.inner.decoder_mut().charge.as_mut().map_or(Ok(()), |charge| charge.raise(bytes))
    }

    /// Ends the charge: what follows is bounded in another way.
    pub(crate) fn settle(&mut self) {
        self.inner.decoder_mut().charge = None;
    }

    /// Lets the next frames have up to `cap` bytes.
    pub(crate) fn set_cap(&mut self, cap: usize) {
        self.inner.decoder_mut().codec.set_cap(cap);
    }

    /// Returns the next frame, within `limit`.
    ///
    /// # Errors
    /// [`FrameError`] when there is none.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Frame, FrameError> {
        match tokio::time::timeout(limit, self.inner.next()).await {
            Err(_) => Err(FrameError::Late(limit)),
            Ok(None) => Err(FrameError::Ended),
            Ok(Some(frame)) => Ok(frame?),
        }
    }

    /// Returns the next frame, however long it takes; `None` at the end of the stream.
    pub(crate) async fn next_unbounded(&mut self) -> Option<Result<Frame, FrameError>> {
        Some(self.inner.next().await?.map_err(FrameError::from))
    }

    /// Returns the reader, and what was read from it beyond the last frame.
    pub(crate) fn into_parts(self) -> (R, BytesMut) {
        let mut parts = self.inner.into_parts();
        let rest = std::mem::take(&mut parts.read_buf);
        (parts.io, rest)
    }
}

/// Sends one frame on a QUIC stream.
pub(crate) async fn send(stream: &mut SendStream, frame: Frame) -> Result<(), iroh::endpoint::WriteError> {
    stream.write_chunk(frame.to_bytes()).await
}
