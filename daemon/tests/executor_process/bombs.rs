//! Trees that do not end when they are asked to: those that fork and leave all the time, and some others.

use std::time::{Duration, Instant};

use malai_daemon::supervisor::Event;
use malai_protocol::failure;
use malai_protocol::plan::{End, Ended, Outcome, Plan, SessionName, Tree};
use malai_protocol::session::{EndedBy, ExitRecord};
use nix::sys::signal::Signal;

use crate::process::{lives, until};
use crate::{Daemon, ended_by, first, home, plan, send};

/// How many processes fork and leave at the same time.
const BOMB_PROCESS_COUNT: usize = 100;
/// How many endings follow one another.
const ENDING_COUNT: usize = 20;
/// How much longer an ending may take here, where other tests run, than on the idle machine that the promise is for.
const BUSY_TIME_FACTOR: u32 = 2;
/// The time that is promised where the kernel kills all processes at once.
const AT_ONCE_END_TIMEOUT: Duration = Duration::from_secs(5 * BUSY_TIME_FACTOR as u64);
/// The time that is promised elsewhere.
const ONE_BY_ONE_END_TIMEOUT: Duration = Duration::from_secs(10 * BUSY_TIME_FACTOR as u64);
/// How many looks have to find no process: some of them miss one that forks and leaves.
const EMPTY_LOOK_COUNT: usize = 50;

/// A word that only the processes of one test have in their command line.
fn token(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// Living processes with this word in their command line.
fn with_word(word: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|one| one == word)
    };
    pids.filter(has).filter(|pid| lives(*pid)).collect()
}

/// Whether nobody has the word, in many looks.
fn nobody_has(word: &str) -> bool {
    (0..EMPTY_LOOK_COUNT).all(|_| with_word(word).is_empty())
}

/// This program with these words.
fn played(words: &[&str]) -> Plan {
    plan(&[&["/proc/self/exe"], words].concat())
}

/// A bomb that goes off, and what keeps it attached.
async fn bomb(daemon: &Daemon, word: &str, user: Option<&str>) -> (SessionName, impl Sized + use<>) {
    let mut plan = played(&["bomb", word, &BOMB_PROCESS_COUNT.to_string()]);
    plan.user = user.map(str::to_owned);
    let session = plan.session;
    daemon.executor.plan(plan).await.expect("sent");
    let attached = daemon.executor.attach(first(session)).await.expect("attached");
    until("it goes off", || with_word(word).len() > BOMB_PROCESS_COUNT / 2).await;
    (session, attached)
}

/// Ends a session as `malai kill` does, and returns how long that took and the end that the executor reported.
async fn end(daemon: &mut Daemon, session: SessionName) -> (Duration, Ended) {
    let began = Instant::now();
    let end = End { session, cause: EndedBy::Killed, reason: Some("a test".into()) };
    daemon.executor.end(end).await.expect("sent");
    loop {
        let ended = daemon.ended().await;
        daemon.executor.audited(ended.session).await.expect("sent");
        if ended.session == session {
            return (began.elapsed(), ended);
        }
    }
}

fn record(ended: &Ended) -> &ExitRecord {
    match &ended.outcome {
        Outcome::Exit(record) => record,
        Outcome::Refused(failure) => panic!("{failure}"),
    }
}

/// Sets bombs off, one after another, and ends each.
#[allow(clippy::print_stderr, reason = "a measurement")]
async fn all_are_gone_within(limit: Duration, mut daemon: Daemon, word: &str, user: Option<&str>) {
    let mut longest = Duration::ZERO;
    for time in 0..ENDING_COUNT {
        let (session, _attached) = bomb(&daemon, word, user).await;
        let (took, ended) = end(&mut daemon, session).await;
        assert!(nobody_has(word), "{time}: {} are left after {took:?}: {ended:?}", with_word(word).len());
        assert_eq!((record(&ended).ended_by, record(&ended).left), (EndedBy::Killed, 0));
        assert!(took <= limit, "{time}: {took:?}");
        longest = longest.max(took);
    }
    eprintln!("{word}: the longest took {longest:?}");
    daemon.stop().await;
}

pub(crate) async fn without_cgroups_a_bomb_of_the_executors_own_user_is_gone_within_ten_seconds() {
    let (_dir, home) = home();
    let daemon = Daemon::of("executor-without-cgroups", &home).await;
    all_are_gone_within(ONE_BY_ONE_END_TIMEOUT, daemon, &token("own"), None).await;
}

