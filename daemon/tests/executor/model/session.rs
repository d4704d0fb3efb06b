//! One session as the model knows it, beside the real one: who follows it, what they got, and how it must answer.

use futures_util::{SinkExt, StreamExt};

use malai_protocol::codec::{CodecError, Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::plan::{CallerGone, Ended, Hello, Outcome, SessionName};
use malai_protocol::session::{
    Ack, Attached, EndedBy, ExitRecord, OUTPUT_WINDOW, Output, STDIN_CREDIT, Started, Status, StdinAck, Superseded,
};

use super::super::harness::{Caller, Lab, attachment, process, within};
use super::command::{CODE, Command, LINE, input};
use super::{Attach, Cut, End, Met, Number, Offset, settle};

/// So much output a command is made to write, and some lines more: less than is kept.
const MOST: u64 = OUTPUT_WINDOW * 2 / 3;

/// What there is of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No plan was taken on.
    Unsent,
    Live,
    /// It is over, and output that was not acknowledged is kept.
    Kept,
    /// It is over, and only the record is kept.
    Record,
    /// It ended with an earlier executor.
    Past,
}

/// A process that follows.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Its last attachment, whether or not that arrived.
    number: u32,
    /// It has the output up to there, but for what it was told is not kept.
    has: u64,
    acked: u64,
}

/// The attachment that is open.
struct Seat {
    process: usize,
    caller: Caller,
    /// The offset of the output that comes next.
    at: u64,
    /// The offset of the input that goes next.
    stdin: u64,
    has_record: bool,
}

/// How an attachment must be answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Follows,
    Missing,
    Record,
    Refused(FailureKind),
}

pub(super) struct Session {
    pub(super) name: SessionName,
    command: Command,
    pub(super) phase: Phase,
    processes: [Process; 3],
    /// The process that follows, or did last, the number of its attachment, and whether that is binding.
    last: Option<(usize, u32, bool)>,
    seat: Option<Seat>,
    /// A plan came alone: the place of its attachment is open.
    awaited: bool,
    started: Option<Started>,
    /// Of each byte of output that anybody got: its stream, and its offset there.
    tape: Vec<(Output, u64)>,
    /// Bytes of each stream on it.
    written: [u64; 2],
    acked: u64,
    /// Input that arrived for certain, and all that can have arrived.
    stdin: (u64, u64),
    pub(super) record: Option<ExitRecord>,
    pub(super) audited: bool,
}

impl Session {
    pub(super) fn new(name: SessionName, command: Command) -> Self {
        Self {
            name,
            command,
            phase: Phase::Unsent,
            processes: Default::default(),
            last: None,
            seat: None,
            awaited: false,
            started: None,
            tape: Vec::new(),
            written: [0; 2],
            acked: 0,
            stdin: (0, 0),
            record: None,
            audited: false,
        }
    }

    /// What holds at any time.
    pub(super) fn check(&self) {
        self.command.check(self.stdin.1);
        let printed = self.tape.len() as u64;
        let read = self.command.read().len() as u64;
        assert!(printed <= 2 * self.command.answers(read), "{printed} bytes of output after {read} of input");
    }

    pub(super) fn is_over(&self) -> bool {
        !matches!(self.phase, Phase::Unsent | Phase::Live)
    }

    /// The most output that there can be.
    fn most(&self) -> u64 {
        2 * self.command.answers(self.stdin.1)
    }

