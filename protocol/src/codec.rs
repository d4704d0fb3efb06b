//! The frame that every hop speaks: kind (u8), length (u32, little endian), payload.
//!
//! A length is checked against the cap of its kind before anything is allocated. Data kinds carry raw bytes; control
//! kinds carry one CBOR map (RFC 8949) each, through serde.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

/// Bytes before the payload: kind and length.
pub const HEADER_LEN: usize = 5;
/// Bounds the payload of a data frame, in bytes: one pipe buffer of Linux, so that a full pipe travels as one frame.
pub const MAX_DATA: usize = 64 * 1024;
/// Bounds the payload of a control frame, in bytes.
pub const MAX_CONTROL: usize = 64 * 1024;
/// Bounds a request to run a command, in bytes: room for a long argv, below Linux's usual 2 MiB for argv and
/// environment.
pub const MAX_EXEC: usize = 1024 * 1024;
/// Bounds a plan or the end of a session, in bytes: both hold the request's words twice, as asked and as decided.
pub const MAX_PLAN: usize = 2 * MAX_EXEC + MAX_CONTROL;
/// Bounds a greeting, all that a stranger may send, and the other short frames between machines, in bytes. A greeting with
/// every key, seven IPv6 addresses and a relay whose URL is as long as the config allows has 1.8 KiB.
pub const MAX_HELLO: usize = 2048;
/// Bounds a frame that carries a snapshot, in bytes: 4 MiB of text and its header.
pub const MAX_SNAPSHOT: usize = crate::snapshot::MAX_TEXT + 4096;

/// Declares [`Kind`] with all numbers in one place. A retired number stays here, with the reason in its name.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $cap:expr;)*) => {
        /// Says what a frame is. One enum owns all numbers, on every hop, so that none is ever used twice.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Lists all kinds.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// Returns the kind with this number.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }

            /// Returns the largest payload that this kind may have, in bytes.
            pub fn cap(self) -> usize {
                match self { $(Kind::$name => $cap,)* }
            }
        }
    };
}