pub(crate) async fn with_cgroups_a_bomb_is_gone_within_five_seconds_every_time() {
    let (_dir, home) = home();
    let daemon = Daemon::start(&home).await;
    if needs("a writable cgroup v2", daemon.executor.sessions().tree == Tree::Cgroup) {
        all_are_gone_within(AT_ONCE_END_TIMEOUT, daemon, &token("cgroup"), None).await;
    }
}

/// Whether what a test needs is there. In CI it is.
#[allow(clippy::print_stderr, reason = "says why it proves nothing")]
fn needs(what: &str, is_there: bool) -> bool {
    if !is_there {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "it needs {what}");
        eprintln!("not shown: it needs {what}");
    }
    is_there
}

fn is_root() -> bool {
    needs("root", nix::unistd::Uid::effective().is_root())
}

pub(crate) async fn a_bomb_of_a_user_who_runs_nothing_else_is_gone_within_five_seconds_every_time() {
    if is_root() {
        let (_dir, home) = home();
        let daemon = Daemon::of("executor-without-cgroups", &home).await;
        all_are_gone_within(AT_ONCE_END_TIMEOUT, daemon, &token("alone"), Some("news")).await;
    }
}

pub(crate) async fn a_user_who_runs_something_else_keeps_it() {
    if is_root() {
        let (_dir, home) = home();
        let word = token("uucp");
        let mut daemon = Daemon::of("executor-without-cgroups", &home).await;
        let uucp = nix::unistd::User::from_name("uucp").expect("users").expect("this one is everywhere");
        let mut other = std::process::Command::new("setpriv");
        let other = other.args(["--clear-groups", "--reuid", &uucp.uid.to_string(), "sleep", "1000"]);
        let mut other = other.current_dir("/").spawn().expect("setpriv is there");
        until("it is theirs", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", other.id())).unwrap_or_default();
            status.contains(&format!("Uid:\t{}\t", uucp.uid))
        })
        .await;
        let (session, _attached) = bomb(&daemon, &word, Some("uucp")).await;
        let (took, ended) = end(&mut daemon, session).await;
        assert!(other.try_wait().expect("a child").is_none(), "it was not of the session");
        assert!(nobody_has(&word) && took <= ONE_BY_ONE_END_TIMEOUT, "{took:?} {ended:?}");
        other.kill().expect("a child");
        other.wait().expect("a child");
        daemon.stop().await;
    }
}

pub(crate) async fn others_sessions_go_on_and_are_answered_while_a_bomb_is_ended() {
    let (_dir, home) = home();
    let word = token("others");
    let mut daemon = Daemon::of("executor-without-cgroups", &home).await;
    let (sleeping, sleep, _follows) = daemon.sleep().await;
    let (session, _attached) = bomb(&daemon, &word, None).await;
    let executor = daemon.executor.clone();
    let mut answered = 0;
    let end = End { session, cause: EndedBy::Killed, reason: None };
    executor.end(end).await.expect("sent");
    let ended = loop {
        // It is answered in the midst of it, each time.
        let (out, record) = daemon.run(&["echo", "hi"]).await;
        assert_eq!((out.as_str(), record.exit_code()), ("hi\n", 0));
        answered += 1;
        match daemon.events.try_recv() {
            Ok(Event::Ended(ended)) if ended.session == session => break ended,
            Ok(Event::Lost) => panic!("the executor is lost"),
            _ => {}
        }
    };
    assert!(nobody_has(&word), "{ended:?}");
    assert!(answered > 1, "none was answered before the end");
    assert!(lives(sleep), "another session's process is none of the bomb");
    let (_, ended) = crate::bombs::end(&mut daemon, sleeping).await;
    assert_eq!(ended_by(&ended), EndedBy::Killed);
    daemon.stop().await;
}

