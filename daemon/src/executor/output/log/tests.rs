use bytes::BufMut;
use proptest::prelude::*;

use malai_protocol::id::FollowerId;
use malai_protocol::plan::Attachment;
use malai_protocol::session::{OUTPUT_WINDOW, OUTPUT_WINDOW_MAX};

use super::*;
use crate::executor::session::followers::{Followers, Place, Verdict};
use crate::executor::testing::session;

/// The byte at this offset of what every command here writes.
fn byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
}

/// Reads at most so many of the bytes that are due.
fn write(log: &mut Log, stream: Stream, length: usize) -> usize {
    let at = log.total();
    let wrote = log.read(stream, length, |buffer| {
        let length = length.min(buffer.remaining_mut());
        (0..length as u64).for_each(|index| buffer.put_u8(byte(at + index)));
        Ok(length)
    });
    wrote.expect("it has bytes")
}

/// Writes all there is room for.
fn fill(log: &mut Log, piece: usize) {
    let mut stream = Stream::Stdout;
    loop {
        let room = usize::try_from(log.room(false)).expect("fits");
        if room == 0 {
            return;
        }
        write(log, stream, room.min(piece));
        stream = if stream == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
    }
}

#[test]
fn what_was_not_acknowledged_is_handed_over_again_from_any_byte() {
    let mut log = Log::new(Budget::new());
    fill(&mut log, 10_000);
    while log.take().is_some() {}
    assert!(log.ack(12_345));
    for from in [0, 12_344, 12_345, 12_346, 20_000, 64_000, log.total()] {
        let mut at = log.resume(from);
        assert_eq!(at, from.max(12_345));
        while let Some((_, bytes)) = log.take() {
            assert!(
                bytes.iter().all(|got| {
                    at += 1;
                    *got == byte(at - 1)
                }),
                "at {at}, from {from}"
            );
        }
        assert_eq!(at, log.total());
    }
}

#[test]
fn what_was_not_handed_over_cannot_be_acknowledged_nor_asked_for() {
    let mut log = Log::new(Budget::new());
    write(&mut log, Stream::Stdout, 10);
    assert!(!log.ack(1) && !log.was_sent(1));
    log.take();
    assert!(!log.ack(11) && !log.was_sent(11));
    assert!(log.was_sent(10) && log.ack(10) && log.ack(3));
    assert!(log.is_empty());
    write(&mut log, Stream::Stdout, 10);
    log.take();
    // The next attachment was handed nothing yet.
    log.resume(10);
    assert!(log.was_sent(20) && !log.ack(20));
}

#[test]
fn many_small_writes_in_turn_cost_no_more_than_the_window() {
    let mut log = Log::new(Budget::new());
    fill(&mut log, 1);
    assert!(log.pieces.len() as u64 * PIECE <= OUTPUT_WINDOW);
    assert!(log.total() >= OUTPUT_WINDOW / PIECE / 2, "{}", log.total());
}

#[test]
fn small_writes_of_one_stream_share_a_buffer() {
    let mut log = Log::new(Budget::new());
    for _ in 0..60_000 {
        write(&mut log, Stream::Stdout, 1);
    }
    log.take();
    assert!(log.pieces.len() <= 2, "{} pieces", log.pieces.len());
}

#[test]
fn a_log_that_sheds_keeps_as_much_as_a_window_can_be() {
    let mut log = Log::new(Budget::new());
    while log.total() < OUTPUT_WINDOW {
        write(&mut log, Stream::Stdout, SPARE);
        log.shed();
    }
    assert_eq!(log.resume(0), 0, "less is kept");
}

#[test]
fn a_log_that_sheds_keeps_the_newest_and_says_where_it_begins() {
    let mut log = Log::new(Budget::new());
    for _ in 0..100 {
        write(&mut log, Stream::Stdout, MAX_DATA);
        log.shed();
    }
    assert!(log.kept() <= log.window.size());
    let mut at = log.resume(0);
    assert!(at > 0);
    while let Some((_, bytes)) = log.take() {
        assert_eq!(bytes.first().copied(), Some(byte(at)));
        at += bytes.len() as u64;
    }
    assert_eq!(at, log.total());
}

