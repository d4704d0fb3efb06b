//! How much is kept, and of whom.

use super::*;

/// Bytes that count now.
fn used(spools: &Spools) -> u64 {
    spools.state().ledger.bytes()
}

/// What the files of all sessions have.
fn on_disk(place: &Place) -> u64 {
    let sessions = fs::read_dir(place.home.sessions().join("spool")).expect("a directory");
    let files = sessions.flat_map(|entry| fs::read_dir(entry.expect("an entry").path()).expect("a directory"));
    files.map(|file| file.expect("an entry").metadata().expect("a file").len()).sum()
}

/// The same request of another caller.
fn of_other(number: u8) -> Live {
    Live { session: other(number), ..live(number) }
}

fn print(spool: &mut Spool, segments: usize) {
    for _ in 0..segments * 4 {
        spool.append(Stdout, &[b'x'; 1024]).expect("writes");
    }
}

#[test]
fn a_session_keeps_its_newest_output_up_to_its_own_limit() {
    let place = Place::new();
    let mut spool = place.open().create(&live(1)).expect("room");
    print(&mut spool, 20);
    assert_eq!(place.files(&session(1)).len(), 8);
    let range = spool.range();
    assert!(range.end == 20 * 4096 && range.end - range.start > 7 * 4000, "{range:?}");
}

#[test]
fn sessions_that_print_for_ever_leave_room_for_new_ones_of_the_same_caller_and_of_others() {
    let mut place = Place::new();
    place.limits.budget = 64 * 4096;
    place.limits.session = 64 * 4096;
    let spools = place.open();
    let mut first: Vec<_> = (1..=3).map(|number| spools.create(&live(number)).expect("room")).collect();
    for _ in 0..40 {
        first.iter_mut().for_each(|spool| print(spool, 1));
    }
    // Three quarters of a caller's three quarters.
    assert!((34 * 4096..=36 * 4096).contains(&used(&spools)), "{}", used(&spools) / 4096);
    assert!(on_disk(&place) <= used(&spools));
    let mut more = spools.create(&live(4)).expect("room for the same caller");
    let mut others = spools.create(&of_other(1)).expect("room for another");
    for spool in [&mut more, &mut others] {
        print(spool, 20);
    }
    assert_eq!(place.files(&session(4)).len(), 2, "it has its least");
    assert!(place.files(&other(1)).len() > 2, "another caller grows");
    assert!(used(&spools) <= 48 * 4096, "up to three quarters of all");
}

#[test]
fn what_is_expired_is_removed_for_a_new_session_only_when_it_is_in_the_way() {
    let mut place = Place::new();
    place.limits.budget = 9 * 4096;
    place.limits.retention = Duration::from_secs(60);
    let spools = place.open();
    let mut old = spools.create(&live(1)).expect("room");
    print(&mut old, 1);
    old.finish(End { at_ms: now_ms() - 61_000, ..end(0) }).expect("is written");
    let _second = spools.create(&live(2)).expect("room");
    let _third = spools.create(&live(3)).expect("room");
    assert!(place.path(&session(1)).exists(), "there was room without its removal");
    let _fourth = spools.create(&live(4)).expect("the room of the first");
    assert!(!place.path(&session(1)).exists());
    // Its name is free again, too.
    let (mut place, number) = (Place::new(), 5);
    place.limits.retention = Duration::from_secs(60);
    let spools = place.open();
    spools.create(&live(number)).expect("room").finish(end(now_ms() - 61_000)).expect("is written");
    spools.create(&live(number)).expect("the name of one that is expired");
}

#[test]
fn when_all_room_is_reserved_the_next_is_refused_with_figures_and_what_to_do() {
    let mut place = Place::new();
    // Each session has its description besides its segments.
    place.limits.budget = 9 * 4096;
    let spools = place.open();
    let first = spools.create(&live(1)).expect("room");
    let _second = spools.create(&live(2)).expect("room");
    let _third = spools.create(&live(3)).expect("room");
    let before = used(&spools);
    let failure = spools.create(&live(4)).expect_err("no room for this caller");
    assert_eq!(failure.kind, Kind::Busy);
    let told = "that machine keeps for this caller 25 KiB of detached output already, of at most 27 KiB";
    assert_eq!(failure.message, told);
    let hint = "finished ones go 24 h after their end: `malai sessions` shows them";
    assert_eq!(failure.hint.as_deref(), Some(hint));
    let _other = spools.create(&of_other(1)).expect("room for another");
    let failure = spools.create(&of_other(2)).expect_err("no room at all");
    assert_eq!(failure.message, "that machine keeps 33.3 KiB of detached output already, of at most 36 KiB");
    assert_eq!(used(&spools) - before, before / 3, "a refused one leaves nothing");
    assert!(!place.path(&session(4)).exists());

    first.finish(end(now_ms())).expect("is written");
    spools.create(&live(4)).expect("what the first did not use is given back");
}