pub(crate) async fn what_is_left_is_named_and_counted() {
    if !is_root() {
        return;
    }
    let (_dir, home) = home();
    let word = token("left");
    let mut daemon = Daemon::of("executor-without-kill", &home).await;
    // One that is left beside its command, and one that is the command.
    for words in [&["keeps", "become", "65533", &word][..], &["become", "65533", &word]] {
        let plan = played(words);
        let session = plan.session;
        daemon.executor.plan(plan).await.expect("sent");
        let _attached = daemon.executor.attach(first(session)).await.expect("attached");
        until("it is another user", || other_users(&word).len() == 1).await;
        let left = other_users(&word)[0];
        let (took, ended) = end(&mut daemon, session).await;
        assert!(took < ONE_BY_ONE_END_TIMEOUT, "{took:?}");
        assert!(lives(left), "it could be ended");
        let name = std::fs::read_to_string(format!("/proc/{left}/comm")).expect("it lives");
        let named = format!("1 process is left: {left} {}", name.trim());
        match &ended.outcome {
            Outcome::Exit(record) => {
                assert_eq!((words[0], record.left), ("keeps", 1));
                assert_eq!(record.reason.as_deref(), Some(format!("a test; {named}").as_str()));
            }
            Outcome::Refused(failure) => {
                assert_eq!((words[0], failure.kind), ("become", failure::Kind::Unknown));
                assert!(failure.message.contains(&named), "{failure}");
            }
        }
        send(left, Signal::SIGKILL);
        until("it is gone", || !lives(left)).await;
    }
    daemon.stop().await;
}

/// Those with this word that are of the user who [`what_is_left_is_named_and_counted`] has.
fn other_users(word: &str) -> Vec<u32> {
    let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    with_word(word).into_iter().filter(|pid| status(*pid).contains("Uid:\t65533\t65533")).collect()
}

pub(crate) async fn a_bomb_that_an_executor_left_when_it_was_killed_is_ended_by_the_next() {
    let (_dir, home) = home();
    let word = token("leftover");
    let daemon = Daemon::of("executor-without-cgroups", &home).await;
    let (_session, _attached) = bomb(&daemon, &word, None).await;
    send(daemon.pid(), Signal::SIGKILL);
    let next = Daemon::of("executor-without-cgroups", &home).await;
    assert!(nobody_has(&word), "{} are left", with_word(&word).len());
    next.stop().await;
}

pub(crate) async fn a_process_whose_first_thread_ended_is_ended_too() {
    let (_dir, home) = home();
    let word = token("headless");
    let mut daemon = Daemon::of("executor-without-cgroups", &home).await;
    let plan = played(&["keeps", "headless", &word]);
    let session = plan.session;
    daemon.executor.plan(plan).await.expect("sent");
    let _attached = daemon.executor.attach(first(session)).await.expect("attached");
    // What has no first thread has no command line: it is the only child of the one that has the word, too.
    until("it has no first thread", || headless_children(&word).len() == 1).await;
    let headless = headless_children(&word)[0];
    let (_, ended) = end(&mut daemon, session).await;
    assert_eq!(record(&ended).left, 0);
    let threads = std::fs::read_dir(format!("/proc/{headless}/task")).map_or(0, Iterator::count);
    assert!(threads < 2, "{threads} of its threads go on");
    daemon.stop().await;
}

/// Children of those with this word that are zombies with more than one thread.
fn headless_children(word: &str) -> Vec<u32> {
    let children = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all: String = with_word(word).into_iter().map(children).collect::<Vec<_>>().join(" ");
    let pids = all.split_whitespace().filter_map(|pid| pid.parse().ok());
    let threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    pids.filter(|pid| !lives(*pid) && threads(*pid) > 1).collect()
}

pub(crate) async fn a_tree_that_forks_to_shut_down_is_given_its_time() {
    for word in ["executor", "executor-without-cgroups"] {
        let (dir, home) = home();
        let mut daemon = Daemon::of(word, &home).await;
        let (ready, done) = (dir.path().join("ready"), dir.path().join("done"));
        let shut_down = "for n in 1 2 3 4 5 6 7 8; do sleep 0.4 & done; n=0; \
                         while [ $n -lt 60 ]; do sleep 0.05; n=$((n + 1)); done; echo done >\"$1\"; exit 0";
        let script = format!("trap '{shut_down}' TERM; echo >\"$0\"; while :; do sleep 0.05; done");
        let (ready, done) = (ready.display().to_string(), done.display().to_string());
        let plan = plan(&["/bin/sh", "-c", &script, &ready, &done]);
        let session = plan.session;
        daemon.executor.plan(plan).await.expect("sent");
        let _attached = daemon.executor.attach(first(session)).await.expect("attached");
        until("it is ready", || std::path::Path::new(&ready).exists()).await;
        let (took, ended) = end(&mut daemon, session).await;
        assert_eq!(std::fs::read_to_string(&done).ok().as_deref(), Some("done\n"), "{took:?} {ended:?}");
        daemon.stop().await;
    }
}
