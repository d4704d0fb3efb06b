use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::Kind;
use malai_protocol::local::Hello;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::holder::{is_listed, is_of};
use super::*;

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path().join("home"));
    (dir, home)
}

#[test]
fn a_second_holder_is_refused_with_the_first_ones_pid() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    let refused = Lock::take(&home, Part::Daemon).expect_err("held");
    assert_eq!(refused.kind, Kind::Conflict);
    assert!(refused.message.contains("a daemon for"), "{refused}");
    assert!(refused.message.ends_with(&format!("does not answer: pid {}", std::process::id())), "{refused}");
    drop(lock);
    drop(Lock::take(&home, Part::Daemon).expect("free again"));
}

#[test]
fn a_full_disk_keeps_nobody_from_the_lock() {
    let (_dir, home) = home();
    crate::store::prepare(&home).expect("made");
    std::os::unix::fs::symlink("/dev/full", home.lock()).expect("linked");
    drop(Lock::take(&home, Part::Daemon).expect("free"));
}

#[test]
fn a_shorter_word_leaves_nothing_of_a_longer_one() {
    let (_dir, home) = home();
    crate::store::prepare(&home).expect("made");
    std::fs::write(home.lock(), format!("{}\nagent", u64::MAX)).expect("written");
    let _lock = Lock::take(&home, Part::Daemon).expect("free");
    assert_eq!(std::fs::read_to_string(home.lock()).expect("reads"), format!("{}\n", std::process::id()));
}

#[test]
fn a_holder_that_answers_is_believed_about_itself() {
    let (_dir, home) = home();
    let _lock = Lock::take(&home, Part::Daemon).expect("free");
    let listener = UnixListener::bind(home.socket()).expect("binds");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("connects");
        let hello = Hello::new("1", 77, true);
        let frame = Frame::control(FrameKind::LocalHello, &hello).expect("encodes");
        stream.write_all(&frame.to_bytes()).expect("writes");
        // Until the other side has read it and left.
        stream.read_to_end(&mut Vec::new()).expect("the other side leaves");
    });
    match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
        Attempt::Held(holder) => assert_eq!(holder, Holder { pid: Some(77), agent: true, answers: true }),
        Attempt::Taken(_) => panic!("two hold the lock"),
    }
    answering.join().expect("ends");
}

#[test]
fn an_agent_is_known_even_when_it_does_not_answer() {
    let (_dir, home) = home();
    let _lock = Lock::take(&home, Part::Agent).expect("free");
    let listener = UnixListener::bind(home.socket()).expect("binds, and never accepts");
    match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
        Attempt::Held(holder) => {
            assert_eq!(holder, Holder { pid: Some(std::process::id()), agent: true, answers: false });
        }
        Attempt::Taken(_) => panic!("two hold the lock"),
    }
    drop(listener);
}

#[test]
fn no_child_inherits_a_lock() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    let changes = Changes::begin(&home).expect("free");
    for file in [&*lock.file.lock(), &changes.file] {
        assert_eq!(fcntl(file, FcntlArg::F_GETFD), Ok(FdFlag::FD_CLOEXEC.bits()));
    }
}

#[test]
fn a_lock_that_is_let_go_is_free_although_a_copy_of_it_is_open() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    let _copy = lock.file.lock().try_clone().expect("as in a child that is being spawned");
    drop(lock);
    drop(Lock::take(&home, Part::Daemon).expect("free again"));
}

#[test]
fn the_lock_works_in_a_symlinked_home_and_clears_leftovers() {
    let (dir, home) = home();
    crate::store::prepare(&home).expect("made");
    let link = Home::new(dir.path().join("link"));
    std::os::unix::fs::symlink(home.root(), link.root()).expect("linked");
    std::fs::write(home.root().join(".malai.toml.1.tmp"), "half").expect("written");
    std::fs::create_dir(home.clusters().join(".company.1.tmp")).expect("made");
    let _lock = Lock::take(&link, Part::Daemon).expect("free");
    Lock::take(&home, Part::Daemon).expect_err("the same home");
    assert!(!home.root().join(".malai.toml.1.tmp").exists());
    assert!(!home.clusters().join(".company.1.tmp").exists());
}

#[test]
fn a_change_beside_a_daemon_is_refused_and_beside_an_agent_is_not() {
    let (_dir, home) = home();
    for (part, refused) in [(Part::Daemon, true), (Part::Agent, false)] {
        let lock = Lock::take(&home, part).expect("free");
        let changes = Changes::begin(&home).expect("free");
        assert_eq!(changes.refuse_beside_a_daemon().is_err(), refused);
        drop(lock);
        changes.refuse_beside_a_daemon().expect("nobody is there");
    }
}

