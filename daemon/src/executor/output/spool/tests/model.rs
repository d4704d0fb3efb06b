//! Against all that was ever written, in memory.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use malai_protocol::codec::MAX_DATA;
use malai_protocol::session::Output as Stream;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append(bool, usize),
    /// From this part of all, in thousandths, or from where the last reading ended; and how much.
    Read(Option<u64>, usize),
}

/// All that was written.
#[derive(Default)]
struct Truth {
    bytes: Vec<u8>,
    /// Which stream, up to which offset.
    runs: Vec<(u64, Stream)>,
}

impl Truth {
    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn stream_at(&self, at: u64) -> Stream {
        self.runs[self.runs.partition_point(|(end, _)| *end <= at)].1
    }

    /// Reads, and says where that ended.
    fn check(&self, reader: &mut Reader, offset: u64, most: usize) -> u64 {
        let range = reader.range();
        assert_eq!(range.end, self.end());
        let mut at = offset.max(range.start);
        let due = (range.end - at.min(range.end)).min(most.max(1) as u64);
        let until = at + due;
        for piece in reader.read(offset, most).expect("reads") {
            assert_eq!(piece.at, at, "in order, without a gap");
            assert!((1..=MAX_DATA).contains(&piece.bytes.len()));
            let from = usize::try_from(at).expect("fits");
            assert!(piece.bytes == self.bytes[from..from + piece.bytes.len()], "the bytes at {at}");
            at += piece.bytes.len() as u64;
            let (first, last) = (self.stream_at(piece.at), self.stream_at(at - 1));
            assert_eq!((first, last), (piece.stream, piece.stream));
            let inside = self.runs.iter().filter(|(end, _)| (piece.at + 1..at).contains(end));
            assert!(inside.clone().all(|(end, _)| self.stream_at(*end) == piece.stream));
        }
        assert_eq!(at, until, "as much as was asked for, or all");
        at
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![0..100usize, 0..5000usize, 0..300_000usize];
    let most = prop_oneof![0..100usize, 0..100_000usize, 0..2_000_000usize];
    let step = prop_oneof![
        (any::<bool>(), length).prop_map(|(stderr, length)| Step::Append(stderr, length)),
        (proptest::option::of(0..1100u64), most).prop_map(|(from, most)| Step::Read(from, most)),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_gets_what_is_kept_as_it_was_written(steps in steps(), half in 0..40usize) {
        let mut place = Place::new();
        let (segment, session_limit) = (64 * 1024, 640 * 1024);
        place.limits = Limits { segment, session: session_limit, ..Limits::default() };
        let noise = noise(0, 600_011);
        let mut truth = Truth::default();
        let mut spool = place.open().create(&live(1)).expect("room");
        let (mut reader, mut at) = (spool.reader(), 0);
        for step in steps {
            match step {
                Step::Append(stderr, length) => {
                    let stream = if stderr { Stderr } else { Stdout };
                    let from = truth.bytes.len() % 300_000;
                    let bytes = &noise[from..from + length];
                    spool.append(stream, bytes).expect("writes");
                    truth.bytes.extend_from_slice(bytes);
                    if length > 0 {
                        truth.runs.push((truth.end(), stream));
                    }
                    let range = spool.range();
                    prop_assert!(range.end - range.start >= truth.end().min(session_limit - 2 * segment), "{range:?}");
                    let sizes: u64 = place.files(&session(1)).iter().map(|file| fs::metadata(file).expect("a file").len()).sum();
                    prop_assert!(sizes <= session_limit);
                }
                Step::Read(from, most) => {
                    let offset = from.map_or(at, |part| truth.end() * part / 1000);
                    truth.check(&mut spool.reader(), offset, most);
                    at = truth.check(&mut reader, offset, most);
                }
            }
        }
        drop((spool, reader));
        if let Some(last) = place.files(&session(1)).last() {
            let bytes = fs::read(last).expect("reads");
            let mut file = OpenOptions::new().append(true).open(last).expect("opens");
            // A stretch that begins as a record does, and is none.
            let next = [&[0, 100, 0, 0, 0][..], &truth.end().to_le_bytes(), &bytes].concat();
            file.write_all(&next[..half.min(next.len())]).expect("writes");
        }
        let kept = place.open().find(&session(1)).expect("is kept");
        prop_assert_eq!(kept.end.total, truth.end());
        let mut reader = kept.reader();
        for part in [0, 300, 999, 1000] {
            truth.check(&mut reader, truth.end() * part / 1000, 100_000);
        }
        truth.check(&mut reader, 0, usize::MAX);
    }
}

#[test]
fn a_reader_whose_segments_go_meanwhile_goes_on_where_output_is_kept() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    let done = AtomicBool::new(false);
    let mut reader = spool.reader();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut at = 0;
            loop {
                let over = done.load(Ordering::Acquire);
                let pieces = reader.read(at, 700).expect("reads");
                if pieces.is_empty() && over {
                    return at;
                }
                let start = reader.range().start;
                for piece in pieces {
                    assert!(piece.at == at || (piece.at > at && piece.at <= start), "{at}, {}, {start}", piece.at);
                    let from = usize::try_from(piece.at).expect("fits");
                    assert!(piece.bytes == noise(from, piece.bytes.len()), "the bytes at {from}");
                    at = piece.at + piece.bytes.len() as u64;
                }
            }
        });
        let mut at = 0;
        for length in (1..1500).cycle().take(4000) {
            spool.append(if length % 2 == 0 { Stdout } else { Stderr }, &noise(at, length)).expect("writes");
            at += length;
        }
        done.store(true, Ordering::Release);
        assert_eq!(reading.join().expect("reads to the end"), at as u64);
    });
    assert!(spool.range().start > 0);
}

#[test]
fn a_segment_that_is_gone_is_a_gap_between_its_neighbours() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    (0..3).for_each(|_| spool.append(Stdout, &[b'x'; 4096 - record::HEADER]).expect("writes"));
    fs::remove_file(&place.files(&session(1))[1]).expect("is removed");
    let pieces = spool.reader().read(0, usize::MAX).expect("reads");
    let starts: Vec<_> = pieces.iter().map(|piece| (piece.at, piece.bytes.len())).collect();
    assert_eq!(starts, [(0, 4083), (2 * 4083, 4083)]);
}
