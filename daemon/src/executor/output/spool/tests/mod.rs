use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use malai_protocol::session::Output::{Stderr, Stdout};

use super::*;
use crate::executor::testing::{live, other, session};

mod full;
mod model;
mod room;

/// A home, and limits that are soon reached: segments of 4 KiB, 8 of them a session, 32 in all.
struct Place {
    _dir: TempDir,
    home: Home,
    limits: Limits,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let limits =
            Limits { segment: 4096, session: 8 * 4096, budget: 32 * 4096, sessions: 8, each: 6, ..Limits::default() };
        Self { _dir: dir, home, limits }
    }

    fn open(&self) -> Arc<Spools> {
        Spools::open_with(&self.home, self.limits.clone()).expect("opens")
    }

    /// The directory of a session.
    fn path(&self, session: &SessionName) -> PathBuf {
        self.home.sessions().join("spool").join(directory_name(session))
    }

    /// The segments' files of a session, oldest first.
    fn files(&self, session: &SessionName) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(session)).expect("a directory");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "out"));
        files.sort();
        files
    }
}

/// An end at this time.
fn end(at_ms: u64) -> End {
    let outcome = Outcome::Refused(Failure::new(Kind::NotFound, "no such program"));
    End { started: None, outcome, total: 0, at_ms }
}

/// So many bytes, of which no two neighbouring stretches are alike.
fn noise(at: usize, length: usize) -> Vec<u8> {
    (at..at + length).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

/// All pieces from `offset` on.
fn read(reader: &mut Reader, offset: u64) -> Vec<(u64, Vec<u8>)> {
    let pieces = reader.read(offset, usize::MAX).expect("reads");
    pieces.into_iter().map(|piece| (piece.at, piece.bytes.to_vec())).collect()
}

#[test]
fn output_and_end_are_there_for_the_next_executor() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    spool.append(Stdout, b"out").expect("writes");
    spool.append(Stderr, b"error").expect("writes");
    let ended = end(now_ms());
    spool.finish(ended.clone()).expect("is written");

    for spools in [spools, place.open()] {
        let kept = spools.find(&session(1)).expect("is kept");
        assert_eq!((&kept.about, &kept.end), (&live(1), &End { total: 8, ..ended.clone() }));
        let pieces = kept.reader().read(1, 100).expect("reads");
        let pieces: Vec<_> = pieces.iter().map(|piece| (piece.at, piece.stream, &piece.bytes[..])).collect();
        assert_eq!(pieces, [(1, Stdout, &b"ut"[..]), (3, Stderr, &b"error"[..])]);
        assert_eq!(kept.reader().read(8, 100).expect("reads"), []);
        assert!(spools.find(&session(2)).is_none());
    }
}

#[test]
fn a_session_whose_executor_died_has_an_unknown_end_and_no_half_record() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    spool.append(Stdout, b"whole").expect("writes");
    spool.append(Stdout, b"half").expect("writes");
    drop(spool);
    let files = place.files(&session(1));
    let bytes = fs::read(&files[0]).expect("reads");
    fs::write(&files[0], &bytes[..bytes.len() - 2]).expect("writes");

    let kept = place.open().find(&session(1)).expect("is kept");
    let Outcome::Refused(failure) = &kept.end.outcome else { panic!("a record from nowhere") };
    assert_eq!(failure.kind, Kind::Unknown);
    assert_eq!(failure.message, "the executor died while the command ran: how it ended is not known");
    assert_eq!((kept.end.total, read(&mut kept.reader(), 0)), (5, vec![(0, b"whole".to_vec())]));
    assert_eq!(fs::metadata(&files[0]).expect("a file").len(), (record::HEADER + 5) as u64);
    let again = place.open().find(&session(1)).expect("is kept");
    assert_eq!(again.end, kept.end, "it was written down");
}

#[test]
fn a_record_that_goes_back_is_cut_off_with_all_that_follows() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    spool.append(Stdout, b"once").expect("writes");
    drop(spool);
    let file = &place.files(&session(1))[0];
    let bytes = fs::read(file).expect("reads");
    fs::write(file, bytes.repeat(2)).expect("writes");
    let kept = place.open().find(&session(1)).expect("is kept");
    assert_eq!((kept.end.total, fs::read(file).expect("reads")), (4, bytes));
}