kinds! {
    /// Caller's daemon to target's daemon, first on a session's stream: [`crate::peer::Open`].
    Open = 0x01, MAX_CONTROL;
    /// Start a command: [`crate::session::ExecSpec`].
    Exec = 0x02, MAX_EXEC;
    /// Follow a session that exists: [`crate::session::Attach`].
    Attach = 0x03, MAX_CONTROL;
    /// Raw bytes for the command's standard input.
    Stdin = 0x04, MAX_DATA;
    /// Standard input has ended; empty payload.
    StdinEof = 0x05, 0;
    /// Send a signal to the command's process group: [`crate::session::Signal`].
    Signal = 0x06, MAX_CONTROL;
    /// Output up to an offset was written out: [`crate::session::Ack`].
    Ack = 0x08, MAX_CONTROL;
    /// The reader of one output stream is gone: [`crate::session::StopOutput`].
    StopOutput = 0x09, MAX_CONTROL;
    /// The caller has what it wanted and leaves in good order; empty payload.
    Goodbye = 0x0a, 0;
    /// Which sessions are there? [`crate::sessions::List`].
    List = 0x0b, MAX_CONTROL;
    /// Wait until a session is over: [`crate::sessions::Wait`].
    Wait = 0x0c, MAX_CONTROL;
    /// End a session, or signal its command: [`crate::sessions::Kill`].
    Kill = 0x0d, MAX_CONTROL;
    /// The caller's signature on the first frame, which follows it: [`crate::seal::Seal`]. No version sends it yet.
    Seal = 0x0e, MAX_HELLO;
    /// Shows that what came so far is the sealing caller's: [`crate::seal::Proof`]. No version sends it yet.
    Proof = 0x0f, MAX_HELLO;

    /// The command did not run, and will not: [`crate::failure::Failure`].
    Refused = 0x20, MAX_CONTROL;
    /// The command runs: [`crate::session::Started`].
    Started = 0x21, MAX_CONTROL;
    /// The session is followed from here on: [`crate::session::Attached`].
    Attached = 0x22, MAX_CONTROL;
    /// Another attachment follows now; nothing follows: [`crate::session::Superseded`].
    Superseded = 0x23, MAX_CONTROL;
    /// Raw bytes of the command's standard output.
    Stdout = 0x24, MAX_DATA;
    /// Raw bytes of the command's standard error.
    Stderr = 0x25, MAX_DATA;
    /// Standard input was taken, and more may be sent: [`crate::session::StdinAck`].
    StdinAck = 0x26, MAX_CONTROL;
    /// The command reads no more standard input; empty payload.
    StdinClosed = 0x27, 0;
    /// How it ended; nothing follows: [`crate::session::ExitRecord`].
    Exit = 0x28, MAX_CONTROL;
    /// Daemon to its CLI: the request is on its way: [`crate::session::Sent`].
    Sent = 0x29, MAX_CONTROL;
    /// Sessions that are there: [`crate::sessions::Listed`].
    Listed = 0x2a, MAX_CONTROL;
    /// The signal was sent; empty payload.
    Killed = 0x2b, 0;

    /// First on a connection's control stream, both ways: [`crate::peer::Hello`].
    PeerHello = 0x40, MAX_HELLO;
    /// The sender's snapshot header changed: [`crate::peer::Announce`].
    Announce = 0x41, MAX_HELLO;
    /// Asks for the snapshot: [`crate::peer::Pull`].
    Pull = 0x42, MAX_HELLO;
    /// A whole signed snapshot: [`crate::snapshot::Signed`].
    Snapshot = 0x43, MAX_SNAPSHOT;
    /// First on a stream of its own: are you there? Empty payload.
    Ping = 0x44, 0;
    /// The answer to `Ping` and `Gone`; empty payload.
    Pong = 0x45, 0;
    /// First on a stream of its own: a caller went away for good: [`crate::peer::Gone`].
    Gone = 0x46, MAX_HELLO;
    /// First on a stream of its own: where is this machine? [`crate::peer::Resolve`].
    Resolve = 0x47, MAX_HELLO;
    /// A newcomer shows its invite: [`crate::peer::Redeem`].
    Redeem = 0x48, MAX_HELLO;
    /// A newcomer without an invite asks to be approved: [`crate::peer::Knock`].
    Knock = 0x49, MAX_HELLO;
    /// The knock was noted and waits for an administrator; empty payload.
    Waiting = 0x4a, 0;
    /// Where a machine is: [`crate::peer::Resolved`].
    Resolved = 0x4b, MAX_HELLO;

    /// First on the CLI's socket, both ways: [`crate::local::Hello`].
    LocalHello = 0x60, MAX_CONTROL;
    /// What the CLI wants: [`crate::local::Request`].
    Request = 0x61, MAX_EXEC;
    /// What came of it: [`crate::local::Response`]. Two config texts and their difference fit.
    Response = 0x62, 3 * MAX_SNAPSHOT;

    /// First on an executor's socket: [`crate::plan::Hello`].
    ExecutorHello = 0x80, MAX_CONTROL;
    /// A decided command: [`crate::plan::Plan`].
    Plan = 0x81, MAX_PLAN;
    /// The caller went away for good: [`crate::plan::CallerGone`].
    CallerGone = 0x82, MAX_CONTROL;
    /// End a session: [`crate::plan::End`].
    End = 0x83, MAX_CONTROL;
    /// Everything the executor has: [`crate::plan::Sessions`].
    Sessions = 0x84, MAX_SNAPSHOT;
    /// A session ended: [`crate::plan::Ended`].
    Ended = 0x85, MAX_PLAN;
    /// The end of a session is in the audit; the executor may forget it: [`crate::plan::Audited`].
    Audited = 0x86, MAX_CONTROL;
    /// End all sessions and then the executor: [`crate::plan::Shutdown`].
    Shutdown = 0x87, MAX_CONTROL;
    /// The answer to what names a session that is not known; an attachment's request may be run; empty payload.
    Missing = 0x88, 0;
    /// Sessions that the executor has or keeps: [`crate::plan::Inventory`].
    Inventory = 0x89, MAX_SNAPSHOT;
    /// Whether the executor leaves: [`crate::plan::Retired`].
    Retired = 0x8a, MAX_CONTROL;
    /// How many faults the executor had: [`crate::plan::Faults`].
    Faults = 0x8b, MAX_CONTROL;
}