#[test]
fn what_is_over_counts_with_its_files_in_this_executor_and_in_the_next() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    print(&mut spool, 3);
    spool.finish(end(now_ms())).expect("is written");
    let mut died = spools.create(&of_other(2)).expect("room");
    print(&mut died, 5);
    let reserved = used(&spools);
    drop(died);
    assert_eq!(used(&spools), reserved, "until the next executor");

    let spools = place.open();
    assert_eq!(used(&spools), on_disk(&place));
    let kept = spools.kept();
    assert_eq!(kept.iter().map(|kept| kept.size).sum::<u64>(), used(&spools));
    assert!(used(&spools) < reserved);
}

#[test]
fn sessions_are_counted_in_all_and_of_each_caller() {
    let mut place = Place::new();
    place.limits.budget *= 4;
    let spools = place.open();
    for number in 1..=3 {
        spools.create(&live(number)).expect("room").finish(end(now_ms())).expect("is written");
    }
    let _running: Vec<_> = (4..=6).map(|number| spools.create(&live(number)).expect("room")).collect();
    let failure = spools.create(&live(7)).expect_err("six are its most");
    let told = "that machine keeps for this caller 6 detached sessions already, which is the most";
    assert_eq!((failure.kind, failure.message.as_str()), (Kind::Busy, told));
    let _others: Vec<_> = (1..=2).map(|number| spools.create(&of_other(number)).expect("room")).collect();
    let failure = spools.create(&of_other(3)).expect_err("eight are the most");
    assert_eq!(failure.message, "that machine keeps 8 detached sessions already, which is the most");
    let spools = place.open();
    assert!(spools.create(&of_other(3)).is_err(), "in the next executor too");
}

#[test]
fn a_session_that_never_ran_leaves_nothing() {
    let place = Place::new();
    let spools = place.open();
    let empty = used(&spools);
    let mut spool = spools.create(&live(1)).expect("room");
    print(&mut spool, 5);
    spool.discard();
    assert_eq!((used(&spools), on_disk(&place), spools.kept().len()), (empty, 0, 0));
    spools.create(&live(1)).expect("its name is free again");
}

#[test]
fn a_name_is_for_one_session_while_it_runs_and_while_it_is_kept() {
    let place = Place::new();
    let spools = place.open();
    let mut spool = spools.create(&live(1)).expect("room");
    assert_eq!(spools.create(&live(1)).expect_err("it runs").kind, Kind::Conflict);
    spool.append(Stdout, b"output").expect("writes");
    spool.finish(end(now_ms())).expect("is written");
    assert_eq!(spools.create(&live(1)).expect_err("it is kept").kind, Kind::Conflict);
    let kept = spools.find(&session(1)).expect("is kept");
    assert_eq!(read(&mut kept.reader(), 0), [(0, b"output".to_vec())]);
}

#[test]
fn of_a_long_request_that_is_over_only_what_is_shown_stays_in_memory() {
    let mut request = live(1).request;
    request.words = vec![vec![b'a'; 300].into(), vec![b'b'; 1 << 20].into(), vec![b'c'; 1 << 20].into()];
    request.env_names = vec!["x".repeat(1 << 20)];
    request.reason = Some("y".repeat(1 << 20));
    shorten(&mut request);
    let sizes: Vec<_> = request.words.iter().map(|word| (word.len(), word.capacity() <= 1024)).collect();
    assert_eq!(sizes, [(300, true), (MAX_COMMAND + 1 - 300, true)]);
    assert!(request.env_names.is_empty() && request.reason.is_none());

    request.words = vec![Vec::new().into(); 1 << 20];
    shorten(&mut request);
    assert!(request.words.len() <= MAX_COMMAND);
    for last in ["x".to_owned(), "x".repeat(MAX_COMMAND + 1)] {
        let words = vec![Vec::new().into(), last.into_bytes().into()];
        request.words.clone_from(&words);
        shorten(&mut request);
        assert_eq!(request.words, words);
    }
}