/// What happens to a session, in any order.
#[derive(Debug, Clone)]
enum Step {
    Write {
        stderr: bool,
        length: usize,
    },
    /// So many pieces go on their way.
    Send(usize),
    /// So many of these arrive.
    Arrive(usize),
    /// What arrived is acknowledged, but for so much.
    Ack(u64),
    /// More is acknowledged than was sent.
    AckFuture(u64),
    /// The connection breaks: what is on its way is lost.
    Cut,
    Attach {
        process: usize,
        number: Number,
        offset: Offset,
        binding: bool,
        take_over: bool,
    },
    /// The caller of a process's last attachment goes, or of one so much later, which never arrived, or older.
    Gone {
        process: usize,
        later: i32,
    },
    End,
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Next,
    Same,
    Older,
}

#[derive(Debug, Clone, Copy)]
enum Offset {
    /// Where the process is.
    Own,
    Any(u64),
    Future(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = prop_oneof![6 => Just(Number::Next), 1 => Just(Number::Same), 1 => Just(Number::Older)];
    let offset = prop_oneof![
        6 => Just(Offset::Own),
        1 => (0..100_000u64).prop_map(Offset::Any),
        1 => (1..100_000u64).prop_map(Offset::Future),
    ];
    let length = prop_oneof![0..300usize, 0..MAX_DATA];
    let step = prop_oneof![
        6 => (any::<bool>(), length).prop_map(|(stderr, length)| Step::Write { stderr, length }),
        5 => (0..6usize).prop_map(Step::Send),
        5 => (0..6usize).prop_map(Step::Arrive),
        3 => (0..300u64).prop_map(Step::Ack),
        1 => (1..300u64).prop_map(Step::AckFuture),
        1 => Just(Step::Cut),
        3 => (0..3usize, number, offset, any::<bool>(), proptest::bool::weighted(0.2)).prop_map(
            |(process, number, offset, binding, take_over)| Step::Attach { process, number, offset, binding, take_over }
        ),
        1 => (0..3usize, -2..3i32).prop_map(|(process, later)| Step::Gone { process, later }),
        1 => Just(Step::End),
    ];
    proptest::collection::vec(step, 1..200)
}

/// One process that follows: it has all from `base` to `at`.
#[derive(Debug, Default, Clone)]
struct Process {
    number: u32,
    base: u64,
    at: u64,
    has_record: bool,
}

/// A session, and all that may follow it.
struct Scene {
    log: Log,
    followers: Followers,
    processes: [Process; 3],
    /// Which process follows, or did last, with its number, and whether it binds.
    last: Option<(usize, u32, bool)>,
    open: bool,
    on_its_way: VecDeque<Bytes>,
    acked: u64,
    ended: bool,
}

fn attachment(process: usize, number: u32, binding: bool) -> Attachment {
    let session = session(1);
    let follower = Some(FollowerId::from_bytes([u8::try_from(process).expect("small"); 16]));
    Attachment { session, by: session.caller, follower, number, binding, watches: false }
}

impl Scene {
    fn new() -> Self {
        Self {
            log: Log::new(Budget::new()),
            followers: Followers::default(),
            processes: Default::default(),
            last: None,
            open: false,
            on_its_way: VecDeque::new(),
            acked: 0,
            ended: false,
        }
    }

    fn current(&mut self) -> Option<&mut Process> {
        let (process, ..) = self.last.filter(|_| self.open)?;
        self.processes.get_mut(process)
    }

    fn arrive(&mut self, count: usize) {
        for bytes in self.on_its_way.drain(..count.min(self.on_its_way.len())).collect::<Vec<_>>() {
            let process = self.current().expect("something is on its way to it");
            for got in bytes {
                assert_eq!(got, byte(process.at), "at {}", process.at);
                process.at += 1;
            }
        }
        let all_sent = self.ended && self.log.backlog() == 0 && self.on_its_way.is_empty();
        let total = self.log.total();
        if all_sent && let Some(process) = self.current() {
            assert_eq!(process.at, total, "a record without all that came before it");
            process.has_record = true;
        }
    }