#[test]
fn two_changes_at_once_take_turns() {
    let (_dir, home) = home();
    let first = Changes::begin(&home).expect("free");
    let (told, heard) = std::sync::mpsc::channel();
    let second = std::thread::spawn({
        let home = home.clone();
        move || {
            let changes = Changes::begin(&home).expect("free in time");
            told.send(()).expect("is heard");
            drop(changes);
        }
    });
    heard.try_recv().expect_err("the first is still at it");
    drop(first);
    heard.recv_timeout(Duration::from_secs(5)).expect("the second had its turn");
    second.join().expect("ends");
}

#[test]
fn a_lock_whose_file_is_removed_is_taken_again_unless_somebody_was_faster() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    assert_eq!(lock.confirm().expect("looks"), None);
    std::fs::remove_file(home.lock()).expect("removed");
    assert_eq!(lock.confirm().expect("takes it again"), None);
    let holder = find_holder(&home).expect("looks").expect("held");
    assert_eq!(holder, Holder { pid: Some(std::process::id()), agent: false, answers: false });
    Lock::take(&home, Part::Daemon).expect_err("held");

    std::fs::remove_file(home.lock()).expect("removed");
    let faster = Lock::take(&home, Part::Agent).expect("nobody answers");
    assert!(lock.confirm().expect("looks").is_some_and(|holder| holder.agent));
    drop(lock);
    find_holder(&home).expect("looks").expect("the end of the one is not the end of the other");
    drop(faster);
    assert_eq!(find_holder(&home).expect("looks"), None);
}

#[test]
fn the_end_of_a_holder_is_waited_for_and_one_that_stays_is_returned() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    let held = find_holder(&home).expect("looks").expect("held");
    let stays = wait_for_release(&home, &held, Duration::ZERO).expect("looks");
    assert_eq!(stays.as_ref(), Some(&held));
    let waiting = std::thread::spawn({
        let (home, held) = (home.clone(), held.clone());
        move || wait_for_release(&home, &held, Duration::from_secs(60))
    });
    drop(lock);
    assert_eq!(waiting.join().expect("ends").expect("looks"), None);
    let other = Holder { pid: Some(1), ..held };
    let _lock = Lock::take(&home, Part::Daemon).expect("free");
    let next = wait_for_release(&home, &other, Duration::from_secs(60)).expect("looks").expect("held by another one");
    assert_eq!(next.pid, Some(std::process::id()));
}

#[test]
fn a_home_that_is_removed_is_not_made_again() {
    let (_dir, home) = home();
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    std::fs::remove_dir_all(home.root()).expect("removed");
    assert_eq!(lock.confirm().expect("looks"), None);
    assert_eq!(find_holder(&home).expect("looks"), None);
    assert!(!home.root().exists());
}

#[test]
fn nobody_takes_the_home_of_one_that_answers_although_its_lock_is_away() {
    let (_dir, home) = home();
    crate::store::prepare(&home).expect("made");
    let listener = UnixListener::bind(home.socket()).expect("binds");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("connects");
        let hello = Hello::new("1", 77, false);
        let frame = Frame::control(FrameKind::LocalHello, &hello).expect("encodes");
        stream.write_all(&frame.to_bytes()).expect("writes");
        stream.read_to_end(&mut Vec::new()).expect("the other side leaves");
    });
    match Lock::try_take(&home, Part::Daemon).expect("no disk error") {
        Attempt::Held(holder) => assert_eq!(holder, Holder { pid: Some(77), agent: false, answers: true }),
        Attempt::Taken(_) => panic!("two have the home"),
    }
    answering.join().expect("ends");
    assert_eq!(find_holder(&home).expect("looks"), None, "and it was let go");
}

#[test]
#[cfg(target_os = "linux")]
fn the_system_says_which_process_holds_the_lock() {
    let (_dir, home) = home();
    let me = i32::try_from(std::process::id()).expect("a pid");
    assert!(!is_held_by(&home, me), "there is none");
    let lock = Lock::take(&home, Part::Daemon).expect("free");
    assert!(is_held_by(&home, me));
    // As for one that hides what it has open.
    let inode = std::fs::metadata(home.lock()).expect("is there").ino();
    assert!(is_listed(me, inode) && !is_listed(1, inode) && !is_listed(me, inode + 1));
    assert!(is_of("1: FLOCK  ADVISORY  WRITE 6741 fe:00:10012007 0 EOF", 6741, 10_012_007));
    for other in ["1: -> FLOCK  ADVISORY  WRITE 7 fe:00:9 0 EOF", "2: POSIX  ADVISORY  WRITE 7 fe:00:9 0 EOF", ""] {
        assert!(!is_of(other, 7, 9), "{other}");
    }
    assert!(!is_held_by(&home, 1), "a pid that a crash has left, and that another process has by now");
    drop(lock);
    assert!(!is_held_by(&home, me) && !is_listed(me, inode));
}
