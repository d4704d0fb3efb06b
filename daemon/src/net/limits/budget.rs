//! Bounds what one machine may have here in requests that are not decided yet, over all of its connections. The bytes are
//! charged before the memory is taken.

use std::sync::Arc;

use bytes::BytesMut;
use malai_protocol::codec::{CodecError, Frame, FrameCodec, HEADER_LEN, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::session::ExecSpec;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::codec::Decoder;

/// Bounds all undecided requests of one machine: sixteen of the largest, or 2048 small ones.
const MAX_UNDECIDED_BYTES: usize = 16 * 1024 * 1024;
/// Is what a stream costs before anything is read from it: its buffer.
const UNDECIDED_STREAM_BYTES: usize = 8 * 1024;

/// Counts the undecided requests of one machine.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    held: Mutex<usize>,
}

/// Says that a request would exceed what its machine may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("requests of this machine that wait for a decision already take {} MiB", MAX_UNDECIDED_BYTES >> 20)]
pub(crate) struct Exceeded;

impl From<Exceeded> for Failure {
    fn from(exceeded: Exceeded) -> Self {
        Failure::new(FailureKind::Busy, exceeded.to_string()).hint("run fewer, or shorter, commands at once")
    }
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.held.lock()
    }

    /// Begins a request, with what its stream costs.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Charge, Exceeded> {
        let mut charge = Charge { budget: Arc::clone(self), bytes: 0 };
        charge.raise(UNDECIDED_STREAM_BYTES)?;
        Ok(charge)
    }
}

/// Says what one request has taken of its machine's budget; its drop gives that back.
#[derive(Debug)]
#[must_use = "dropping the charge gives it back"]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Returns what a request takes when it is decoded: its words are kept as asked and as decided, each with some bytes of
/// its own, so that many short ones take far more than the frame that they came in.
pub(crate) fn weight(spec: &ExecSpec) -> usize {
    const WORD: usize = 64;
    let words = spec.words.iter().map(|word| word.len() + WORD);
    let env = spec.env.iter().map(|(name, value)| name.len() + value.len() + 2 * WORD);
    let needs = spec.needs.iter().map(|need| need.len() + WORD);
    2 * words.chain(env).chain(needs).sum::<usize>()
}

impl Charge {
    /// Raises the charge of the request to this many bytes in all. A machine's only request is always let in: its own caps
    /// bound it.
    pub(crate) fn raise(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let mut held = self.budget.lock();
        let others = held.saturating_sub(self.bytes);
        let bytes = bytes.max(self.bytes);
        if others > 0 && others.saturating_add(bytes) > MAX_UNDECIDED_BYTES {
            return Err(Exceeded);
        }
        *held = others.saturating_add(bytes);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        *held = held.saturating_sub(self.bytes);
    }
}

/// Cuts frames, each of which is charged for before its bytes are taken.
#[derive(Debug)]
pub(crate) struct Charged {
    /// Is the codec.
    pub(crate) codec: FrameCodec,
    /// Holds the charge. Where there is none, the sender is the user of this machine, or its frames are bounded in another way.
    pub(crate) charge: Option<Charge>,
}

impl Charged {
    fn charge(&mut self, src: &BytesMut) -> Result<(), Exceeded> {
        let (Some(charge), Some(&[_, a, b, c, d])) = (&mut self.charge, src.first_chunk::<HEADER_LEN>()) else {
            return Ok(());
        };
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // What is longer is refused by the codec, before anything is taken.
        if length <= MAX_EXEC { charge.raise(UNDECIDED_STREAM_BYTES + length) } else { Ok(()) }
    }
}

/// Says why no frame could be cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChargedError {
    /// It is more than what the sender may have here.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// It is no frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<std::io::Error> for ChargedError {
    fn from(error: std::io::Error) -> Self {
        Self::Codec(error.into())
    }
}

impl Decoder for Charged {
    type Item = Frame;
    type Error = ChargedError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, ChargedError> {
        self.charge(src)?;
        Ok(self.codec.decode(src)?)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, ChargedError> {
        self.charge(src)?;
        Ok(self.codec.decode_eof(src)?)
    }
}

#[cfg(test)]
mod tests {
    use malai_protocol::codec::Kind;

    use super::*;

    fn exec(length: usize) -> BytesMut {
        let mut bytes = BytesMut::from(&[Kind::Exec as u8][..]);
        bytes.extend_from_slice(&u32::try_from(length).expect("fits").to_le_bytes());
        bytes
    }

    fn begin(budget: &Arc<Budget>) -> Charged {
        Charged { codec: FrameCodec::new(), charge: Some(budget.begin().expect("room")) }
    }

    #[test]
    fn what_is_claimed_is_charged_before_it_is_there_and_given_back() {
        let budget = Arc::new(Budget::default());
        let mut all = Vec::new();
        let failed = loop {
            let mut decoder = begin(&budget);
            match decoder.decode(&mut exec(MAX_EXEC)) {
                Ok(frame) => assert_eq!(frame, None),
                Err(error) => break error,
            }
            all.push(decoder);
        };
        assert!(matches!(failed, ChargedError::Exceeded(_)), "{failed}");
        assert_eq!(all.len(), MAX_UNDECIDED_BYTES / (MAX_EXEC + UNDECIDED_STREAM_BYTES));
        // A small one finds its place between them.
        assert_eq!(begin(&budget).decode(&mut exec(1000)).expect("room"), None);
        all.clear();
        assert_eq!(*budget.lock(), 0);
    }

    #[test]
    fn streams_that_say_nothing_are_charged_too() {
        let budget = Arc::new(Budget::default());
        let all: Vec<_> = std::iter::from_fn(|| budget.begin().ok()).collect();
        assert_eq!(all.len(), MAX_UNDECIDED_BYTES / UNDECIDED_STREAM_BYTES);
    }

    #[test]
    fn the_only_request_is_let_in_whatever_it_is_and_the_next_has_to_wait_for_its_end() {
        let budget = Arc::new(Budget::default());
        let mut large = budget.begin().expect("room");
        large.raise(3 * MAX_UNDECIDED_BYTES).expect("the only one");
        assert_eq!(budget.begin().expect_err("no room"), Exceeded);
        drop(large);
        drop(budget.begin().expect("room again"));
    }

    #[test]
    fn a_frame_over_its_cap_is_no_matter_of_the_budget() {
        let budget = Arc::new(Budget::default());
        let failed = begin(&budget).decode(&mut exec(MAX_EXEC + 1)).expect_err("too long");
        assert!(matches!(failed, ChargedError::Codec(CodecError::TooLong { .. })), "{failed}");
    }
}
