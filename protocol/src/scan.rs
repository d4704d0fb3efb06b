//! Follows frames in a byte stream without decoding or copying them: what the daemons in the middle need.

use crate::codec::{CodecError, HEADER_LEN, Kind, read_header};

/// Says which way a session's frames go, and so which kinds may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the caller to the command.
    ToTarget,
    /// From the command to the caller.
    ToCaller,
}

impl Direction {
    /// Tells whether a frame of this kind may pass, once the session's first frame is through.
    pub fn allows(self, kind: Kind) -> bool {
        match self {
            Direction::ToTarget => matches!(
                kind,
                Kind::Stdin | Kind::StdinEof | Kind::Signal | Kind::Ack | Kind::StopOutput | Kind::Goodbye
            ),
            Direction::ToCaller => matches!(
                kind,
                Kind::Refused
                    | Kind::Started
                    | Kind::Attached
                    | Kind::Superseded
                    | Kind::Stdout
                    | Kind::Stderr
                    | Kind::StdinAck
                    | Kind::StdinClosed
                    | Kind::Exit
                    | Kind::Listed
                    | Kind::Killed
            ),
        }
    }
}

/// Reads kinds and lengths of the frames that pass, checks them against the caps and the direction, and notes the last
/// kind that began.
#[derive(Debug, Clone)]
pub struct Scanner {
    direction: Direction,
    header: [u8; HEADER_LEN],
    have: usize,
    left: usize,
    last: Option<Kind>,
}

impl Scanner {
    /// Makes a scanner at the beginning of a frame.
    pub fn new(direction: Direction) -> Self {
        Self { direction, header: [0; HEADER_LEN], have: 0, left: 0, last: None }
    }

    /// Returns the kind of the last frame that began.
    pub fn last(&self) -> Option<Kind> {
        self.last
    }

    /// Tells whether the bytes so far end where a frame ends.
    pub fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Looks at the next bytes of the stream.
    ///
    /// # Errors
    /// [`CodecError`]: an unknown kind, one that may not pass here, or a length over its cap.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), CodecError> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = self.left.min(bytes.len());
                self.left -= step;
                bytes = bytes.get(step..).unwrap_or_default();
                continue;
            }
            let step = (HEADER_LEN - self.have).min(bytes.len());
            let (taken, rest) = bytes.split_at(step);
            if let Some(slot) = self.header.get_mut(self.have..self.have + step) {
                slot.copy_from_slice(taken);
            }
            self.have += step;
            bytes = rest;
            if self.have == HEADER_LEN {
                self.have = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), CodecError> {
        let (kind, wanted) = read_header(self.header, usize::MAX)?;
        if !self.direction.allows(kind) {
            return Err(CodecError::OutOfOrder { got: kind, wanted: "a frame of this direction" });
        }
        self.left = wanted;
        self.last = Some(kind);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Frame;
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    #[test]
    fn a_length_over_the_cap_stops_the_stream_before_its_bytes() {
        let mut scanner = Scanner::new(Direction::ToCaller);
        let error = scanner.feed(&[Kind::Stdout as u8, 1, 0, 1, 0]).expect_err("65537");
        assert!(matches!(error, CodecError::TooLong { .. }));
    }

    #[test]
    fn a_frame_of_the_other_direction_does_not_pass() {
        let bytes = Frame::empty(Kind::StdinEof).to_bytes();
        assert!(Scanner::new(Direction::ToTarget).feed(&bytes).is_ok());
        assert!(Scanner::new(Direction::ToCaller).feed(&bytes).is_err());
    }

    #[test]
    fn a_seal_or_a_proof_has_no_place_yet() {
        for kind in [Kind::Seal, Kind::Proof] {
            assert!(!Direction::ToTarget.allows(kind) && !Direction::ToCaller.allows(kind), "{kind:?}");
        }
    }

    #[test]
    fn no_kind_passes_in_both_directions() {
        for kind in Kind::ALL {
            assert!(!(Direction::ToTarget.allows(*kind) && Direction::ToCaller.allows(*kind)), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn the_cuts_between_reads_do_not_matter(sizes in prop::collection::vec(0usize..2000, 1..8), cut in 1usize..700) {
            let mut stream = BytesMut::new();
            for size in &sizes {
                Frame::data(Kind::Stdin, Bytes::from(vec![7; *size])).write_to(&mut stream);
            }
            Frame::empty(Kind::Goodbye).write_to(&mut stream);
            let mut scanner = Scanner::new(Direction::ToTarget);
            for piece in stream.chunks(cut) {
                scanner.feed(piece).expect("well formed");
            }
            prop_assert!(scanner.at_boundary());
            prop_assert_eq!(scanner.last(), Some(Kind::Goodbye));
        }
    }
}