    fn attach(&mut self, process: usize, number: Number, offset: Offset, binding: bool, take_over: bool) {
        let own = self.processes[process].clone();
        let number = match number {
            Number::Next => own.number + 1,
            Number::Same => own.number,
            Number::Older => own.number.saturating_sub(1),
        };
        let asked = match offset {
            Offset::Own => own.at,
            Offset::Any(at) => at,
            Offset::Future(by) => self.log.sent + by,
        };
        if !self.log.was_sent(asked) {
            assert!(asked > self.log.sent, "what was sent may be asked for");
            return;
        }
        let verdict = self.followers.attach(attachment(process, number, binding), take_over, Place::Taken);
        let wanted = match self.last {
            Some((last, counted, _)) if last == process && number <= counted => Verdict::Stale,
            Some((last, ..)) if last != process && !take_over => Verdict::Taken,
            _ => Verdict::Follows,
        };
        assert_eq!(verdict, wanted);
        if verdict != Verdict::Follows {
            return;
        }
        self.on_its_way.clear();
        let from = self.log.resume(asked);
        assert_eq!(from, asked.max(self.acked), "it begins where it was asked for, or at the first byte kept");
        // What a process asks anew, or what another acknowledged, it begins anew.
        let base = if from == own.at { own.base } else { from };
        self.processes[process] = Process { number: own.number.max(number), base, at: from, has_record: false };
        (self.last, self.open) = (Some((process, number, binding)), true);
    }

    fn gone(&mut self, process: usize, later: i32) {
        let number = self.processes[process].number.saturating_add_signed(later);
        let follower = attachment(process, number, true).follower;
        let wanted = self.last.is_none_or(|(last, counted, binding)| binding && last == process && number >= counted);
        assert_eq!(self.followers.is_ended_by(follower, number), wanted);
        self.ended |= wanted;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { stderr, length } => {
                let room = usize::try_from(self.log.room(false)).expect("fits").min(length);
                if room > 0 && !self.ended {
                    write(&mut self.log, if stderr { Stream::Stderr } else { Stream::Stdout }, room);
                }
            }
            Step::Send(count) if self.open => {
                for _ in 0..count {
                    self.on_its_way.extend(self.log.take().map(|(_, bytes)| bytes));
                }
            }
            Step::Arrive(count) => self.arrive(count),
            Step::Ack(but) => {
                let Some(at) = self.current().map(|process| process.at) else { return };
                assert!(self.log.ack(at.saturating_sub(but)), "what arrived may be acknowledged");
                self.acked = self.acked.max(at.saturating_sub(but));
            }
            Step::AckFuture(by) => assert!(!self.log.ack(self.log.handed + by)),
            Step::Cut => {
                self.on_its_way.clear();
                self.open = false;
            }
            Step::Attach { process, number, offset, binding, take_over } => {
                self.attach(process, number, offset, binding, take_over);
            }
            Step::Gone { process, later } => self.gone(process, later),
            Step::End => self.ended = true,
            Step::Send(_) => {}
        }
        assert!(self.log.end - self.log.start <= OUTPUT_WINDOW_MAX);
        assert!(self.log.start <= self.log.handed && self.log.handed <= self.log.end);
        assert_eq!(self.log.start, self.acked);
    }

    /// Whoever follows at last gets all that is kept.
    fn close(mut self) {
        self.ended = true;
        let Some((process, ..)) = self.last else { return };
        self.attach(process, Number::Next, Offset::Own, true, true);
        while let Some((_, bytes)) = self.log.take() {
            self.on_its_way.push_back(bytes);
        }
        self.arrive(usize::MAX);
        assert!(self.processes[process].has_record);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever breaks in whatever order: what a process got is the output without a gap from where it was told that it
    /// begins; only the current binding attachment's process ends it by going; a record comes after all output.
    #[test]
    fn every_follower_gets_the_true_output_without_a_gap(steps in steps()) {
        let mut scene = Scene::new();
        steps.into_iter().for_each(|step| scene.step(step));
        scene.close();
    }
}
