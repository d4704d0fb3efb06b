//! The command's standard input: read against credit, and kept until the target has it, so that another connection can
//! go on at the exact byte.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use malai_protocol::codec::{Frame, Kind as FrameKind, MAX_DATA};
use malai_protocol::session::{Attached, STDIN_CREDIT, StdinAck};

use super::source::InputSource;

/// Holds standard input on its way. All offsets count from the start of the session.
#[derive(Debug)]
pub(super) struct Input {
    /// Absent when none is sent, or nothing more is to be read or noted of it.
    source: Option<InputSource>,
    /// What the target has not confirmed: at most [`STDIN_CREDIT`] bytes.
    kept: BytesMut,
    /// Where `kept` begins.
    confirmed: u64,
    /// Where the present connection goes on.
    next: u64,
    /// Up to where input went out on any connection.
    sent: u64,
    /// Up to where input may go out.
    credit: u64,
    /// It was read to its end.
    ended: bool,
    /// The command has started.
    started: bool,
    /// The end was sent on the present connection.
    end_sent: bool,
    /// The command takes no more.
    closed: bool,
}

impl Input {
    pub(super) fn new(source: Option<InputSource>) -> Self {
        let closed = source.is_none();
        let (kept, credit) = (BytesMut::new(), STDIN_CREDIT);
        Self {
            source,
            kept,
            confirmed: 0,
            next: 0,
            sent: 0,
            credit,
            ended: false,
            started: false,
            end_sent: false,
            closed,
        }
    }

    /// Returns where what was read ends.
    fn end(&self) -> u64 {
        self.confirmed + self.kept.len() as u64
    }

    /// Has more read, as far as it may be sent at once: nothing is taken from the stream that the command could not have.
    pub(super) fn ask(&mut self) {
        let most = self.credit.min(self.confirmed.saturating_add(STDIN_CREDIT)).saturating_sub(self.end());
        if let Some(source) = self.source.as_mut().filter(|_| most > 0 && !self.ended) {
            source.ask(most);
        }
    }

    /// Returns what was read, once [`Input::ask`] has asked for it. Cancel-safe.
    pub(super) async fn read(&mut self) -> io::Result<Bytes> {
        match self.source.as_mut() {
            Some(source) => source.next().await,
            None => std::future::pending().await,
        }
    }

    /// Keeps what was read for the command.
    ///
    /// # Errors
    /// Why the rest cannot be read: the command sees the end.
    pub(super) fn take(&mut self, chunk: io::Result<Bytes>) -> io::Result<()> {
        let end = match chunk {
            Ok(bytes) if !bytes.is_empty() => {
                self.kept.extend_from_slice(&bytes);
                return Ok(());
            }
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        self.ended = true;
        self.drop_source();
        end
    }

    /// Notes that the command has started: what is read from here on counts as taken.
    pub(super) fn started(&mut self) {
        self.started = true;
        self.source.iter_mut().for_each(InputSource::started);
        self.drop_source();
    }

    /// Drops the source when nothing more is to be done with it. The position of a file that was read to its end is still
    /// to be moved when the command starts.
    fn drop_source(&mut self) {
        if self.ended && self.started {
            self.source = None;
        }
    }

    /// Returns the next frame for the present connection.
    pub(super) fn frame(&mut self) -> Option<Frame> {
        if self.closed {
            return None;
        }
        let from = usize::try_from(self.next - self.confirmed).ok()?;
        let most = usize::try_from(self.credit.saturating_sub(self.next)).unwrap_or(usize::MAX).min(MAX_DATA);
        let rest = self.kept.get(from..)?;
        if rest.is_empty() {
            let sends = self.ended && !self.end_sent;
            self.end_sent |= sends;
            return sends.then(|| Frame::empty(FrameKind::StdinEof));
        }
        let bytes = Bytes::copy_from_slice(&rest[..rest.len().min(most)]);
        if bytes.is_empty() {
            return None;
        }
        self.next += bytes.len() as u64;
        self.sent = self.sent.max(self.next);
        Some(Frame::data(FrameKind::Stdin, bytes))
    }

    /// Notes that the command has taken some.
    pub(super) fn acknowledge(&mut self, ack: StdinAck) -> Result<(), &'static str> {
        if ack.offset > self.next {
            return Err("the target confirmed more input than was sent");
        }
        self.confirm(ack.offset);
        self.credit = self.credit.max(ack.credit);
        Ok(())
    }