#[test]
fn a_segment_of_nothing_but_half_a_record_goes() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    spool.append(Stdout, b"half").expect("writes");
    drop(spool);
    fs::write(&place.files(&session(1))[0], b"\0\x04\0").expect("writes");
    let kept = place.open().find(&session(1)).expect("is kept");
    assert_eq!((kept.end.total, place.files(&session(1)).len()), (0, 0));
}

#[test]
fn what_does_not_read_is_removed_and_does_not_count() {
    let place = Place::new();
    let spools = place.open();
    let empty = spools.state().ledger.bytes();
    for number in 1..=3 {
        drop(spools.create(&live(number)).expect("room"));
    }
    fs::write(place.path(&session(1)).join(ABOUT), b"{").expect("writes");
    fs::remove_file(place.path(&session(2)).join(ABOUT)).expect("is removed");
    fs::rename(place.path(&session(3)), place.path(&session(4))).expect("is renamed");
    fs::write(place.path(&session(5)), b"").expect("writes");

    let spools = place.open();
    assert_eq!(spools.kept().len(), 0);
    assert_eq!(spools.state().ledger.bytes(), empty);
    let left = fs::read_dir(place.home.sessions().join("spool")).expect("a directory").count();
    assert_eq!(left, 0);
}

#[test]
fn an_end_that_does_not_read_loses_no_output() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    spool.append(Stdout, b"output").expect("writes");
    spool.finish(end(now_ms())).expect("is written");
    fs::write(place.path(&session(1)).join(END), b"{").expect("writes");
    let kept = place.open().find(&session(1)).expect("is kept");
    assert_eq!((kept.end.total, read(&mut kept.reader(), 0)), (6, vec![(0, b"output".to_vec())]));
}

#[test]
fn what_is_kept_is_for_its_user_only() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    spool.append(Stdout, b"secret").expect("writes");
    spool.finish(end(now_ms())).expect("is written");
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    let path = place.path(&session(1));
    assert_eq!((mode(&place.home.sessions().join("spool")), mode(&path)), (0o700, 0o700));
    let files: Vec<_> = fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.iter().map(|file| mode(file)).collect::<Vec<_>>(), [0o600; 3]);
}

#[test]
fn output_goes_when_its_time_is_over_whether_the_executor_lives_or_not() {
    let mut place = Place::new();
    place.limits.retention = Duration::from_secs(60);
    let spools = place.open();
    let empty = spools.state().ledger.bytes();
    for (number, age) in [(2, 30_000), (3, 50_000), (1, 61_000)] {
        let mut spool = spools.create(&live(number)).expect("room");
        spool.append(Stdout, b"output").expect("writes");
        spool.finish(end(now_ms() - age)).expect("is written");
    }
    let names = |spools: &Spools| spools.kept().iter().map(|kept| kept.about.session).collect::<Vec<_>>();
    let kept = spools.state().kept.values().next().cloned().expect("the first is there until it is removed");
    let mut reader = kept.reader();
    assert_eq!(names(&spools), [session(3), session(2)], "oldest first");
    assert!(spools.find(&session(1)).is_none());
    assert!(place.path(&session(1)).exists(), "a look does not wait for a removal");
    spools.expire();
    assert!(!place.path(&session(1)).exists());
    assert_eq!(
        (reader.range(), read(&mut reader, 0)),
        (6..6, vec![(6, Vec::new())]),
        "who reads it sees that it is gone"
    );

    assert_eq!(names(&place.open()), [session(3), session(2)]);
    place.limits.retention = Duration::from_secs(40);
    let spools = place.open();
    assert_eq!(names(&spools), [session(2)]);
    assert!(!place.path(&session(3)).exists());
    place.limits.retention = Duration::ZERO;
    assert_eq!(place.open().state().ledger.bytes(), empty);
}

#[test]
fn a_clock_that_was_ahead_does_not_keep_output_for_ever() {
    let place = Place::new();
    place.open().create(&live(1)).expect("room").finish(end(u64::MAX)).expect("is written");
    let kept = place.open().find(&session(1)).expect("is kept");
    assert!(kept.end.at_ms <= now_ms());
}
