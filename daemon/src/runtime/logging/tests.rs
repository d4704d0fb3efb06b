use std::io::Read;
use std::os::fd::OwnedFd;

use super::*;

const SOON: Duration = Duration::from_secs(60);

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    (dir, home)
}

/// Returns a log that goes to this end of a pipe.
fn to(end: impl Into<OwnedFd>) -> Log {
    Log::start(Ok(Place::Stderr(File::from(end.into()))))
}

fn lost(log: &Log) -> u64 {
    log.lost().map_or(0, |lost| lost.lines)
}

/// Returns the whole log in the order in which it was written, and the size of each file.
fn written(home: &Home) -> (String, Vec<u64>) {
    let mut paths: Vec<_> = (1..10).rev().map(|number| home.log_part(number)).collect();
    paths.push(home.log());
    let files = paths.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let sizes = paths.iter().filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
    (files.collect(), sizes.collect())
}

#[test]
fn ten_thousand_lines_stay_within_the_bound_and_the_last_one_is_in_the_current_file() {
    let (_dir, home) = home();
    let log = Log::to_small_file(&home, 64 * 1024);
    for number in 0..10_000 {
        log.say(format!("{number:05} {}\n", "x".repeat(394)).as_bytes());
        if number % 1000 == 0 {
            log.flush(SOON);
        }
    }
    log.flush(SOON);
    let (_, sizes) = written(&home);
    assert_eq!(sizes.len(), 4, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 64 * 1024), "{sizes:?}");
    let current = std::fs::read_to_string(home.log()).expect("reads");
    assert!(current.lines().last().is_some_and(|line| line.starts_with("09999 ")), "{current}");
    assert_eq!(lost(&log), 0);
}

#[test]
fn two_that_write_one_log_lose_no_line_and_write_none_into_a_file_that_was_rotated() {
    let (_dir, home) = home();
    let logs: Vec<_> = (0..2).map(|_| Log::to_small_file(&home, 100_000)).collect();
    std::thread::scope(|scope| {
        for (name, log) in ["a", "b"].iter().zip(&logs) {
            scope.spawn(move || {
                for number in 0..3000 {
                    log.say(format!("{name} {number:04} {}\n", "x".repeat(42)).as_bytes());
                    if number % 50 == 0 {
                        log.flush(SOON);
                    }
                }
                log.flush(SOON);
            });
        }
    });
    // 2 * 3000 lines of 50 bytes are three full files.
    let (text, sizes) = written(&home);
    assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size <= 100_000), "{sizes:?}");
    assert!(text.lines().all(|line| line.len() == 49), "a line was torn");
    for name in ["a", "b"] {
        let own: Vec<_> = text.lines().filter(|line| line.starts_with(name)).map(|line| &line[2..6]).collect();
        let all: Vec<_> = (0..3000).map(|number| format!("{number:04}")).collect();
        assert_eq!(own, all, "{name}");
    }
}

#[test]
fn a_log_that_is_removed_or_moved_is_made_again_at_the_next_line_or_when_it_is_told_to() {
    let (_dir, home) = home();
    let log = Log::to_file(&home);
    log.say(b"one\n");
    log.flush(SOON);
    std::fs::rename(home.log(), home.root().join("moved")).expect("moved");
    log.say(b"two\n");
    log.flush(SOON);
    assert_eq!(std::fs::read_to_string(home.log()).expect("is made"), "two\n");
    std::fs::remove_file(home.log()).expect("removed");
    log.reopen();
    let deadline = Instant::now() + SOON;
    while !home.log().exists() {
        assert!(Instant::now() < deadline, "it is made without a line");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(std::fs::read_to_string(home.root().join("moved")).expect("is kept"), "one\n");
    assert_eq!(lost(&log), 0);
}

#[test]
fn a_full_disk_costs_lines_which_are_counted_and_said_when_there_is_room_again() {
    let (_dir, home) = home();
    std::os::unix::fs::symlink("/dev/full", home.log()).expect("linked");
    let log = Log::to_file(&home);
    log.say(b"one\n");
    log.say(b"two\n");
    log.flush(SOON);
    let found = log.lost().expect("they are lost");
    assert_eq!((found.lines, found.why.contains("No space left")), (2, true), "{found:?}");
    std::fs::remove_file(home.log()).expect("removed");
    log.say(b"three\n");
    log.flush(SOON);
    let text = std::fs::read_to_string(home.log()).expect("is made");
    let said = format!("malai: 2 lines of this log are missing here: {}\nthree\n", found.why);
    assert_eq!(text, said);
    assert_eq!(lost(&log), 2);
}

#[test]
fn a_directory_in_the_place_of_the_log_costs_lines_and_is_known_at_the_start() {
    let (_dir, home) = home();
    std::fs::create_dir(home.log()).expect("made");
    let log = Log::to_file(&home);
    assert!(log.lost().is_some_and(|lost| lost.lines == 0 && lost.why.contains("directory")));
    log.say(b"one\n");
    log.flush(SOON);
    assert_eq!(lost(&log), 1);
}

#[test]
fn a_log_that_cannot_be_rotated_goes_on_to_twice_its_bound_and_no_further() {
    let (_dir, home) = home();
    // No file takes the place of a directory.
    std::fs::create_dir(home.log_part(3)).expect("made");
    std::fs::write(home.log_part(2), "older").expect("written");
    let log = Log::to_small_file(&home, 1000);
    for _ in 0..50 {
        log.say(&[&[b'x'; 99][..], b"\n"].concat());
    }
    log.flush(SOON);
    assert_eq!(std::fs::metadata(home.log()).expect("is there").len(), 2000);
    assert_eq!(lost(&log), 30);
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nobody_and_costs_only_lines() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let log = to(writer);
    let line = [&[b'x'; 999][..], b"\n"].concat();
    for _ in 0..5000 {
        log.say(&line);
    }
    log.flush(Duration::from_millis(10));
    assert!(lost(&log) > 3000, "{:?}", log.lost());
    // A later reader gets what was kept, and a count of the rest.
    let read = std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut part = [0; 65536];
        while !String::from_utf8_lossy(&text).contains("\nlast\n") {
            let more = reader.read(&mut part).expect("reads");
            text.extend_from_slice(&part[..more]);
        }
        String::from_utf8(text).expect("text")
    });
    log.flush(SOON);
    log.say(b"last\n");
    let text = read.join().expect("ends");
    let missing = format!("malai: {} lines of this log are missing here: they come faster", lost(&log));
    assert!(text.contains(&missing), "{missing}");
}

#[test]
fn a_pipe_whose_reader_is_gone_costs_lines() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let log = to(writer);
    log.say(b"one\n");
    log.flush(SOON);
    assert!(log.lost().is_some_and(|lost| lost.lines == 1 && lost.why.contains("Broken pipe")), "{:?}", log.lost());
}

#[test]
fn a_line_is_bounded() {
    let (_dir, home) = home();
    let log = Log::to_file(&home);
    log.say(&vec![b'x'; LOG_QUEUE_MAX_BYTES * 2]);
    log.say(b"two\n");
    log.flush(SOON);
    let text = std::fs::read_to_string(home.log()).expect("reads");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0].ends_with("x…"), lines[1]), (2, true, "two"));
    assert!(text.len() < LOG_LINE_MAX_BYTES + 16);
}