    /// Goes on, on another connection, where the target says.
    pub(super) fn resume(&mut self, attached: &Attached) -> Result<(), &'static str> {
        let Attached { stdin_offset, credit, stdin_closed, .. } = *attached;
        if stdin_closed {
            self.close();
            return Ok(());
        }
        if stdin_offset > self.sent {
            return Err("the target confirmed more input than was sent");
        }
        if stdin_offset < self.confirmed {
            return Err("the target confirmed less input than before");
        }
        self.confirm(stdin_offset);
        self.next = stdin_offset;
        self.credit = self.credit.max(credit);
        self.end_sent = false;
        Ok(())
    }

    /// Begins again, for a command that another connection started.
    ///
    /// # Errors
    /// When some of it is not kept any more.
    pub(super) fn restart(&mut self) -> Result<(), &'static str> {
        if self.confirmed > 0 {
            return Err("the target started again a command that had already taken input");
        }
        self.next = 0;
        self.end_sent = false;
        Ok(())
    }

    /// Sends nothing more: the command takes no more.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.source = None;
        self.kept.clear();
    }

    fn confirm(&mut self, offset: u64) {
        if let Some(more) = offset.checked_sub(self.confirmed).filter(|_| !self.closed) {
            self.kept.advance(usize::try_from(more).unwrap_or(usize::MAX).min(self.kept.len()));
            self.confirmed = offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::InputBegin;
    use super::*;
    use malai_protocol::id::Incarnation;

    /// Everything that goes out now, and whether the end did.
    fn drain(input: &mut Input) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        while let Some(frame) = input.frame() {
            match frame.kind {
                FrameKind::StdinEof => return (bytes, true),
                _ => bytes.extend_from_slice(&frame.payload),
            }
        }
        (bytes, false)
    }

    fn attached(stdin_offset: u64, credit: u64) -> Attached {
        let incarnation = Incarnation::from_bytes([1; 16]);
        Attached {
            incarnation,
            started: None,
            out_offset: 0,
            stdin_offset,
            credit,
            stdin_closed: false,
            watches: false,
        }
    }

    fn input(text: &'static [u8]) -> Input {
        let mut input = Input::new(Some(InputSource::start(io::empty(), InputBegin::AtOnce).expect("a thread")));
        input.take(Ok(Bytes::from_static(text))).expect("read");
        input
    }

    #[test]
    fn what_was_not_confirmed_goes_out_again_from_where_the_target_says_and_its_end_too() {
        let mut input = input(b"0123456789");
        input.take(Ok(Bytes::new())).expect("its end");
        assert_eq!(drain(&mut input), (b"0123456789".to_vec(), true));
        input.acknowledge(StdinAck { offset: 3, credit: STDIN_CREDIT }).expect("sound");
        input.resume(&attached(7, STDIN_CREDIT)).expect("sound");
        assert_eq!(drain(&mut input), (b"789".to_vec(), true));
        assert!(input.frame().is_none(), "the end is sent once");
        input.resume(&attached(10, STDIN_CREDIT)).expect("sound");
        assert_eq!(drain(&mut input), (Vec::new(), true));
    }

    #[test]
    fn offsets_that_cannot_be_are_refused() {
        let mut input = input(b"0123456789");
        assert!(input.resume(&attached(1, STDIN_CREDIT)).is_err(), "nothing was sent");
        drain(&mut input);
        assert!(input.acknowledge(StdinAck { offset: 11, credit: STDIN_CREDIT }).is_err());
        input.acknowledge(StdinAck { offset: 4, credit: STDIN_CREDIT }).expect("sound");
        assert!(input.resume(&attached(3, STDIN_CREDIT)).is_err());
        assert!(input.resume(&attached(11, STDIN_CREDIT)).is_err());
        assert!(input.restart().is_err());
    }

    #[test]
    fn a_closed_input_is_not_sent_again() {
        let mut input = input(b"0123456789");
        drain(&mut input);
        input.resume(&Attached { stdin_closed: true, ..attached(0, STDIN_CREDIT) }).expect("sound");
        assert_eq!(drain(&mut input), (Vec::new(), false));
    }
}