/// Holds one frame: its kind and its payload, not interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Decides how the payload is read.
    pub kind: Kind,
    /// At most [`Kind::cap`] bytes.
    pub payload: Bytes,
}

/// Says why bytes are no frame, or why a payload is not what its kind says.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The kind's number is not assigned.
    #[error("frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// The length is over the cap of the kind.
    #[error("{kind:?} frame of {length} bytes, over its cap of {cap}")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length it claims, in bytes.
        length: u64,
        /// The most it may have, in bytes.
        cap: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// A control payload that does not decode.
    #[error("{kind:?} frame does not decode: {why}")]
    Payload {
        /// The frame's kind.
        kind: Kind,
        /// The decoder's words.
        why: String,
    },
    /// A frame that may not come here.
    #[error("got a {got:?} frame instead of {wanted}")]
    OutOfOrder {
        /// The frame that came.
        got: Kind,
        /// The frame that had to come.
        wanted: &'static str,
    },
    /// The connection below failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Frame {
    /// Makes a frame of raw bytes.
    pub fn data(kind: Kind, payload: Bytes) -> Self {
        Self { kind, payload }
    }

    /// Makes a frame without payload.
    pub fn empty(kind: Kind) -> Self {
        Self { kind, payload: Bytes::new() }
    }

    /// Makes a control frame: `value` as CBOR.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when it does not fit the kind's cap.
    pub fn control<T: Serialize>(kind: Kind, value: &T) -> Result<Self, CodecError> {
        let mut payload = Vec::new();
        ciborium::into_writer(value, &mut payload).map_err(|e| CodecError::Payload { kind, why: e.to_string() })?;
        if payload.len() > kind.cap() {
            return Err(CodecError::TooLong { kind, length: payload.len() as u64, cap: kind.cap() });
        }
        Ok(Self { kind, payload: payload.into() })
    }

    /// Decodes the value of a control frame.
    ///
    /// # Errors
    /// [`CodecError::Payload`] when it does not decode, or when bytes follow the value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        let fail = |why: String| CodecError::Payload { kind: self.kind, why };
        let mut rest: &[u8] = &self.payload;
        // The depth that any message of ours needs is below ten; the limit bounds the decoder's stack.
        let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, 32).map_err(|e| fail(e.to_string()))?;
        if rest.is_empty() { Ok(value) } else { Err(fail("extra bytes after the value".into())) }
    }

    /// Decodes the value of a control frame that must be of this kind.
    ///
    /// # Errors
    /// [`CodecError::OutOfOrder`] when it is of another kind, else as [`Frame::decode`].
    pub fn expect<T: DeserializeOwned>(&self, kind: Kind, wanted: &'static str) -> Result<T, CodecError> {
        if self.kind != kind {
            return Err(CodecError::OutOfOrder { got: self.kind, wanted });
        }
        self.decode()
    }

    /// Returns the frame as bytes: header and payload.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_LEN + self.payload.len());
        self.write_to(&mut out);
        out.freeze()
    }

    /// Appends the frame's bytes.
    pub fn write_to(&self, out: &mut BytesMut) {
        out.reserve(HEADER_LEN + self.payload.len());
        out.put_u8(self.kind as u8);
        out.put_u32_le(u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        out.put_slice(&self.payload);
    }
}

