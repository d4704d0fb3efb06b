//! What ends a session, and that nothing of it is left: in both ways in which processes are found.

use malai_protocol::codec::Kind;
use malai_protocol::plan::{CallerGone, End, Outcome, Tree};
use malai_protocol::session::{EndedBy, ExitRecord};

use super::harness::{Lab, has_cgroups, lives, pid_in, plan, script, until};

/// The record that the daemon is told.
async fn record(lab: &mut Lab) -> ExitRecord {
    match lab.control.ended().await.outcome {
        Outcome::Exit(record) => record,
        Outcome::Refused(failure) => panic!("{failure}"),
    }
}

#[tokio::test]
async fn what_is_asked_for_is_what_is_told() {
    let lab = Lab::with(false).await;
    assert_eq!(lab.control.tree(), Tree::Marker);
    lab.close().await;
    let lab = Lab::new().await;
    has_cgroups(&lab);
    lab.close().await;
}

/// A tree that ignores TERM, with its deepest process' pid in a file, times out.
async fn timeout_kills_the_tree(cgroups: bool) {
    let mut lab = Lab::with(cgroups).await;
    let file = lab.path("pid");
    let mut stubborn = script(&format!("trap '' TERM; sh -c 'echo $$ > {file}; sleep 1000; sleep 1000' & wait; wait"));
    stubborn.timeout_ms = Some(200);
    let caller = lab.start(stubborn).await;
    let deep = pid_in(file.as_ref()).await;
    let done = caller.finish().await;
    assert_eq!(done.record().ended_by, EndedBy::Timeout);
    assert_eq!(done.record().exit_code(), 252);
    assert!(done.record().duration_ms >= 5000, "TERM comes first");
    assert!(!lives(deep));
    assert_eq!(record(&mut lab).await.ended_by, EndedBy::Timeout);
    lab.close().await;
}

#[tokio::test]
async fn a_timeout_kills_a_tree_that_ignores_term_with_cgroups() {
    timeout_kills_the_tree(true).await;
}

#[tokio::test]
async fn a_timeout_kills_a_tree_that_ignores_term_without_cgroups() {
    timeout_kills_the_tree(false).await;
}

/// The caller goes while a grandchild has left group and session; returns the grandchild's pid.
async fn caller_goes(lab: &mut Lab, escape: &str) -> u32 {
    let file = lab.path("pid");
    let hidden = script(&format!("{escape} sh -c 'echo $$ > {file}; exec sleep 1000' & exec sleep 1000"));
    let session = hidden.session;
    let mut caller = lab.start(hidden).await;
    let main = caller.started().await.pid;
    let grandchild = pid_in(file.as_ref()).await;
    lab.control.send(Kind::CallerGone, &CallerGone { session, follower: None, number: 1 }).await;
    assert_eq!(record(lab).await.ended_by, EndedBy::CallerGone);
    assert!(!lives(main));
    grandchild
}

#[tokio::test]
async fn with_cgroups_a_grandchild_that_hides_is_ended_too() {
    let mut lab = Lab::new().await;
    if has_cgroups(&lab) {
        // It has lost its parent, its session and its environment.
        let grandchild = caller_goes(&mut lab, "env -i setsid -f").await;
        assert!(!lives(grandchild));
    }
    lab.close().await;
}

#[tokio::test]
async fn without_cgroups_a_grandchild_that_left_the_session_is_found_by_its_marker() {
    let mut lab = Lab::with(false).await;
    let grandchild = caller_goes(&mut lab, "setsid -f").await;
    assert!(!lives(grandchild));
    lab.close().await;
}

#[tokio::test]
async fn without_cgroups_a_grandchild_that_cleared_its_environment_is_found_by_descent() {
    let mut lab = Lab::with(false).await;
    let grandchild = caller_goes(&mut lab, "env -i setsid").await;
    assert!(!lives(grandchild));
    lab.close().await;
}

#[tokio::test]
async fn a_lost_attachment_ends_the_session() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["sleep", "1000"])).await;
    let pid = caller.started().await.pid;
    drop(caller);
    let record = record(&mut lab).await;
    assert_eq!((record.ended_by, record.exit_code()), (EndedBy::Grace, 253));
    assert!(!lives(pid));
    lab.close().await;
}

#[tokio::test]
async fn a_session_that_nobody_attaches_to_is_ended() {
    let mut lab = Lab::new().await;
    lab.control.send(Kind::Plan, &plan(&["sleep", "1000"])).await;
    assert_eq!(record(&mut lab).await.ended_by, EndedBy::Grace);
    lab.close().await;
}

#[tokio::test]
async fn the_going_of_another_attachments_caller_changes_nothing() {
    let mut lab = Lab::new().await;
    let sleeper = plan(&["sleep", "1000"]);
    let session = sleeper.session;
    let mut caller = lab.start(sleeper).await;
    caller.started().await;
    lab.control.send(Kind::CallerGone, &CallerGone { session, follower: None, number: 2 }).await;
    lab.control.send(Kind::End, &End { session, cause: EndedBy::Killed, reason: None }).await;
    // Had the first one counted, it would stand in the record.
    assert_eq!(caller.finish().await.record().ended_by, EndedBy::Killed);
    lab.close().await;
}

#[tokio::test]
async fn a_stopped_process_is_ended_without_waiting_for_kill() {
    let mut lab = Lab::new().await;
    let stopped = script("kill -STOP $$");
    let session = stopped.session;
    let mut caller = lab.start(stopped).await;
    let pid = caller.started().await.pid;
    until("it is stopped", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
    })
    .await;
    lab.control.send(Kind::End, &End { session, cause: EndedBy::Killed, reason: None }).await;
    assert!(caller.finish().await.record().duration_ms < 4000);
    lab.close().await;
}

#[tokio::test]
async fn a_background_process_of_a_command_that_ended_is_left_alone() {
    for cgroups in [true, false] {
        let mut lab = Lab::with(cgroups).await;
        let file = lab.path("pid");
        let leaves = script(&format!("sh -c 'echo $$ > {file}; exec sleep 1000' >/dev/null 2>&1 &"));
        assert_eq!(lab.run(leaves).await.record().exit_code(), 0);
        let pid = pid_in(file.as_ref()).await;
        let dir = lab.close().await;
        assert!(lives(pid), "it outlives the executor too");
        let lab = Lab::at(dir, cgroups).await;
        assert!(lives(pid), "and the start of the next");
        let dir = lab.close().await;
        let raw = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL).expect("it is there");
        until("it is gone", || !lives(pid)).await;
        // The next one removes the cgroup that this left; that nothing is left then, its journal says.
        let dir = Lab::at(dir, cgroups).await.close().await;
        let journal = std::fs::read_to_string(dir.path().join("sessions/journal")).expect("reads");
        let bases: Vec<&str> = journal.lines().filter(|line| line.starts_with("{\"base\"")).collect();
        assert!(bases.len() <= 1, "{journal}");
    }
}
