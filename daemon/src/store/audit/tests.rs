use malai_protocol::audit::{Event, MAX_LINE_BYTES};

use super::*;

fn entry(reason: &str) -> Entry {
    Entry {
        at_ms: 1,
        words: vec!["uptime".into()],
        reason: Some(reason.into()),
        ..Entry::new(Event::Start, "company", "00".into(), "id".into())
    }
}

fn reasons(path: &Path) -> Vec<Option<String>> {
    let text = fs::read_to_string(path).expect("reads");
    text.lines().map(|line| serde_json::from_str::<Entry>(line).ok().and_then(|e| e.reason)).collect()
}

fn said(words: &[&str]) -> Vec<Option<String>> {
    words.iter().map(|word| Some((*word).to_owned())).collect()
}

#[test]
fn a_line_is_there_when_append_returns_and_is_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let audit = Audit::open(&home).expect("opens");
    audit.append(&entry("one\ntwo")).expect("written");
    assert_eq!(reasons(&home.audit()), said(&["one\ntwo"]));
    assert_eq!(fs::metadata(home.audit()).expect("there").mode() & 0o7777, 0o600);
}

#[test]
fn the_log_is_rotated_by_size_and_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let length = serde_json::to_vec(&entry("0")).expect("encodes").len() as u64 + 1;
    let audit = Audit::open_with(&home, 2 * length).expect("opens");
    for number in 0..9 {
        audit.append(&entry(&number.to_string())).expect("written");
    }
    assert_eq!(reasons(&home.audit()), said(&["8"]));
    assert_eq!(reasons(&home.audit_part(1)), said(&["6", "7"]));
    assert_eq!(reasons(&home.audit_part(4)), said(&["0", "1"]));
    for number in 9..20 {
        audit.append(&entry(&number.to_string())).expect("written");
    }
    let parts = fs::read_dir(dir.path()).expect("lists").count();
    assert_eq!(parts, 1 + KEPT as usize);
    assert!(!home.audit_part(KEPT + 1).exists());
}

#[test]
fn a_full_disk_is_an_error_and_not_a_silent_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
    let audit = Audit::open(&home).expect("opens");
    let failed = audit.append(&entry("lost")).expect_err("no space");
    assert!(failed.message.starts_with("cannot write the audit "), "{failed}");
    assert!(failed.hint.is_some_and(|hint| hint.contains("df -h")));
}

#[test]
fn what_has_happened_is_owed_until_there_is_room_and_comes_before_what_follows() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
    let audit = Audit::open(&home).expect("opens");
    for word in ["one", "two"] {
        audit.record(&entry(word)).expect("is owed");
    }
    audit.append(&entry("lost")).expect_err("nothing new is written before what is owed");
    audit.pay().expect_err("no space");
    fs::remove_file(home.audit()).expect("removed");
    audit.append(&entry("three")).expect("written");
    assert_eq!(reasons(&home.audit()), said(&["one", "two", "three"]));
    audit.pay().expect("nothing is owed");
    assert_eq!(reasons(&home.audit()), said(&["one", "two", "three"]));
}

#[test]
fn what_is_owed_is_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    std::os::unix::fs::symlink("/dev/full", home.audit()).expect("linked");
    let audit = Audit::open(&home).expect("opens");
    let large = entry(&"x".repeat(1024 * 1024));
    let length = line_of(&large).expect("encodes").len();
    let owed = (0..10_000).take_while(|_| audit.record(&large).is_ok()).count();
    assert_eq!(owed, MAX_OWED_BYTES / length);
}

#[test]
fn what_moves_or_turns_a_terminals_text_is_not_in_the_file_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let audit = Audit::open(&home).expect("opens");
    let hostile = "\u{9b}31m\u{202e}cod.exe\u{2066}\u{200b}\u{ad}\u{feff}\u{e0041}\u{7f}\u{1b}[2J\r\n\u{2028}";
    let mut line = entry(hostile);
    line.words = vec![hostile.into()];
    line.who = Some(hostile.into());
    audit.append(&line).expect("written");
    let text = fs::read_to_string(home.audit()).expect("reads");
    let shown: Vec<char> = text.trim_end().chars().filter(|c| !(' '..='~').contains(c)).collect();
    assert_eq!(shown, Vec::<char>::new(), "{text:?}");
    let read: Entry = serde_json::from_str(&text).expect("an entry");
    assert_eq!((read.reason.as_deref(), read.words), (Some(hostile), vec![hostile.to_owned()]));
}

#[test]
fn no_line_is_longer_than_16_kib_whatever_it_is_about() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let audit = Audit::open(&home).expect("opens");
    let long = "\u{1}".repeat(1 << 20);
    let mut line = entry(&long);
    (line.words, line.env) = (vec![long.clone(); 2], vec![long.clone(); 2]);
    (line.outcome, line.who, line.user) = (Some(long.clone()), Some(long.clone()), Some(long.clone()));
    (line.cluster, line.session, line.id52) = (long.clone(), long.clone(), long);
    let bytes = audit.append(&line).expect("written");
    assert!(bytes <= MAX_LINE_BYTES as u64, "{bytes}");
    assert_eq!(reasons(&home.audit()).len(), 1);
}

/// How much room there is beyond the end of a file, where the file system can do that.
fn lead_of(path: &Path) -> u64 {
    lead::left_of(path).unwrap_or_default()
}

#[test]
fn the_newest_part_has_room_beyond_its_end_and_older_ones_have_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let audit = Audit::open_with(&home, 64 * 1024).expect("opens");
    let line = entry(&"x".repeat(1000));
    for _ in 0..200 {
        audit.append(&line).expect("written");
        let left = lead_of(&home.audit());
        assert!(left == 0 || left >= AUDIT_LEAD_BYTES / 2 - 8192, "{left}");
    }
    assert!(home.audit_part(2).exists());
    assert!(lead_of(&home.audit_part(1)) < 8192, "{}", lead_of(&home.audit_part(1)));
}

#[test]
fn a_line_that_a_crash_cut_off_does_not_spoil_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    fs::write(home.audit(), "{\"at_ms\":1,\"ev").expect("written");
    Audit::open(&home).expect("opens").append(&entry("whole")).expect("written");
    assert_eq!(reasons(&home.audit()), [None, Some("whole".to_owned())]);
}

#[test]
fn a_log_that_was_moved_away_is_begun_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    let audit = Audit::open(&home).expect("opens");
    audit.append(&entry("one")).expect("written");
    fs::rename(home.audit(), dir.path().join("elsewhere")).expect("moved");
    audit.append(&entry("two")).expect("written");
    assert_eq!(reasons(&home.audit()), said(&["two"]));
}
