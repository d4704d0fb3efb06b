//! The network below malai: endpoints, connections to peers, and the streams on them.

mod congestion;
pub(crate) mod copy;
pub(crate) mod counters;
pub(crate) mod endpoint;
pub(crate) mod finding;
pub(crate) mod limits;
pub(crate) mod place;
pub(crate) mod pool;
pub(crate) mod proxy;
pub(crate) mod pull;
pub(crate) mod relays;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod trust;

use bytes::BytesMut;
use futures_util::StreamExt;
use iroh::endpoint::{ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use malai_protocol::codec::{CodecError, Frame, FrameCodec, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Close, Hello, RESET_CALLER_GONE, VERSION, unknown_need, version_of};
use malai_protocol::snapshot::{SignedHeader, SnapshotError};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};
use tokio::io::AsyncRead;
use tokio_util::codec::FramedRead;

use crate::net::limits::budget::{Charge, Charged, ChargedError, Exceeded};

/// How long the first frame of a stream may take.
pub(crate) const FIRST_FRAME: Duration = Duration::from_secs(10);

/// The key that a connection was authenticated by.
pub(crate) fn machine_id(key: &iroh::EndpointId) -> Option<MachineId> {
    MachineId::from_bytes(*key.as_bytes()).ok()
}

/// The key to dial.
pub(crate) fn endpoint_id(id: &[u8; 32]) -> Option<iroh::EndpointId> {
    iroh::EndpointId::from_bytes(id).ok()
}

/// A QUIC error code.
pub(crate) fn code(number: u32) -> VarInt {
    VarInt::from_u32(number)
}

/// Closes a connection with one of malai's codes. One that is closed already keeps the peer's reason.
pub(crate) fn close(conn: &iroh::endpoint::Connection, why: Close, reason: &str) {
    if conn.close_reason().is_none() {
        conn.close(code(why as u32), reason.as_bytes());
    }
}

/// The greeting of one that is no member's daemon, or does not act as one: it says which snapshot it holds, if any, and
/// nothing else.
pub(crate) fn bare_hello(header: Option<SignedHeader>, caller_only: bool) -> Hello {
    Hello {
        version: VERSION,
        needs: Vec::new(),
        header,
        addresses: Vec::new(),
        caller_only,
        boot: None,
        executor: None,
        malai: crate::VERSION.to_owned(),
        clock_ms: None,
        enforced: None,
        epoch: None,
    }
}

/// Says that the peer speaks another version of the protocol, or needs something that this one does not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsupported {
    /// Another version: nothing else of its message was read.
    #[error(
        "the peer speaks version {0} of malai's protocol, and malai {malai} here speaks version {VERSION}: install the \
         same malai on both",
        malai = crate::VERSION
    )]
    Version(u64),
    /// A need, by its name.
    #[error("the peer needs `{0}`, which malai {malai} does not have", malai = crate::VERSION)]
    Need(String),
}

/// Reads the first frame of a peer or newcomer, which has to be of this kind and of this version.
///
/// # Errors
/// [`Unsupported::Version`], else as [`Frame::expect`].
pub(crate) fn spoken<T: DeserializeOwned>(frame: &Frame, kind: Kind, wanted: &'static str) -> anyhow::Result<T> {
    if frame.kind == kind {
        let version = version_of(frame)?;
        if version != u64::from(VERSION) {
            return Err(Unsupported::Version(version).into());
        }
    }
    Ok(frame.expect(kind, wanted)?)
}

/// Reads a greeting.
///
/// # Errors
/// [`Unsupported`], else as [`Frame::expect`].
pub(crate) fn greeting(frame: &Frame) -> anyhow::Result<Hello> {
    let hello: Hello = spoken(frame, Kind::PeerHello, "PeerHello")?;
    match unknown_need(&hello.needs) {
        Some(need) => Err(Unsupported::Need(need.to_owned()).into()),
        None => Ok(hello),
    }
}