    fn total(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.stdout_bytes + record.stderr_bytes)
    }

    /// Sends the plan, and an attachment with it.
    pub(super) async fn send(&mut self, lab: &mut Lab, met: Met, follow: bool) {
        let resend = met.resend(lab);
        lab.control.send(Kind::Plan, &self.command.plan(self.name, resend)).await;
        if self.phase == Phase::Unsent && met.is_sure() {
            self.phase = Phase::Live;
            self.awaited = !follow;
            if !follow {
                return settle(lab).await;
            }
            let number = self.processes[0].number + 1;
            self.processes[0].number = number;
            let mut caller = self.arrive(lab, number).await;
            self.started = Some(caller.started().await);
            self.last = Some((0, number, true));
            self.seat = Some(Seat { process: 0, caller, at: 0, stdin: 0, has_record: false });
            return;
        }
        let refusal = if self.phase == Phase::Live {
            settle(lab).await;
            FailureKind::Conflict
        } else {
            let Ended { session, outcome, .. } = lab.control.ended().await;
            assert_eq!(session, self.name);
            let Outcome::Refused(failure) = outcome else { panic!("it ran again: {outcome:?}") };
            assert_eq!(failure.kind, FailureKind::Unknown);
            FailureKind::Unknown
        };
        if !self.awaited {
            let number = self.processes[0].number + 1;
            assert_eq!(self.arrive(lab, number).await.refused().await.kind, refusal);
        } else if self.phase == Phase::Kept {
            self.awaited = false;
        }
    }

    /// The attachment that comes with a plan.
    async fn arrive(&self, lab: &Lab, number: u32) -> Caller {
        let hello = Hello::Attach(attachment(self.name, Some(process(0)), number));
        Caller { acks: false, ..lab.greet(hello).await }
    }

    /// How it must answer an attachment of this number that asks for this offset.
    fn answer(&self, attach: &Attach, number: u32, asked: u64) -> Answer {
        let unknown = Answer::Refused(FailureKind::Unknown);
        match (self.phase, self.last) {
            (Phase::Unsent, _) if attach.met.is_sure() => Answer::Missing,
            (Phase::Unsent | Phase::Past, _) => unknown,
            (Phase::Record, _) if asked <= self.total() => Answer::Record,
            _ if asked > self.most() => unknown,
            (_, Some((last, counted, _))) if last == attach.process && number <= counted => unknown,
            (_, Some((last, ..))) if last != attach.process && !attach.take_over => {
                Answer::Refused(FailureKind::Conflict)
            }
            _ => Answer::Follows,
        }
    }

    pub(super) async fn attach(&mut self, lab: &Lab, attach: Attach) {
        let most = self.most();
        let own = &mut self.processes[attach.process];
        let number = match attach.number {
            Number::Next => own.number + 1,
            Number::Later => own.number + 3,
            Number::Same => own.number,
            Number::Older => own.number.saturating_sub(1),
        };
        own.number = own.number.max(number);
        let out_offset = match attach.offset {
            Offset::Zero => 0,
            Offset::Acked => own.acked,
            Offset::Has => own.has,
            Offset::Less(by) => own.has.saturating_sub(by),
            Offset::Beyond => most + 1,
        };
        let who = attachment(self.name, Some(process(u8::try_from(attach.process).expect("small"))), number);
        let who = malai_protocol::plan::Attachment { binding: attach.binding, ..who };
        let (take_over, resend) = (attach.take_over, attach.met.resend(lab));
        let hello = Hello::Resume { attachment: who, out_offset, from_end: false, take_over, resend };
        let mut caller = Caller { acks: false, ..lab.greet(hello).await };
        match self.answer(&attach, number, out_offset) {
            Answer::Missing => assert_eq!(caller.next().await.expect("an answer").kind, Kind::Missing),
            Answer::Refused(kind) => assert_eq!(caller.refused().await.kind, kind),
            Answer::Record => {
                let attached = caller.attached().await;
                assert_eq!((attached.out_offset, attached.stdin_closed), (self.total(), true));
                self.told(&caller.next().await.expect("a record").expect(Kind::Exit, "a record").expect("decodes"));
                assert!(caller.next().await.is_none(), "something follows the record");
            }
            Answer::Follows => {
                let attached = caller.attached().await;
                assert_eq!(attached.out_offset, out_offset.max(self.acked), "where the output goes on");
                self.superseded(attach.process).await;
                self.last = Some((attach.process, number, attach.binding));
                self.follow(attach.process, caller, attached).await;
            }
        }
    }

    /// Who followed is told who does now, and nothing more.
    async fn superseded(&mut self, by: usize) {
        let Some(mut seat) = self.seat.take() else { return };
        loop {
            let frame = seat.caller.next().await.expect("it is told who follows now");
            if frame.kind == Kind::Superseded {
                let by_whom: Superseded = frame.decode().expect("decodes");
                assert_eq!(by_whom.follower, process(u8::try_from(by).expect("small")));
                break;
            }
            self.take(&mut seat, &frame);
        }
        assert!(seat.caller.next().await.is_none(), "something follows after another took its place");
    }

    async fn follow(&mut self, process: usize, mut caller: Caller, attached: Attached) {
        let (least, most) = self.stdin;
        let stdin = attached.stdin_offset;
        assert!((least..=most).contains(&stdin), "{stdin} bytes of input arrived, of {least} to {most}");
        assert_eq!(attached.stdin_closed, self.phase == Phase::Kept);
        // What went to an attachment before and had not arrived by now never does.
        self.stdin = (stdin, stdin);
        let started = match attached.started {
            Some(started) => started,
            None => caller.started().await,
        };
        assert_eq!(self.started.get_or_insert_with(|| started.clone()), &started);
        assert_eq!(attached.incarnation, started.incarnation);
        let own = &mut self.processes[process];
        own.has = own.has.max(attached.out_offset);
        self.seat = Some(Seat { process, caller, at: attached.out_offset, stdin, has_record: false });
    }

    /// What an attachment is sent.
    fn take(&mut self, seat: &mut Seat, frame: &Frame) {
        assert!(!seat.has_record, "{:?} follows the record", frame.kind);
        match frame.kind {
            Kind::Stdout => self.output(seat, Output::Stdout, &frame.payload),
            Kind::Stderr => self.output(seat, Output::Stderr, &frame.payload),
            Kind::StdinAck => {
                let StdinAck { offset, credit } = frame.decode().expect("decodes");
                assert!(offset <= seat.stdin && credit == offset + STDIN_CREDIT, "{offset} {credit}");
            }
            Kind::Exit => {
                self.told(&frame.decode().expect("decodes"));
                assert_eq!(seat.at, self.total(), "a record without all output before it");
                seat.has_record = true;
            }
            // It was killed while there was more to read.
            Kind::StdinClosed if self.phase != Phase::Live => {}
            kind => panic!("{kind:?} to a follower"),
        }
    }

    /// Each byte is the one that is due, whoever gets it.
    fn output(&mut self, seat: &mut Seat, stream: Output, bytes: &[u8]) {
        for byte in bytes {
            let at = usize::try_from(seat.at).expect("fits");
            assert!(at <= self.tape.len(), "a gap before {at} that was not told");
            if at == self.tape.len() {
                self.tape.push((stream, self.written[stream as usize]));
                self.written[stream as usize] += 1;
            }
            let (of, offset) = self.tape[at];
            assert_eq!(of, stream, "another stream at {at} than before");
            assert_eq!(*byte, self.command.byte(stream, offset), "at {at}, {offset} of {stream:?}");
            seat.at += 1;
        }
        let own = &mut self.processes[seat.process];
        own.has = own.has.max(seat.at);
    }

    /// All that is told of its end is the same.
    fn told(&mut self, record: &ExitRecord) {
        assert_eq!(self.record.get_or_insert_with(|| record.clone()), record);
        let [stdout, stderr] = self.written;
        let most = stdout <= record.stdout_bytes && stderr <= record.stderr_bytes;
        assert!(most, "{stdout} and {stderr} bytes of output, more than the record tells: {record:?}");
    }

    /// Sends so many more bytes of input, if all that is answered is kept when nobody takes it.
    pub(super) async fn write(&mut self, count: u64) {
        if 2 * self.command.answers(self.stdin.1 + count) < MOST {
            self.write_on(count).await;
        }
    }

    async fn write_on(&mut self, count: u64) {
        let Some(seat) = self.seat.as_mut().filter(|_| self.phase == Phase::Live) else { return };
        let bytes: Vec<u8> = (seat.stdin..seat.stdin + count).map(input).collect();
        seat.caller.stdin(&bytes).await;
        seat.stdin += count;
        self.stdin.1 = seat.stdin;
    }

    /// Takes at most so many frames of those that must come.
    pub(super) async fn read(&mut self, most: usize) {
        let Some(mut seat) = self.seat.take() else { return };
        let due = 2 * self.command.answers(seat.stdin);
        for _ in 0..most {
            if seat.has_record || (self.phase == Phase::Live && seat.at == due) {
                break;
            }
            let frame = seat.caller.next().await.expect("more comes");
            self.take(&mut seat, &frame);
        }
        self.seat = Some(seat);
    }

    /// Acknowledges all that arrived but for so much.
    pub(super) async fn ack(&mut self, but: u64) {
        let Some(seat) = &mut self.seat else { return };
        let out_offset = seat.at.saturating_sub(but);
        seat.caller.send(Kind::Ack, &Ack { out_offset }).await;
        let own = &mut self.processes[seat.process];
        own.acked = own.acked.max(out_offset);
        self.acked = self.acked.max(out_offset);
        // It was taken when something is answered that was sent after it, or the connection is closed at its end.
        if self.phase == Phase::Live {
            self.write_on(LINE).await;
            self.read(usize::MAX).await;
        } else {
            self.cut(Cut::AtItsEnd).await;
        }
    }

    pub(super) async fn cut(&mut self, how: Cut) {
        let Some(mut seat) = self.seat.take() else { return };
        match how {
            Cut::Anywhere => return,
            Cut::AtItsEnd => {
                seat.caller.framed.close().await.expect("closes");
                self.stdin.0 = seat.stdin;
            }
            Cut::Broken => seat.caller.send(Kind::Ack, &Ack { out_offset: self.most() + 1 }).await,
        }
        self.rest(seat).await;
    }

    /// Takes what comes until the executor closes, be it within a frame.
    async fn rest(&mut self, mut seat: Seat) {
        loop {
            match within("the executor closes", seat.caller.framed.next()).await {
                Some(Ok(frame)) => self.take(&mut seat, &frame),
                Some(Err(CodecError::Truncated)) | None => return,
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }

    /// The caller of an attachment goes away.
    pub(super) async fn gone(&mut self, lab: &mut Lab, index: usize, later: i32) {
        let number = self.processes[index].number.saturating_add_signed(later);
        let follower = Some(process(u8::try_from(index).expect("small")));
        lab.control.send(Kind::CallerGone, &CallerGone { session: self.name, follower, number }).await;
        let counts = self.last.is_none_or(|(last, counted, binding)| binding && last == index && number >= counted);
        match self.phase {
            Phase::Live if counts => {
                self.over(Phase::Record);
                self.close().await;
                self.ended(lab, EndedBy::CallerGone).await;
            }
            Phase::Kept if counts => {
                self.close().await;
                settle(lab).await;
                self.over(Phase::Record);
            }
            _ => settle(lab).await,
        }
    }

    /// The executor closes the attachment, if there is one.
    async fn close(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.rest(seat).await;
        }
    }

    fn over(&mut self, phase: Phase) {
        self.phase = phase;
        self.awaited &= phase == Phase::Kept;
    }

    /// The daemon is told of its end.
    async fn ended(&mut self, lab: &mut Lab, by: EndedBy) {
        let Ended { session, outcome, .. } = lab.control.ended().await;
        let Outcome::Exit(record) = outcome else { panic!("it ran: {outcome:?}") };
        assert_eq!((session, record.ended_by), (self.name, by));
        self.told(&record);
    }

    pub(super) async fn end(&mut self, lab: &mut Lab, how: End) {
        if how == End::Killed {
            let end = malai_protocol::plan::End { session: self.name, cause: EndedBy::Killed, reason: None };
            lab.control.send(Kind::End, &end).await;
            if self.phase != Phase::Live {
                return settle(lab).await;
            }
            self.over(Phase::Kept);
            self.read(usize::MAX).await;
            return self.ended(lab, EndedBy::Killed).await;
        }
        let Some(seat) = self.seat.as_mut().filter(|_| self.phase == Phase::Live) else { return };
        let sent = seat.stdin;
        seat.caller.raw(Frame::empty(Kind::StdinEof)).await;
        if how == End::Unfollowed {
            self.cut(Cut::AtItsEnd).await;
        }
        self.over(Phase::Kept);
        self.read(usize::MAX).await;
        self.ended(lab, EndedBy::Itself).await;
        let record = self.record.as_ref().expect("it was told");
        let each = self.command.answers(sent);
        let wanted = (Status::Exited { code: CODE }, each, each);
        assert_eq!((record.status, record.stdout_bytes, record.stderr_bytes), wanted);
        assert_eq!(self.command.read().len() as u64, sent, "it read all that was sent");
    }

    /// Whoever has the record says so.
    pub(super) async fn goodbye(&mut self) {
        if let Some(seat) = self.seat.as_mut().filter(|seat| seat.has_record) {
            seat.caller.raw(Frame::empty(Kind::Goodbye)).await;
            self.close().await;
            self.over(Phase::Record);
        }
    }

    /// The executor is being stopped: whoever follows still gets all.
    pub(super) async fn last_words(&mut self) {
        let was = self.phase;
        if was == Phase::Live {
            self.phase = Phase::Kept;
        }
        self.read(usize::MAX).await;
        self.goodbye().await;
        self.phase = was;
    }

    /// Another executor is here, whose list has it with this record.
    pub(super) fn past(&mut self, listed: Option<&ExitRecord>) {
        if self.phase == Phase::Unsent {
            return;
        }
        if self.phase == Phase::Live {
            assert_eq!(listed.map(|record| record.ended_by), Some(EndedBy::Shutdown));
        }
        self.over(Phase::Past);
        self.seat = None;
        listed.inspect(|record| self.told(record));
    }
}