/// Reads the header of a frame: its kind, and the length of its payload, which is neither over the kind's cap nor this one.
///
/// # Errors
/// [`CodecError::UnknownKind`] or [`CodecError::TooLong`].
pub(crate) fn read_header([number, a, b, c, d]: [u8; HEADER_LEN], cap: usize) -> Result<(Kind, usize), CodecError> {
    let kind = Kind::from_number(number).ok_or(CodecError::UnknownKind(number))?;
    let (length, cap) = (u32::from_le_bytes([a, b, c, d]), kind.cap().min(cap));
    let wanted = usize::try_from(length).ok().filter(|wanted| *wanted <= cap);
    wanted.map(|wanted| (kind, wanted)).ok_or(CodecError::TooLong { kind, length: length.into(), cap })
}

/// Cuts a byte stream into frames, and back. Cancel-safe within `tokio_util::codec::Framed`.
#[derive(Debug, Clone)]
pub struct FrameCodec {
    cap: usize,
}

impl FrameCodec {
    /// Reads frames up to the cap of their kind.
    pub fn new() -> Self {
        Self { cap: usize::MAX }
    }

    /// Reads frames up to `cap` bytes, and to the cap of their kind: for a phase that allows less.
    pub fn capped(cap: usize) -> Self {
        Self { cap }
    }

    /// Sets the cap of the next phase.
    pub fn set_cap(&mut self, cap: usize) {
        self.cap = cap;
    }
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        let Some((header, _)) = src.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let (kind, wanted) = read_header(*header, self.cap)?;
        if src.len() < HEADER_LEN + wanted {
            // What is reserved is bounded by the cap, which was checked above.
            src.reserve(HEADER_LEN + wanted - src.len());
            return Ok(None);
        }
        src.advance(HEADER_LEN);
        Ok(Some(Frame { kind, payload: src.split_to(wanted).freeze() }))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        match self.decode(src)? {
            Some(frame) => Ok(Some(frame)),
            None if src.is_empty() => Ok(None),
            None => Err(CodecError::Truncated),
        }
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), CodecError> {
        let cap = frame.kind.cap();
        if frame.payload.len() > cap {
            return Err(CodecError::TooLong { kind: frame.kind, length: frame.payload.len() as u64, cap });
        }
        frame.write_to(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_stands_for_two_kinds() {
        let mut numbers: Vec<u8> = Kind::ALL.iter().map(|k| *k as u8).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(*kind as u8), Some(*kind));
        }
    }

    #[test]
    fn a_frame_over_its_cap_is_refused_before_its_bytes_arrive() {
        let mut src = BytesMut::from(&[Kind::Stdout as u8, 1, 0, 1, 0][..]);
        let error = FrameCodec::new().decode(&mut src).expect_err("65537 bytes");
        assert!(matches!(error, CodecError::TooLong { length: 65537, cap: 65536, .. }), "{error}");
    }

    #[test]
    fn a_phase_with_a_lower_cap_refuses_what_another_allows() {
        let frame = Frame::data(Kind::Stdout, Bytes::from(vec![0; 100]));
        let mut src = BytesMut::from(&frame.to_bytes()[..]);
        assert!(FrameCodec::capped(99).decode(&mut src).is_err());
        assert_eq!(FrameCodec::capped(100).decode(&mut src).expect("fits"), Some(frame));
    }

    #[test]
    fn a_frame_arrives_byte_by_byte() {
        let frame = Frame::data(Kind::Stderr, Bytes::from_static(b"hello"));
        let mut codec = FrameCodec::new();
        let mut src = BytesMut::new();
        let bytes = frame.to_bytes();
        for byte in &bytes[..bytes.len() - 1] {
            src.put_u8(*byte);
            assert_eq!(codec.decode(&mut src).expect("no error"), None);
        }
        src.put_u8(bytes[bytes.len() - 1]);
        assert_eq!(codec.decode(&mut src).expect("no error"), Some(frame));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated() {
        let mut src = BytesMut::from(&[Kind::Stdout as u8, 5, 0, 0, 0, b'h'][..]);
        assert!(matches!(FrameCodec::new().decode_eof(&mut src), Err(CodecError::Truncated)));
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let mut src = BytesMut::from(&[0xfe, 0, 0, 0, 0][..]);
        assert!(matches!(FrameCodec::new().decode(&mut src), Err(CodecError::UnknownKind(0xfe))));
    }
}