/// The code with which the peer closed a connection, if it did and the code is one of malai's.
pub(crate) fn closed_with(error: &ConnectionError) -> Option<Close> {
    match error {
        ConnectionError::ApplicationClosed(close) => Close::from_number(close.error_code.into_inner()),
        _ => None,
    }
}

/// Whether a failed read means that the caller went away for good, and not only that the stream was lost.
pub(crate) fn is_caller_gone(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
    matches!(inner, Some(ReadError::Reset(number)) if *number == code(RESET_CALLER_GONE))
}

/// Why a frame did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Nothing came in time.
    #[error("nothing came within {0:?}")]
    Late(Duration),
    /// The stream ended first.
    #[error("the stream ended")]
    Ended,
    /// It would be more than what the sender may have here.
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

/// Whether the other side broke the protocol, rather than that a stream was lost or something failed here.
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
    /// Frames of at most `cap` bytes.
    pub(crate) fn new(reader: R, cap: usize) -> Self {
        Self { inner: FramedRead::new(reader, Charged { codec: FrameCodec::capped(cap), charge: None }) }
    }

    /// The same, for which the sender is charged until [`Frames::settle`] or [`Frames::into_parts`].
    pub(crate) fn charged(reader: R, cap: usize, charge: Charge) -> Self {
        let mut frames = Self::new(reader, cap);
        frames.inner.decoder_mut().charge = Some(charge);
        frames
    }

    /// What was read turned out to take so many bytes.
    pub(crate) fn raise(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.inner.decoder_mut().charge.as_mut().map_or(Ok(()), |charge| charge.raise(bytes))
    }

    /// What is read from here on is bounded in another way.
    pub(crate) fn settle(&mut self) {
        self.inner.decoder_mut().charge = None;
    }

    /// The next frames may have up to `cap` bytes.
    pub(crate) fn set_cap(&mut self, cap: usize) {
        self.inner.decoder_mut().codec.set_cap(cap);
    }

    /// The next frame, within `limit`.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Frame, FrameError> {
        match tokio::time::timeout(limit, self.inner.next()).await {
            Err(_) => Err(FrameError::Late(limit)),
            Ok(None) => Err(FrameError::Ended),
            Ok(Some(frame)) => Ok(frame?),
        }
    }

    /// The next frame, whenever it comes; `None` at the end of the stream.
    pub(crate) async fn next_unbounded(&mut self) -> Option<Result<Frame, FrameError>> {
        Some(self.inner.next().await?.map_err(FrameError::from))
    }

    /// The reader, and what was read from it beyond the last frame.
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

/// Gives up both halves of a stream with this code, so that the peer learns at once.
pub(crate) fn abandon(send: &mut SendStream, recv: &mut RecvStream, number: u32) {
    // Both fail only when the half is finished or reset already, which is as good.
    let _closed = send.reset(code(number));
    let _closed = recv.stop(code(number));
}

/// Whether the peer answers now.
pub(crate) async fn ping(conn: &iroh::endpoint::Connection, within: Duration) -> bool {
    matches!(tokio::time::timeout(within, round_trip(conn)).await, Ok(Ok(_)))
}

/// How long the peer took to answer, from sending the question; the caller bounds it.
///
/// # Errors
/// When the stream or the connection is lost, or something else is answered.
pub(crate) async fn round_trip(conn: &iroh::endpoint::Connection) -> anyhow::Result<Duration> {
    let (mut send_half, recv) = conn.open_bi().await?;
    let asked = Instant::now();
    send(&mut send_half, Frame::empty(Kind::Ping)).await?;
    let Some(frame) = Frames::new(recv, 0).next_unbounded().await else { return Err(FrameError::Ended.into()) };
    let took = asked.elapsed();
    anyhow::ensure!(frame?.kind == Kind::Pong, "something else was answered");
    Ok(took)
}
