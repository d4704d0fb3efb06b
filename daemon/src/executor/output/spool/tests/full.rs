//! A disk that refuses.

use super::*;

/// Says to this test's own program, started again, where it is to write.
const CHILD: &str = "MALAI_TEST_SMALL_FILES";

/// The same writer on a disk without room.
fn fill_up(spool: &mut Spool) {
    let current = spool.current.as_mut().expect("something was written");
    current.file = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
}

#[test]
fn what_a_full_disk_loses_is_a_gap_and_later_output_is_kept_again() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    let mut reader = spool.reader();
    spool.append(Stdout, b"before").expect("writes");
    fill_up(&mut spool);
    let error = spool.append(Stdout, b"lost").expect_err("no room");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(spool.range(), 0..10);
    assert_eq!(read(&mut reader, 0), [(0, b"before".to_vec())]);
    assert_eq!(read(&mut reader, 6), [(10, Vec::new())], "a reader sees that nothing comes any more before that");
    spool.append(Stderr, b"after").expect("there is room again");
    assert_eq!(read(&mut reader, 6), [(10, b"after".to_vec())]);

    drop(spool);
    let kept = place.open().find(&session(1)).expect("is kept");
    assert_eq!(read(&mut kept.reader(), 0), [(0, b"before".to_vec()), (10, b"after".to_vec())]);
}

#[test]
fn an_end_that_a_full_disk_did_not_take_is_written_when_there_is_room() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    spool.append(Stdout, b"output").expect("writes");
    // Its name is taken.
    let new = place.path(&session(1)).join("end.new");
    fs::create_dir(&new).expect("is made");
    let ended = end(now_ms());
    spool.finish(ended.clone()).expect_err("no file");
    let known = spools.find(&session(1)).expect("this executor knows it");
    assert_eq!(known.end.outcome, ended.outcome);
    assert!(!spools.write_ends(), "nothing was tried again");
    fs::remove_dir(&new).expect("is removed");
    assert!(spools.write_ends());
    let kept = place.open().find(&session(1)).expect("is kept");
    assert_eq!(kept.end, known.end, "the next executor does not know how it ended");
}

#[test]
fn a_segment_that_could_not_be_begun_costs_no_older_one() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    (0..40).for_each(|_| spool.append(Stdout, &[b'x'; 1024]).expect("writes"));
    let (files, range) = (place.files(&session(1)), spool.range());
    spool.current = None;
    for _ in 0..20 {
        let at = spool.range().end;
        // Its name is taken.
        fs::create_dir(spool.reader().file(at)).expect("is made");
        spool.append(Stdout, b"lost").expect_err("no file");
        fs::remove_dir(spool.reader().file(at)).expect("is removed");
    }
    assert_eq!((place.files(&session(1)), spool.range().start), (files, range.start));
}

#[test]
fn half_a_record_is_taken_away_again_when_the_disk_is_full() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_small_files(&Home::new(path));
    }
    let place = Place::new();
    let name = std::thread::current().name().expect("a test has a name").to_owned();
    let program = std::env::current_exe().expect("this program");
    // Files of more than 16 blocks, of 512 or 1024 bytes, are refused to the child, and it is not killed for it.
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(program)
        .arg(name)
        .env(CHILD, place.home.root())
        .output()
        .expect("runs");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let kept = Spools::open(&place.home).expect("opens").find(&session(1)).expect("the child was here");
    let pieces = read(&mut kept.reader(), 0);
    let last = pieces.last().expect("output");
    assert_eq!(last.1, b"short", "{pieces:?}");
    assert_eq!(last.0 + 5, kept.end.total);
    assert_eq!(pieces.len(), 2, "one gap");
}

/// Writes to a file until that is refused within a record, and then what still fits.
fn write_small_files(home: &Home) {
    let mut spool = Spools::open(home).expect("opens").create(&live(1)).expect("room");
    let file = spool.reader().file(0);
    let mut whole = 0;
    let error = loop {
        match spool.append(Stdout, &noise(whole, 1000)) {
            Ok(()) => whole += 1000,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    let records = (whole / 1000) * (1000 + record::HEADER);
    assert!(whole > 0 && fs::metadata(file).expect("a file").len() == records as u64, "half a record is left");
    spool.append(Stdout, b"short").expect("there is room for that");
    let mut reader = spool.reader();
    let after = whole as u64 + 1000;
    assert_eq!(read(&mut reader, 0), [(0, noise(0, whole)), (after, b"short".to_vec())]);
}

#[test]
fn a_disk_that_refuses_a_new_session_is_named_and_nothing_stays_reserved() {
    let place = Place::new();
    let spools = place.open();
    let before = spools.state().ledger.bytes();
    let directory = place.home.sessions().join("spool");
    fs::remove_dir(&directory).expect("is removed");
    let failure = spools.create(&live(1)).expect_err("no directory");
    assert_eq!(failure.kind, Kind::Internal);
    assert!(failure.message.contains(directory.to_str().expect("text")), "{failure}");
    assert!(failure.message.contains("No such file"), "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("df -h")));
    assert_eq!(spools.state().ledger.bytes(), before);
    fs::create_dir(&directory).expect("is made");
    spools.create(&live(1)).expect("the name is free, and so is the room");
}

#[test]
fn an_end_that_cannot_be_written_is_kept_while_the_executor_lives() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    spool.append(Stdout, b"output").expect("writes");
    fs::create_dir(place.path(&session(1)).join(END)).expect("is made");
    let ended = end(now_ms());
    spool.finish(ended.clone()).expect_err("a directory is there");
    let kept = spools.find(&session(1)).expect("is kept");
    assert_eq!((&kept.end.outcome, read(&mut kept.reader(), 0)), (&ended.outcome, vec![(0, b"output".to_vec())]));
}

impl Reader {
    /// The file of the segment that begins there.
    fn file(&self, start: u64) -> PathBuf {
        self.segments.file(start)
    }
}
